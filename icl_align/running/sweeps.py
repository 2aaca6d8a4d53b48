"""What a sweep needs from its jobs: a value to search by, and word of the ones that failed."""

import contextlib
import math
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode

from icl_align.config import ConfigError
from icl_align.running.comparison import runs_in, table
from icl_align.running.errors import RunError
from icl_align.running.metrics_file import read_rows
from icl_align.running.terminal import Terminal

LOSS_FROM = 0.9  # of the steps: a search minimises the loss of the rest


def final_loss(folder: Path) -> float:
    """The mean training loss of a run, over seeds and the last tenth of its steps.

    It is what a search minimises.

    Args:
      folder: a run folder whose training is done.

    Returns:
      The mean over the rows of metrics.jsonl after 9/10 of the steps; infinity if there are none,
      or where a loss is not finite.
    """
    rows = [row for row in read_rows(folder / "metrics.jsonl") if "train/loss" in row]
    # Rows of a training that was begun anew may stand before those of its first steps.
    last = max((row["step"] for row in rows), default=0)
    losses = [row["train/loss"] for row in rows if row["step"] > LOSS_FROM * last]
    mean = sum(losses) / len(losses) if losses else math.inf
    return mean if math.isfinite(mean) else math.inf


def runs_one_by_one(hydra: Any) -> bool:
    """Whether the jobs of a sweep run one after another in the process that was called."""
    return str(hydra.launcher["_target_"]).endswith(".BasicLauncher")


def name_of_sweep(hydra: Any) -> str:
    """The folder of a sweep, as seen from where its command was given where that is shorter."""
    folder, here = Path(hydra.sweep.dir), Path(hydra.runtime.cwd)
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)


class FailedJobs(Callback):
    """Ends a sweep with a table of its jobs, and lets it go on when one fails; it then ends with a
    line for each that did and exit status 1.

    Word of a failure goes through a file, `failed/NUMBER.txt` in the sweep's folder: a job may run
    in another process, or on another machine. To a search a failed job is the worst of all.
    """

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        """Forgets the failures of an earlier attempt."""
        shutil.rmtree(_notes(config), ignore_errors=True)

    def on_job_end(self, config: Any, job_return: JobReturn, **_: Any) -> None:
        """Notes the failure of a job of a sweep, where the job runs."""
        if config.hydra.mode != RunMode.MULTIRUN or job_return.status != JobStatus.FAILED:
            return
        error = job_return._return_value  # the property would print it and raise it
        job, folder = config.hydra.job.num, config.hydra.runtime.output_dir
        line = f"icl_align: error: job {job}: {folder}: "
        note = _notes(config) / f"{job}.txt"
        if isinstance(error, ConfigError | RunError):
            line += str(error)
            details = ""
        else:
            line += " ".join(f"{type(error).__name__}: {error} (see {note})".split())
            details = "".join(traceback.format_exception(error))
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(f"{line}\n{details}")
        if runs_one_by_one(config.hydra):
            sys.stderr.write(f"{line}\n")
        # Only now, so that Hydra tells of a failure that could not be noted.
        job_return.return_value = math.inf
        job_return.status = JobStatus.COMPLETED

    def on_multirun_end(self, config: Any, **_: Any) -> None:
        """Compares the jobs and reports the failures, in the process that was called."""
        with contextlib.suppress(ConfigError):  # nothing was evaluated
            title, header, rows = table(runs_in([Path(config.hydra.sweep.dir)], Terminal().warn))
            Terminal().table(title, header, rows)
        notes = sorted(_notes(config).glob("*.txt"), key=lambda note: int(note.stem))
        if not runs_one_by_one(config.hydra):
            for note in notes:
                sys.stderr.write(note.read_text().partition("\n")[0] + "\n")
        if notes:
            sys.exit(1)


def _notes(config: Any) -> Path:
    return Path(config.hydra.sweep.dir) / "failed"
