"""A campaign in one file: all that its report is computed from, and nothing of what only more
training needs.
"""

import io
import json
import tarfile
from pathlib import Path

from experiments.registration import FILE
from icl_align.running.metrics_file import read_rows
from icl_align.running.sweeps import LOSS_FROM

LEFT_OUT = {"checkpoints", "wandb", ".lock"}
FIGURES = {".png", ".pdf", ".svg"}
ENDS = ("curves.json", "diverged.json")  # without its checkpoints no other run can go on
LOSSES = "metrics.jsonl"


def pack(folder: Path, names: tuple[str, ...]) -> Path:
    """Writes FOLDER.tar.xz, which unpacks into a folder that is reported, checked and gone on with
    as the campaign's own. It holds the runs whose training has ended.

    Args:
      folder: the campaign's.
      names: of files beside registered.json and the runs that go with them.
    """
    path = folder.with_name(folder.name + ".tar.xz")
    partial = path.with_name(path.name + ".partial")
    files = [folder / name for name in (FILE, *names)]
    for run in sorted(folder.glob("runs/*")):
        if any((run / end).exists() for end in ENDS):
            files += [file for file in sorted(run.glob("**/*")) if _is_needed(run, file)]
    with tarfile.open(partial, "w:xz") as archive:
        for file in files:
            if file.is_file():
                _add(archive, file, str(file.relative_to(folder.parent)))
    partial.replace(path)
    return path


def _is_needed(run: Path, file: Path) -> bool:
    parts = set(file.relative_to(run).parts)
    return not parts & LEFT_OUT and file.suffix not in FIGURES


def _add(archive: tarfile.TarFile, file: Path, name: str) -> None:
    info, content = archive.gettarinfo(file, name), file.read_bytes()
    if file.name == LOSSES:
        rows = read_rows(file)
        first = LOSS_FROM * max((row["step"] for row in rows), default=0)
        content = "".join(f"{json.dumps(row)}\n" for row in rows if row["step"] > first).encode()
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))
