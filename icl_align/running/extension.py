"""More steps than a run was trained for: another run that begins where it ended.

The steps after step k are those of a run of all `train.steps` with the new options: with a cosine
schedule the learning rate is what such a run has after k steps. Only the steps up to k were taken
under the old ones. The old run's folder stays as it is.
"""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from icl_align.config import (
    TRAINING,
    Config,
    ConfigError,
    concerned,
    differences,
    setting,
)
from icl_align.running.checkpoints import Checkpoints, newest_state
from icl_align.running.metrics_file import read_rows
from icl_align.running.run_folder import config_of_run, config_to_go_on_with


def extended_config(config: Config, overrides: list[str]) -> Config:
    """The configuration of the run in `config.extend`, with what the command line names over it.

    Args:
      config: as it was asked for; `extend` is the absolute path of a folder.
      overrides: of the command line.

    Raises:
      ConfigError: the folder holds no run or none with a checkpoint, it has all these steps
        already, or something but its training loop would be another.
    """
    folder = Path(config.extend)
    trained = config_of_run(folder, "extend")
    config = config_to_go_on_with(trained, config, overrides)
    fixed = {key for key in concerned(trained, TRAINING) if not key.startswith("train.")}
    for key, (old, new) in differences(trained, config).items():
        if key in fixed - {"extend"}:
            allowed = f"fixed by extend={folder} ({setting('', old)[1:]} there)"
            raise ConfigError(key, new, f"{allowed}; of its training train.* can change")
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    steps = checkpoints.steps()
    checkpoints.close()
    if not steps:
        raise ConfigError("extend", folder, "has no checkpoint yet")
    if config.train.steps <= steps[0]:
        reason = f"must be above {steps[0]}, which extend={folder} has reached"
        raise ConfigError("train.steps", config.train.steps, reason)
    return config


def begin_where_it_ended(
    config: Config, folder: Path, checkpoints: Checkpoints, warn: Callable[[str], None]
) -> None:
    """Puts the newest checkpoint of the extended run, and its rows, into a folder that has none.

    From then on the run goes on like any other that was interrupted.

    Args:
      config: from `extended_config`.
      folder: of the new run.
      checkpoints: its own.
      warn: called with a line on what of the extended run is damaged.
    """
    source = Path(config.extend)
    step, state = newest_state(source, config_of_run(source, "extend"), warn)
    rows = read_rows(source / "metrics.jsonl")
    taken = [row for row in rows if "train/loss" in row and row["step"] <= step]
    partial = folder / "metrics.jsonl.partial"
    partial.write_text("".join(json.dumps(row) + "\n" for row in taken))
    partial.replace(folder / "metrics.jsonl")
    checkpoints.save(step, jax.tree.map(np.asarray, state))  # last: where it is, the rows are
    checkpoints.wait()
