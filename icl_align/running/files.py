"""Files that are never seen half written."""

import contextlib
import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

WORDS_OF_A_FULL_DISK = ("RESOURCE_EXHAUSTED: Failed writing", os.strerror(errno.ENOSPC))
LEAST_FREE = 2**16  # bytes; with fewer W&B fails with errors of its own
NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EFBIG)


def why_not_written(error: BaseException, folder: Path) -> str | None:
    """Why a file below `folder` could not be written, where that is what an error comes from.

    Checkpoints and W&B have words of their own for a full disk.
    """
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    for one in chain:
        if isinstance(one, OSError) and one.errno in NOT_WRITABLE:
            return os.strerror(one.errno)
    full = any(words in str(one) for one in chain for words in WORDS_OF_A_FULL_DISK)
    with contextlib.suppress(OSError):
        of_wandb = any(type(one).__module__.startswith("wandb") for one in chain)
        full |= of_wandb and shutil.disk_usage(folder).free < LEAST_FREE
    return os.strerror(errno.ENOSPC) if full else None


class DamagedFileError(ValueError):
    """A file that does not hold what was written to it; names it, in one line."""

    def __init__(self, path: Path, reason: str):
        self.path, self.reason = path, reason
        super().__init__(f"{path} {reason}")


def read_json(path: Path) -> Any:
    """The JSON of a file.

    Raises:
      DamagedFileError: it holds something else.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise DamagedFileError(path, "is no JSON; it was cut off or overwritten") from error


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that a reader never sees half of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value) + "\n")
    partial.replace(path)


def save_figure(figure: Any, path: Path) -> None:
    """Writes a figure, in the format of its name, so that a reader never sees half of it."""
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    figure.savefig(partial, dpi=150)
    partial.replace(path)
