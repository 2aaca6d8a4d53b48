"""The loop of training: chunks of steps, and between them rows, checkpoints and signals."""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from icl_align.config import Config
from icl_align.running.checkpoints import Checkpoints
from icl_align.running.crew import MOST_STEPS_A_CHUNK, Crew
from icl_align.running.errors import RunError
from icl_align.running.files import write_json
from icl_align.running.new_folder import command_to_go_on
from icl_align.running.profiling import Profile
from icl_align.running.signals import StopSignals
from icl_align.running.terminal import Terminal
from icl_align.running.tracking import Tracker, first_not_finite
from icl_align.running.training import METRICS, TrainState

# A chunk of steps lasts about this long, or one step: a signal and the progress bar wait for its
# end, and the memory that the program maps anew for each (0.1 s for large models) costs little.
CHUNK_SECONDS = 3.0
PROFILED_STEPS = 10  # at most; more than a million events help nobody


@dataclasses.dataclass
class Start:
    """What a run is called with, beside its configuration."""

    overrides: list[str] = dataclasses.field(default_factory=list)
    hydra_config: Any = None
    tags: list[str] = dataclasses.field(default_factory=list)
    group: str | None = None
    began: float = dataclasses.field(default_factory=time.time)
    goes_on: str | None = None  # what to type to go on; by default what one run needs
    job: str | None = None  # of a sweep: its number
    ends_process: bool = False  # whether a signal may end the process where nothing is lost

    def how_to_go_on(self, folder: Path) -> str:
        """What to say of it."""
        again = [text for text in self.overrides if text.startswith("devices.")]
        return f"to go on: {self.goes_on or command_to_go_on(folder, again)}"


@dataclasses.dataclass
class OneRun:
    """One configuration with its folder, among those that train together."""

    config: Config
    folder: Path
    start: Start
    checkpoints: Checkpoints | None = None
    tracker: Tracker | None = None
    curves: dict[str, Any] | None = None
    study: dict[str, Any] | None = None
    failure: RunError | None = None

    @property
    def goes_on(self) -> str:
        """What to say of how to go on."""
        return self.start.how_to_go_on(self.folder)


def state_of(state: TrainState, place: int, config: Config) -> TrainState:
    """The members of run number `place`."""
    own = slice(place * config.num_seeds, (place + 1) * config.num_seeds)
    return jax.tree.map(lambda leaf: leaf[own], state)


def train(
    group: list[OneRun], crew: Crew, step: int, terminal: Terminal, signals: StopSignals
) -> None:
    """All remaining steps, in chunks of some seconds that end where a checkpoint is due.

    Raises:
      ConfigError: a step does not fit in memory; nothing was computed.
      RunError: a signal stopped it.
    """
    config, began = group[0].config, group[0].start.began
    train = config.train
    if step >= train.steps:
        return
    terminal.progress("compiling", 0.0, 1.0)
    crew.refuse_step_that_cannot_fit(fixed=step > 0)
    first, size = step, 1
    with Profile(group[0].folder / "profile", config.devices.profile) as profile:
        while step < train.steps:
            boundary = (step // train.checkpoint_every + 1) * train.checkpoint_every
            boundary = min(train.steps, boundary)
            size = min(size, MOST_STEPS_A_CHUNK, boundary - step)
            size = min(size, PROFILED_STEPS) if profile.running else size
            begun = time.perf_counter()
            metrics = crew.steps(size)
            speed = size / (time.perf_counter() - begun)
            if step == first:
                to_first_step = time.time() - began
                profile.start()
            else:
                profile.stop(crew.compiled())
            for place, one in enumerate(group):
                if one.failure is None:
                    own = slice(place * config.num_seeds, (place + 1) * config.num_seeds)
                    _log(one, step, {name: metrics[name][:, own] for name in metrics}, speed)
            alive = [one for one in group if one.failure is None]
            if not alive:
                return
            step += size
            signals.saved = False
            losses = metrics["train/loss"][-1]
            note = f"loss {np.nanmean(losses):.4f} · {speed:.1f} steps/s"
            terminal.progress("training", float(step), float(train.steps), note)
            # Read once: a signal may come at any moment.
            stop = crew.stop_asked or signals.received is not None
            if stop or step == boundary:
                state = crew.host_state()
                for place, one in enumerate(group):
                    if one.failure is None:
                        one.checkpoints.save(step, state_of(state, place, config))
            if stop:
                for one in alive:
                    one.checkpoints.wait()
                signals.stop(f"at step {step}, which is saved", group[0].goes_on)
            size = max(1, math.ceil(speed * CHUNK_SECONDS))
    terminal.stop_progress()
    total = time.time() - began
    terminal.say(
        f"trained {step - first} steps in {total - to_first_step:.1f} s; "
        f"the first one was done {to_first_step:.1f} s after the start"
    )


def _log(one: OneRun, step: int, metrics: dict[str, np.ndarray], speed: float) -> None:
    """Writes the rows that are due; a number that is not finite makes the run a failure."""
    train = one.config.train
    rows = _rows(one.config, step, metrics, speed)
    bad = first_not_finite(rows)
    for row in rows:
        due = row["step"] % train.log_every == 0 or row["step"] == train.steps
        if due and (bad is None or row["step"] < bad[0]):
            one.tracker.log(row)
    if bad is None:
        return
    one.checkpoints.wait()
    steps = one.checkpoints.steps()
    kept = f"checkpoint {steps[0]} is kept" if steps else "no checkpoint was due yet"
    one.failure = RunError(
        f"{bad[1]} is {bad[2]} at step {bad[0]}: training diverged; {kept}. "
        "Start in a new folder with a lower train.learning_rate or train.clip_norm"
    )
    write_json(one.folder / "diverged.json", {"step": bad[0], "name": bad[1], "value": str(bad[2])})


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
