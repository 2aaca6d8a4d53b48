"""The folder of a run: who may use it, and which configuration it belongs to."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from icl_align.config import (
    MACHINE,
    TRAINING,
    Config,
    ConfigError,
    concerned,
    differences,
    leaves,
    setting,
    with_values,
)
from icl_align.running.compose import DEFAULT_WORLD
from icl_align.running.errors import USAGE_ERROR, RunError
from icl_align.running.new_folder import command_to_extend
from icl_align.world import WORLDS, options_of

EVALUATIONS = "evaluations"  # folder of the evaluations of a run under other options


@contextlib.contextmanager
def sole_user_of(folder: Path) -> Iterator[None]:
    """Holds the run folder; the lock goes with the process, however it ends.

    Raises:
      RunError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunError(
            f"hydra.run.dir={folder}: another process is running in this folder", USAGE_ERROR
        ) from error
    try:
        yield
    finally:
        lock.release()


def saved_config(folder: Path) -> Config | None:
    """The configuration of the run that a folder holds; None for a new folder."""
    path = folder / ".hydra" / "config.yaml"
    if not path.exists():
        return None
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
        if not isinstance(values, dict) or "num_seeds" not in values:
            raise ValueError("cut off")
    except (ValueError, YAMLError, OmegaConfBaseException, OSError) as error:
        if isinstance(error, PermissionError):
            raise
        values = _values_of_checkpoint(folder)
        if values is None:
            raise ConfigError(
                "folder", folder, "its .hydra/config.yaml is damaged, and no checkpoint has a copy"
            ) from error
    return from_dict(values)


def _values_of_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The configuration that the newest whole checkpoint was written under."""
    from icl_align.running.checkpoints import Checkpoints

    if not (folder / "checkpoints").is_dir():
        return None
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    found = checkpoints.configs()
    checkpoints.close()
    return found[0] if found else None


def config_of_run(folder: Path, key: str = "run_dir") -> Config:
    """The configuration of the run in a folder that a user named as `key`.

    Raises:
      ConfigError: the folder holds no run.
    """
    config = saved_config(folder)
    if config is None or not (folder / "checkpoints").is_dir():
        raise ConfigError(key, folder, "must be the folder of a run; it holds none")
    return config


def from_dict(values: dict[str, Any]) -> Config:
    """The Config of the nested dicts of `dataclasses.asdict`.

    Raises:
      ConfigError: it is of a world, or has an option, that there is not.
    """
    world = values.get("world", DEFAULT_WORLD)  # runs before there were worlds name none
    if world not in WORLDS:
        raise ConfigError("world", world, f"must be one of {', '.join(WORLDS)}")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(options_of(world)), values)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        raise ConfigError(
            key or "config", "", "saved by another version of icl_align, which this one cannot read"
        ) from error
    return OmegaConf.to_object(merged)


def config_to_go_on_with(saved: Config, asked: Config, overrides: list[str]) -> Config:
    """The saved configuration with what the command line names put over it.

    A named group, as in task=NAME, names all of its options. Those of the machine are always the
    new ones. Of two worlds it is the one that is asked for.
    """
    named = {override.partition("=")[0].lstrip("+~") for override in overrides}
    if "world" in named and asked.world != saved.world:
        return asked
    of_the_machine = concerned(saved, MACHINE)
    kept = {key for key, _, _ in leaves(saved)}
    defaults = {key: value for key, _, value in leaves(type(asked))}
    wanted = {key: value for key, _, value in leaves(asked) if key in kept}
    return with_values(
        saved,
        {
            key: value
            for key, value in wanted.items()
            if key in of_the_machine
            or {key, key.partition(".")[0]} & named
            or value != defaults[key]
        },
    )


def refuse_other(folder: Path, saved: Config, config: Config) -> None:
    """Raises RunError if `config` trains something else than what the folder holds."""
    fixed = concerned(saved, TRAINING)
    changed = {key: pair for key, pair in differences(saved, config).items() if key in fixed}
    if changed:
        keys = ", ".join(
            f"{setting(key, new)} (was {setting('', old)[1:]})"
            for key, (old, new) in changed.items()
        )
        hint = ""
        if set(changed) == {"train.steps"} and config.train.steps > saved.train.steps:
            command = command_to_extend(folder, config.train.steps)
            hint = f"; to go on to more steps in another folder: {command}"
        line = f"hydra.run.dir={folder}: its checkpoints belong to another configuration: {keys}"
        raise RunError(line + hint, USAGE_ERROR)


def write_hydra_files(
    folder: Path, config: Config, hydra_config: Any, overrides: list[str]
) -> None:
    """`.hydra/` as Hydra writes it; hydra.yaml and overrides.yaml stay those of the first start,
    and config.yaml keeps its time where it says the same.
    """
    hydra_folder = folder / ".hydra"
    hydra_folder.mkdir(exist_ok=True)
    contents = {"config.yaml": OmegaConf.structured(config)}
    if hydra_config is not None and not (hydra_folder / "overrides.yaml").exists():
        contents["hydra.yaml"] = hydra_config
        contents["overrides.yaml"] = overrides
    for name, content in contents.items():
        partial = hydra_folder / (name + ".partial")
        OmegaConf.save(content, partial)
        path = hydra_folder / name
        if path.exists() and path.read_bytes() == partial.read_bytes():
            partial.unlink()
        else:
            partial.replace(path)


@contextlib.contextmanager
def nothing_left_if_refused(folder: Path) -> Iterator[None]:
    """Where an option is refused after a run has begun, takes away what this start has made.

    So the next start in the folder may have other options. What was there before stays.
    """
    names = (".lock", ".hydra", "checkpoints", "metrics.jsonl", "wandb")
    existed = folder.exists()
    made = [name for name in names if not (folder / name).exists()]
    try:
        yield
    except ConfigError:
        for name in made if "checkpoints" in made and "metrics.jsonl" in made else []:
            path = folder / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            if not existed:
                folder.rmdir()
        raise
