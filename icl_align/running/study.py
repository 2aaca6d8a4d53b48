"""What a world finds out of trained networks beyond their curves, and its files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from icl_align.config import Config
from icl_align.running.checkpoints import states_before
from icl_align.running.evaluation import evaluated_options
from icl_align.running.files import DamagedFileError, read_json, save_figure, write_json
from icl_align.running.keys import evaluation_key, numbered_keys
from icl_align.running.memory import hand_back
from icl_align.running.training import network_of
from icl_align.world import world_of


def is_studied(config: Config) -> bool:
    """Whether there is a study of the world, and the options ask for it."""
    name = config.measures.study
    return name is not None and bool(getattr(config.evaluation, name))


def study_file(config: Config, folder: Path) -> Path:
    """Where it lies in a folder; the picture is beside it, as .png."""
    return folder / f"{config.measures.study}.json"


def make_study(
    config: Config,
    step: int,
    params: Any,
    run_dir: Path,
    progress: Callable[[float], None],
    warn: Callable[[str], None],
) -> dict[str, Any]:
    """The study of the networks of one configuration.

    Args:
      config: options; those of the evaluation say what is studied.
      step: that training has reached.
      params: with a leading axis of seeds, on the host.
      run_dir: the folder of the run, for its earlier checkpoints.
      progress: called with the share that is done, in [0, 1].
      warn: called with a line for each of them that is damaged.
    """
    keys = _keys_of_seeds(config)

    def earlier() -> dict[int, Any]:
        found = states_before(run_dir, config, step, warn)
        return {at: state.params for at, state in found.items()}

    def progress_and_hand_back(share: float) -> None:
        hand_back()
        progress(share)

    # As for the curves: accelerators round matrix products by default.
    with jax.default_matmul_precision("highest"):
        found = world_of(config).study(
            config, network_of(config), params, earlier, keys, progress_and_hand_back
        )
    seeds = [config.seed + place for place in range(config.num_seeds)]
    return {"step": step, "seeds": seeds, "options": evaluated_options(config)} | found


def _keys_of_seeds(config: Config) -> Key[Array, "s b"]:
    """Of the contexts of the evaluation: one row that all seeds share, or one for each."""
    seed, own = config.evaluation.seed, [None]
    if config.evaluation.own_contexts:
        own = [config.seed + place for place in range(config.num_seeds)]
    numbers = jnp.arange(config.evaluation.num_contexts)
    return jnp.stack([numbered_keys(evaluation_key(seed, of), numbers) for of in own])


def leave_study(config: Config, folder: Path, found: dict[str, Any]) -> None:
    """Writes a study and its picture to a folder."""
    path = study_file(config, folder)
    save_figure(world_of(config).study_figure(config, found), path.with_suffix(".png"))
    write_json(path, found)  # last: where it is, all the rest is


def read_study(config: Config, step: int, folder: Path) -> dict[str, Any] | None:
    """The study in a folder, if it is of these options and this step.

    Raises:
      DamagedFileError: the file holds no study.
    """
    path = study_file(config, folder)
    if config.measures.study is None or not path.exists():
        return None
    found = read_json(path)
    try:
        there, own = found["options"], evaluated_options(config)
        name = config.measures.study
        if not is_studied(config):  # made by a command, which says how much of it
            there = there | {"evaluation": there["evaluation"] | {name: own["evaluation"][name]}}
        same = found["step"] == step and there == own
        for row in found["summary"]:
            row["name"], row["mean"], row["low"], row["high"]
    except (KeyError, TypeError) as error:
        raise DamagedFileError(path, "holds no study") from error
    return found if same else None
