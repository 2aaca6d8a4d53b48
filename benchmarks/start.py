"""How long the commands themselves take: to their help, and to the first training step."""

import contextlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.contest import ROOT, Failed

FIRST_STEP = re.compile(r"the first one was done ([\d.]+) s after the start")
TRAIN = [sys.executable, "-m", "icl_align.train"]


def help_seconds() -> float:
    """From the command to its help.

    Raises:
      Failed: the command does.
    """
    begun = time.perf_counter()
    done = subprocess.run([*TRAIN, "--help"], capture_output=True, cwd=ROOT)
    if done.returncode:
        raise Failed(f"--help ended with status {done.returncode}")
    return time.perf_counter() - begun


def first_step_seconds(overrides: list[str], cache: Path) -> float:
    """From the command to the end of the first step, as the command itself prints it.

    Args:
      overrides: of the run.
      cache: folder of JAX's compilation cache; empty for a cold start.

    Raises:
      Failed: the command ends without saying so.
    """
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "PYTHONUNBUFFERED": "1",
    }
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as errors:
        quiet = [f"hydra.run.dir={folder}/run", "wandb.mode=offline", "train.steps=1"]
        process = subprocess.Popen(
            [*TRAIN, *overrides, *quiet],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        try:
            for line in process.stdout:
                found = FIRST_STEP.search(line)
                if found:
                    return float(found[1])
        finally:
            _stop(process)
        errors.seek(0)
        last = [line.strip() for line in errors if line.strip()][-1:]
        raise Failed(f"the command did not train: {' '.join(last)}")


def _stop(process: subprocess.Popen) -> None:
    """Asks a run that has done its step to end; the evaluation is not wanted."""
    with contextlib.suppress(OSError):
        process.terminate()
    with process.stdout:
        for _ in process.stdout:  # what it still says, so that it never waits for a reader
            pass
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def measure_start(overrides: list[str], repeats: int) -> dict[str, Any]:
    """Seconds to the first step, with an empty compilation cache and with the one it leaves.

    Returns:
      cold and warm (their medians), and all of them in `every_cold`, `every_warm`.

    Raises:
      Failed: a run does.
    """
    cold, warm = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            cold.append(first_step_seconds(overrides, Path(cache)))
            warm.append(first_step_seconds(overrides, Path(cache)))
    return {
        "cold": statistics.median(cold),
        "warm": statistics.median(warm),
        "every_cold": cold,
        "every_warm": warm,
    }


def measure_help(repeats: int) -> dict[str, Any]:
    """Seconds to the help: the median, and all of them in `every`."""
    every = [help_seconds() for _ in range(repeats)]
    return {"median": statistics.median(every), "every": every}
