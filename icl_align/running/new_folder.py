"""The folder of a start, which no other start shares, and the command that goes on in it."""

import itertools
import re
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from icl_align.config import ConfigError

RUN, SWEEP, EXTEND = "hydra.run.dir", "hydra.sweep.dir", "extend"
PARENTS = {RUN: "runs", SWEEP: "sweeps"}


def make_new_folder(key: str, now: float | None = None) -> Path:
    """Makes `runs/DATE/TIME` or `sweeps/DATE/TIME`; where it is taken, `TIME_2`, `TIME_3`, ...

    Making a folder is one step of the file system, on one machine and on a shared disk, so two
    starts in one second never get the same.

    Args:
      key: RUN or SWEEP.
      now: as `time.time()`; by default the present.

    Raises:
      ConfigError: no folder can be made here.
    """
    date, clock = time.strftime("%Y-%m-%d %H-%M-%S", time.localtime(now)).split()
    parent = Path(PARENTS[key]) / date
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for count in itertools.count(1):
            folder = parent / (clock if count == 1 else f"{clock}_{count}")
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                continue
    except OSError as error:
        reason = f"no folder can be made here ({error.strerror}); name another one"
        raise ConfigError(key, parent, reason) from error
    raise AssertionError("there is always a next number")


def quoted(text: str) -> str:
    """A value as Hydra's grammar reads it, with quotes where it needs them."""
    if re.fullmatch(r"[A-Za-z0-9_/.\-]+", text):
        return text
    # Before a quote, and at the end, Hydra takes a backslash for an escape; elsewhere for itself.
    escaped = re.sub(r"\\+(?='|$)", lambda found: 2 * found[0], text).replace("'", "\\'")
    return f"'{escaped}'"


def command_to_go_on(folder: Path, overrides: Sequence[str] = ()) -> str:
    """The command, as it would be typed, that goes on with the run in a folder.

    Args:
      folder: of the run.
      overrides: that are not the run's own, such as those of the machine.
    """
    words = [f"{RUN}={quoted(str(folder))}", *overrides]
    return f"{python_here()} -m icl_align.train {shlex.join(words)}"


def command_to_extend(folder: Path, steps: int) -> str:
    """The command that goes on with the run in a folder to more steps, in a folder of its own."""
    named = shlex.quote(f"{EXTEND}={quoted(str(folder))}")
    return f"{python_here()} -m icl_align.train {named} train.steps={steps}"


def python_here() -> str:
    """The Python of this process, as it would be typed here."""
    if shutil.which("python") == sys.executable:
        return "python"
    own, here = Path(sys.executable), Path.cwd()
    return shlex.quote(str(own.relative_to(here) if own.is_relative_to(here) else own))
