"""One run in its folder: start or go on, train, evaluate, leave the results.

Signals and clocks of training live here; `training` and `curves` are pure.
"""

import contextlib
import dataclasses
import errno
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil
from flax import nnx

from icl_align.checkpoints import Checkpoints
from icl_align.cli import RunError, to_config
from icl_align.config import Config, ConfigError
from icl_align.curves import compute_curves, is_final
from icl_align.files import write_json
from icl_align.model import num_parameters
from icl_align.plots import save_curves_figure
from icl_align.run_folder import (
    config_to_go_on_with,
    from_dict,
    refuse_other,
    saved_config,
    sole_user_of,
    write_hydra_files,
)
from icl_align.terminal import Terminal, changed_options
from icl_align.tracking import Tracker, check_account, first_not_finite
from icl_align.training import METRICS, TrainState, build_transformer, init_state, make_chunk

# A chunk of steps lasts about this long, so that a signal or the progress bar never waits longer.
CHUNK_SECONDS = 1.0
MOST_STEPS_A_CHUNK = 500
OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)


@dataclasses.dataclass
class Start:
    """What a run is called with, beside its configuration."""

    overrides: list[str] = dataclasses.field(default_factory=list)
    hydra_config: Any = None
    tags: list[str] = dataclasses.field(default_factory=list)
    group: str | None = None
    began: float = dataclasses.field(default_factory=time.time)


def run_in_hydra_folder(node) -> None:
    """The job of `python -m icl_align.train`: reads what Hydra decided, then runs."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    choices = {**hydra.runtime.choices}
    tags = [
        name.strip()
        for group in ("experiment", "scale", "ablation")
        for name in str(choices.get(group) or "").strip("[]").split(",")
        if name.strip()
    ]
    swept = hydra.mode == RunMode.MULTIRUN
    start = Start(
        overrides=list(hydra.overrides.task),
        hydra_config=HydraConfig.instance().cfg,
        tags=[tag.strip("'\"") for tag in tags],
        group=hydra.sweep.dir if swept else None,
        began=time.time() if swept else psutil.Process().create_time(),
    )
    with _no_empty_folder(folder):
        run(to_config(node), folder, start)
    jax.clear_caches()  # the jobs of a sweep share a process, not their programs


@contextlib.contextmanager
def _no_empty_folder(folder: Path) -> Iterator[None]:
    """After an error, takes away the folder that Hydra made if nothing was put into it."""
    try:
        yield
    except (ConfigError, RunError):
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise


class StopSignals:
    """While active, SIGTERM and SIGINT ask the run to stop at the next chunk."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def __enter__(self) -> "StopSignals":
        self._before = {}
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ValueError):  # not the main thread: a launcher's worker
                self._before[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, _frame: Any) -> None:
        if self.received is not None:  # a second signal does not wait
            raise KeyboardInterrupt
        self.received = signal.Signals(number)

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stop_if_received(self, where: str) -> None:
        """Raises RunError, with the shell's exit status for the signal, if one has come."""
        if self.received is not None:
            raise RunError(
                f"stopped by {self.received.name} {where}; the same command goes on from there",
                128 + self.received,
            )


# ------------------------------------------------------------------------------------------- a run


def run(config: Config, folder: Path, start: Start | None = None) -> dict[str, Any]:
    """Trains `config` in `folder`, going on where an earlier process stopped, and evaluates it.

    Args:
      config: a checked configuration.
      folder: the run folder, made when missing.
      start: overrides, tags and group of the call.

    Returns:
      The curves, as curves.json holds them.

    Raises:
      RunError: the folder cannot be used, training diverged, or a signal stopped it.
      ConfigError: W&B cannot be reached as asked.
    """
    start = start or Start()
    terminal = Terminal()
    check_account(config.wandb)
    try:
        with sole_user_of(folder), StopSignals() as signals:
            saved = saved_config(folder)
            if saved is not None:
                config = config_to_go_on_with(saved, config, start.overrides)
                refuse_other(folder, saved, config)
            return _train_and_evaluate(config, folder, start, terminal, signals)
    except OSError as error:
        if error.errno not in OUT_OF_SPACE:
            raise
        raise RunError(
            f"{folder}: {os.strerror(error.errno)}; what was saved is kept, "
            "and the same command goes on from there"
        ) from error
    finally:
        terminal.stop_progress()


def _train_and_evaluate(
    config: Config, folder: Path, start: Start, terminal: Terminal, signals: StopSignals
) -> dict[str, Any]:
    resolved = dataclasses.asdict(config)
    checkpoints = Checkpoints(folder / "checkpoints", resolved, config.train.keep_checkpoints)
    tracker = None
    exit_code = 1
    try:
        for written in checkpoints.configs():
            refuse_other(folder, from_dict(written), config)
        state = init_state(config)
        terminal.say(_start_line(config))
        had = checkpoints.steps()
        found = checkpoints.restore_newest(state, terminal.warn)
        if had and found is None:
            raise RunError(
                f"none of the checkpoints in {folder} can be read; start in a new folder"
            )
        if found is not None:
            state = found[1]
            finished = found[0] >= config.train.steps
            terminal.say(
                "training was finished earlier"
                if finished
                else f"going on at step {found[0]} of {config.train.steps}"
            )
        write_hydra_files(folder, config, start.hydra_config, start.overrides)
        tracker = Tracker(folder, config.wandb, resolved, start.tags, start.group)
        state = _train(config, state, checkpoints, tracker, terminal, signals, start.began)
        checkpoints.wait()
        curves = _evaluate(config, folder, state, tracker, terminal, signals)
        exit_code = 0
        return curves
    finally:
        terminal.stop_progress()
        if tracker is not None:
            tracker.close(exit_code)
        checkpoints.close()


