"""The job of `python -m icl_align.train`: one run, in the folder that Hydra chose."""

import contextlib
import math
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from icl_align.config import ConfigError
from icl_align.running.compose import ADDED_GROUPS, to_config
from icl_align.running.devices import leads, set_up_command
from icl_align.running.new_folder import SWEEP, quoted
from icl_align.running.run import Start, run
from icl_align.running.sweeps import final_loss, name_of_sweep


def run_in_hydra_folder(node, began: float) -> float:
    """The job of `python -m icl_align.train`: reads what Hydra decided, and runs it.

    Args:
      node: the configuration, from Hydra.
      began: when the command did, as `time.time()`.

    Returns:
      The final loss.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    choices = {**hydra.runtime.choices}
    tags = [
        name.strip()
        for group in ADDED_GROUPS
        for name in str(choices.get(group) or "").strip("[]").split(",")
        if name.strip()
    ]
    swept = hydra.mode == RunMode.MULTIRUN
    start = Start(
        overrides=list(hydra.overrides.task),
        hydra_config=HydraConfig.instance().cfg,
        tags=[tag.strip("'\"") for tag in tags],
        group=name_of_sweep(hydra) if swept else None,
        began=time.time() if swept else began,
        goes_on=_sweep_again(hydra) if swept else None,
        job=str(hydra.job.num) if swept else None,
        ends_process=True,
    )
    with _no_empty_folder(folder):
        config = to_config(node)
        if swept and config.devices.cluster:
            raise ConfigError("devices.cluster", True, "trains one configuration, not a sweep")
        set_up_command(config.devices)
        run(config, folder, start)
    jax.clear_caches()  # the jobs of a sweep share a process, not their programs
    return final_loss(folder) if leads() else math.nan


def _sweep_again(hydra) -> str:
    return f"the same command with {shlex.quote(f'{SWEEP}={quoted(hydra.sweep.dir)}')}"


@contextlib.contextmanager
def _no_empty_folder(folder: Path) -> Iterator[None]:
    """Takes away the folder that Hydra made if nothing was put into it."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()
