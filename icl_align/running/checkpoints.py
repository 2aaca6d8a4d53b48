"""Checkpoints of a run: saved in the background by Orbax, verified when they are read.

Each checkpoint holds the training state, the configuration it belongs to, and the state's digest.
Orbax writes a checkpoint beside its final name and renames it, so a kill never leaves half of one;
the digest finds what was damaged later.
"""

import contextlib
import errno
import functools
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from icl_align.config import Config, ConfigError
from icl_align.running.training import TrainState, state_shapes

SPACE_FOR_FILES = 2**17  # bytes that the files of a checkpoint take beside its arrays


def digest(state: Any) -> str:
    """SHA-256 over the names, shapes, types and bytes of a state's arrays."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        array = np.asarray(leaf)
        sha.update(f"{jax.tree_util.keystr(path)}{array.shape}{array.dtype}".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def _orbax() -> Any:
    """Orbax, which takes a while to import: a new run needs it after its first step only."""
    import orbax.checkpoint as ocp

    return ocp


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
      folder: made when missing; damaged checkpoints are moved to a folder beside it.
      config: the run's configuration as plain nested dicts, stored with every checkpoint.
      keep: how many of the newest are kept.
      read_only: never changes the folder, so a run that is still training can be looked at.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any] | None = None,
        keep: int = 3,
        *,
        read_only: bool = False,
    ):
        self.folder, self._config, self._keep = folder.absolute(), config, keep
        self._read_only = read_only
        if not read_only:
            self.folder.mkdir(parents=True, exist_ok=True)

    @functools.cached_property
    def _manager(self) -> Any:
        ocp = _orbax()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if self._read_only else self._keep,
            create=False,
            read_only=self._read_only,
            # In a cluster only the leader comes here, so Orbax must not wait for the others.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                active_processes={jax.process_index()} if jax.process_count() > 1 else None
            ),
        )
        return ocp.CheckpointManager(self.folder, options=options)

    def save(self, step: int, state: Any) -> None:
        """Saves a host state in the background; its arrays must stay as they are.

        Raises:
          OSError: there is no space for it.
        """
        if step in self._manager.all_steps():
            return
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + SPACE_FOR_FILES
        if shutil.disk_usage(self.folder).free < needed:  # Orbax would fail in several threads
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        args = _orbax().args
        leaves = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(state))}
        about = {"config": self._config, "digest": digest(state)}
        self._manager.save(
            step,
            args=args.Composite(state=args.StandardSave(leaves), about=args.JsonSave(about)),
        )

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, newest first."""
        unopened = "_manager" not in vars(self)
        if unopened and self.folder.is_dir() and not any(self.folder.iterdir()):
            return []
        return sorted(self._manager.all_steps(), reverse=True)

    def configs(self) -> list[dict[str, Any]]:
        """The configurations the checkpoints were written under, newest first.

        A damaged checkpoint is passed over; `restore_newest` reports it.
        """
        found = []
        for step in self.steps():
            with contextlib.suppress(Exception):  # whatever a damaged file makes the reader raise
                args = _orbax().args
                about = args.Composite(about=args.JsonRestore())
                found.append(self._manager.restore(step, args=about)["about"]["config"])
        return found

    def restore_newest(
        self,
        template: Any,
        warn: Callable[[str], None] = lambda message: None,
        at_most: int | None = None,
    ) -> tuple[int, Any] | None:
        """(step, host state) of the newest checkpoint that is whole; None where there is none.

        A damaged one is moved aside and reported through `warn`, and the one before is tried.

        Args:
          template: a state of the same structure, shapes and types.
          warn: called with one line for each damaged checkpoint.
          at_most: later steps are passed over.
        """
        leaves, structure = jax.tree.flatten(template)
        on_host = {str(i): np.empty(leaf.shape, leaf.dtype) for i, leaf in enumerate(leaves)}
        for step in self.steps():
            if at_most is not None and step > at_most:
                continue
            args = _orbax().args
            try:
                wanted = args.Composite(
                    state=args.StandardRestore(on_host), about=args.JsonRestore()
                )
                restored = self._manager.restore(step, args=wanted)
                found = [restored["state"][str(i)] for i in range(len(leaves))]
                state = jax.tree.unflatten(structure, found)
                if digest(state) != restored["about"]["digest"]:
                    raise ValueError("its digest does not match its content")
                return step, state
            except Exception as error:  # whatever a damaged file makes the reader raise
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                fate = "passed over" if self._read_only else f"moved to {self._move_aside(step)}"
                warn(f"checkpoint {step} is damaged ({reason}); {fate}")
        return None

    def _move_aside(self, step: int) -> Path:
        target = self.folder.with_name(self.folder.name + "_damaged")
        target.mkdir(exist_ok=True)
        aside = target / str(step)
        count = 1
        while aside.exists():
            count += 1
            aside = target / f"{step}_{count}"
        shutil.move(self.folder / str(step), aside)
        self.close()
        return aside

    def wait(self) -> None:
        """Blocks until everything handed to `save` is on disk."""
        if "_manager" in vars(self):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and lets the folder go; what is asked for later opens it again."""
        if "_manager" in vars(self):
            self._manager.close()
            del self._manager


def newest_state(
    run_dir: Path, config: Config, warn: Callable[[str], None]
) -> tuple[int, TrainState]:
    """(step, state) of a run's newest whole checkpoint, for looking at it only.

    A run that has not reached its last step is reported through `warn`.

    Raises:
      ConfigError: there is no whole checkpoint yet.
    """
    checkpoints = Checkpoints(run_dir / "checkpoints", read_only=True)
    found = checkpoints.restore_newest(state_shapes(config), warn)
    checkpoints.close()
    if found is None:
        raise ConfigError("run_dir", run_dir, "has no whole checkpoint yet")
    if found[0] < config.train.steps:
        warn(f"training has reached step {found[0]} of {config.train.steps}")
    return found[0], jax.tree.map(jax.numpy.asarray, found[1])


def states_before(
    run_dir: Path, config: Config, step: int, warn: Callable[[str], None]
) -> dict[int, TrainState]:
    """Step -> state of every whole checkpoint that is kept from before a step, oldest first.

    One that is damaged is reported through `warn`.
    """
    checkpoints, found, last = Checkpoints(run_dir / "checkpoints", read_only=True), {}, step
    template = state_shapes(config)
    while (newest := checkpoints.restore_newest(template, warn, at_most=last - 1)) is not None:
        last, found[newest[0]] = newest
    checkpoints.close()
    return dict(sorted(found.items()))