def _start_line(config: Config) -> str:
    parameters = num_parameters(nnx.eval_shape(lambda: build_transformer(config, 0)))
    device = jax.local_devices()[0]
    kind = f"CPU ({os.cpu_count()} cores)" if device.platform == "cpu" else device.device_kind
    seeds = f" x {config.num_seeds} seeds" if config.num_seeds > 1 else ""
    return f"{kind} · {parameters:,} parameters{seeds} · {changed_options(config)}"


def _train(
    config: Config,
    state: TrainState,
    checkpoints: Checkpoints,
    tracker: Tracker,
    terminal: Terminal,
    signals: StopSignals,
    began: float,
) -> TrainState:
    """All remaining steps, in chunks of about a second that end where a checkpoint is due."""
    train = config.train
    step = int(np.asarray(state.step)[0])
    if step >= train.steps:
        return state
    terminal.progress("compiling", 0.0, 1.0)
    most = min(MOST_STEPS_A_CHUNK, train.checkpoint_every, train.steps)
    program = make_chunk(config, most).lower(state, 1).compile()
    first, size = step, 1
    while step < train.steps:
        boundary = min(train.steps, (step // train.checkpoint_every + 1) * train.checkpoint_every)
        size = min(size, most, boundary - step)
        begun = time.perf_counter()
        state, metrics = program(state, np.int32(size))
        metrics = {name: np.asarray(metrics[name])[:size] for name in metrics}
        speed = size / (time.perf_counter() - begun)
        if step == first:
            to_first_step = time.time() - began
        rows = _rows(config, step, metrics, speed)
        bad = first_not_finite(rows)
        for row in rows:
            due = row["step"] % train.log_every == 0 or row["step"] == train.steps
            if due and (bad is None or row["step"] < bad[0]):
                tracker.log(row)
        if bad is not None:
            checkpoints.wait()
            kept = (
                f"checkpoint {checkpoints.steps()[0]} is kept"
                if checkpoints.steps()
                else ("no checkpoint was due yet")
            )
            raise RunError(
                f"{bad[1]} is {bad[2]} at step {bad[0]}: training diverged; {kept}. "
                "Start in a new folder with a lower train.learning_rate or train.clip_norm"
            )
        step += size
        loss = float(metrics["train/loss"][-1].mean())
        note = f"loss {loss:.4f} · {speed:.1f} steps/s"
        terminal.progress("training", float(step), float(train.steps), note)
        stop = signals.received is not None  # read once: a signal may come at any moment
        if stop or step == boundary:
            checkpoints.save(step, state)
        if stop:
            checkpoints.wait()
            signals.stop_if_received(f"at step {step}, which is saved")
        size = max(1, int(speed * CHUNK_SECONDS))
    terminal.stop_progress()
    total = time.time() - began
    terminal.say(
        f"trained {step - first} steps in {total - to_first_step:.1f} s; "
        f"the first one was done {to_first_step:.1f} s after the start"
    )
    return state


def _rows(
    config: Config, step: int, metrics: dict[str, np.ndarray], speed: float
) -> list[dict[str, Any]]:
    """One row for each step of a chunk, numbered by the steps taken."""
    rows = []
    for place in range(len(metrics["train/loss"])):
        row: dict[str, Any] = {"step": step + place + 1}
        for name in METRICS:
            values = metrics[name][place]
            row[name] = float(values.mean())
            if config.num_seeds > 1 and name != "train/learning_rate":
                for index, value in enumerate(values):
                    row[f"{name}/seed_{config.seed + index}"] = float(value)
        row["perf/steps_per_second"] = speed
        row["perf/contexts_per_second"] = speed * config.train.batch_size * config.num_seeds
        rows.append(row)
    return rows


def _evaluate(
    config: Config,
    folder: Path,
    state: TrainState,
    tracker: Tracker,
    terminal: Terminal,
    signals: StopSignals,
) -> dict[str, Any]:
    path = folder / "curves.json"
    curves = json.loads(path.read_text()) if path.exists() else None
    if curves is None or not is_final(config, curves):

        def progress(fraction):
            terminal.progress("evaluating", 100 * fraction, 100.0)
            signals.stop_if_received("after training, during the evaluation")

        progress(0.0)
        curves = compute_curves(config, state, progress)
        save_curves_figure(config.task, curves, folder / "curves.png")
        tracker.log_curves(config.train.steps, curves, folder / "curves.png")
        write_json(path, curves)  # last: where it is, all the rest is
    terminal.stop_progress()
    terminal.curves_table(curves)
    terminal.say(f"run folder: {folder}")
    return curves
