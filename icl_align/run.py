"""One run in its folder: start or go on, train, evaluate, leave the results.

Signals and clocks of training live here; `training` and `curves` are pure.
"""

import contextlib
import dataclasses
import errno
import json
import math
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from jax.sharding import Mesh

from icl_align.checkpoints import Checkpoints
from icl_align.cli import USAGE_ERROR, RunError, to_config
from icl_align.config import Config, ConfigError, program_key
from icl_align.crew import Crew
from icl_align.devices import join_cluster, leads, make_mesh, set_up_jax
from icl_align.files import write_json
from icl_align.profiling import Profile
from icl_align.run_folder import (
    config_to_go_on_with,
    from_dict,
    refuse_other,
    saved_config,
    sole_user_of,
    write_hydra_files,
)
from icl_align.terminal import Terminal, changed_options
from icl_align.tracking import Tracker, check_account, first_not_finite, start_service
from icl_align.training import METRICS, TrainState, state_shapes

# A chunk of steps lasts about this long, or one step: a signal and the progress bar wait for its
# end, and the memory that the program maps anew for each (0.1 s for large models) costs little.
CHUNK_SECONDS = 3.0
PROFILED_STEPS = 10  # at most; more than a million events help nobody
OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)


@dataclasses.dataclass
class Start:
    """What a run is called with, beside its configuration."""

    overrides: list[str] = dataclasses.field(default_factory=list)
    hydra_config: Any = None
    tags: list[str] = dataclasses.field(default_factory=list)
    group: str | None = None
    began: float = dataclasses.field(default_factory=time.time)


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

    from icl_align.sweeps import final_loss, name_of_sweep

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
        group=name_of_sweep(hydra) if swept else None,
        began=time.time() if swept else began,
    )
    with _no_empty_folder(folder):
        config = to_config(node)
        if swept and config.devices.cluster:
            raise ConfigError("devices.cluster", True, "trains one configuration, not a sweep")
        set_up_jax()
        join_cluster(config.devices)
        run(config, folder, start)
    jax.clear_caches()  # the jobs of a sweep share a process, not their programs
    return final_loss(folder) if leads() else math.nan


@contextlib.contextmanager
def _no_empty_folder(folder: Path) -> Iterator[None]:
    """Takes away the folder that Hydra made if nothing was put into it."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


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
            self.stop(where)

    def stop(self, where: str) -> None:
        """Raises RunError, with the shell's exit status for this process's or another's signal."""
        number = self.received or signal.SIGTERM
        raise RunError(
            f"stopped by {number.name} {where}; the same command goes on from there", 128 + number
        )


# ------------------------------------------------------------------------------------------- a run


@dataclasses.dataclass
class _Run:
    """One configuration with its folder, among those that train together."""

    config: Config
    folder: Path
    start: Start
    checkpoints: Checkpoints | None = None
    tracker: Tracker | None = None
    curves: dict[str, Any] | None = None
    failure: RunError | None = None


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
    (outcome,) = run_together([(config, folder, start or Start())])
    if isinstance(outcome, RunError):
        raise outcome
    return outcome


def run_together(
    runs: Sequence[tuple[Config, Path, Start]],
) -> list[dict[str, Any] | RunError]:
    """`run` for several configurations at once, as one program.

    Args:
      runs: (configuration, folder, start), as for `run`. The configurations are equal but for
        the numbers in `config.TRACED` and the names that W&B shows.

    Returns:
      For each its curves, or what made it fail. A training that diverges does not stop the others.

    Raises:
      RunError: a folder cannot be used, or a signal stopped all.
      ConfigError: W&B cannot be reached as asked.
      ValueError: the configurations cannot train together.
    """
    with StopSignals() as signals:
        crew = Crew(lambda: signals.received is not None)
        if not leads():
            status = crew.follow()
            if status:
                raise RunError("process 0 of the cluster stopped; see what it says", status)
            return [{} for _ in runs]
        status = 1
        try:
            outcomes = _lead(runs, crew, signals)
            status = 0
            return outcomes
        except (ConfigError, RunError) as error:
            status = error.status if isinstance(error, RunError) else USAGE_ERROR
            raise
        finally:
            crew.dismiss(status)


def _lead(
    runs: Sequence[tuple[Config, Path, Start]], crew: Crew, signals: StopSignals
) -> list[dict[str, Any] | RunError]:
    terminal = Terminal()
    check_account(runs[0][0].wandb)
    group = []
    for config, folder, start in runs:
        saved = saved_config(folder)
        if saved is not None:
            config = config_to_go_on_with(saved, config, start.overrides)
            refuse_other(folder, saved, config)
        group.append(_Run(config, folder, start))
    if len({program_key(one.config) for one in group}) > 1:
        raise ValueError("these configurations do not share a program")
    mesh = make_mesh(group[0].config, sum(one.config.num_seeds for one in group))
    try:
        with contextlib.ExitStack() as stack:
            for one in group:
                stack.enter_context(sole_user_of(one.folder))
            _train_and_evaluate(group, crew, mesh, terminal, signals)
            return [one.failure or one.curves for one in group]
    except OSError as error:
        if error.errno not in OUT_OF_SPACE:
            raise
        folders = ", ".join(str(folder) for _, folder, _ in runs)
        raise RunError(
            f"{folders}: {os.strerror(error.errno)}; what was saved is kept, "
            "and the same command goes on from there"
        ) from error
    finally:
        terminal.stop_progress()


def _train_and_evaluate(
    group: list[_Run], crew: Crew, mesh: Mesh, terminal: Terminal, signals: StopSignals
) -> None:
    done = False
    try:
        for one in group:
            resolved = dataclasses.asdict(one.config)
            keep = one.config.train.keep_checkpoints
            one.checkpoints = Checkpoints(one.folder / "checkpoints", resolved, keep)
            for written in one.checkpoints.configs():
                refuse_other(one.folder, from_dict(written), one.config)
        start_service(group[0].config.wandb)
        step, restored = _newest_common_state(group, terminal)
        configs = [one.config for one in group]
        crew.begin(configs, mesh, restored)
        terminal.say(_start_line(configs, mesh, crew.num_parameters))
        if step:
            finished = step >= configs[0].train.steps
            going_on = f"going on at step {step} of {configs[0].train.steps}"
            terminal.say("training was finished earlier" if finished else going_on)
        for one in group:
            write_hydra_files(one.folder, one.config, one.start.hydra_config, one.start.overrides)
            resolved = dataclasses.asdict(one.config)
            start = one.start
            one.tracker = Tracker(one.folder, one.config.wandb, resolved, start.tags, start.group)
        _train(group, crew, step, terminal, signals)
        for one in group:
            one.checkpoints.wait()
        _evaluate(group, crew, terminal, signals)
        done = True
    finally:
        terminal.stop_progress()
        for one in group:
            if one.tracker is not None:
                one.tracker.close(0 if done and one.failure is None else 1)
            if one.checkpoints is not None:
                one.checkpoints.close()


def _newest_common_state(group: list[_Run], terminal: Terminal) -> tuple[int, TrainState | None]:
    """(step, host state) of all members at the newest step of which every run has a whole
    checkpoint; (0, None) where there is none.
    """
    config = group[0].config
    had = [one.checkpoints.steps() for one in group]
    newest = config.train.steps
    if not all(had):
        return 0, None
    while True:
        found = [
            one.checkpoints.restore_newest(state_shapes(one.config), terminal.warn, newest)
            for one in group
        ]
        for one, steps, state in zip(group, had, found, strict=True):
            if steps and state is None and len(group) == 1:
                raise RunError(
                    f"none of the checkpoints in {one.folder} can be read; start in a new folder"
                )
        if None in found:
            return 0, None
        if len({step for step, _ in found}) == 1:
            break
        newest = min(step for step, _ in found)
    step = found[0][0]
    return step, jax.tree.map(lambda *leaves: np.concatenate(leaves), *(s for _, s in found))


def _state_of(state: TrainState, place: int, config: Config) -> TrainState:
    """The members of run number `place`."""
    own = slice(place * config.num_seeds, (place + 1) * config.num_seeds)
    return jax.tree.map(lambda leaf: leaf[own], state)


def _start_line(configs: list[Config], mesh: Mesh, parameters: int) -> str:
    config = configs[0]
    device = mesh.devices.flat[0]
    cores = (
        len(psutil.Process().cpu_affinity())
        if hasattr(psutil.Process, "cpu_affinity")
        else os.cpu_count()
    )
    kind = f"CPU ({cores} cores)" if device.platform == "cpu" else device.device_kind
    if mesh.size > 1:
        processes = jax.process_count()
        kind = f"{mesh.size} x {kind}" + (f" in {processes} processes" if processes > 1 else "")
    seeds = f" x {config.num_seeds} seeds" if config.num_seeds > 1 else ""
    several = f" x {len(configs)} configurations" if len(configs) > 1 else ""
    return f"{kind} · {parameters:,} parameters{seeds}{several} · {changed_options(config)}"


def _train(
    group: list[_Run], crew: Crew, step: int, terminal: Terminal, signals: StopSignals
) -> None:
    """All remaining steps, in chunks of some seconds that end where a checkpoint is due."""
    config, began = group[0].config, group[0].start.began
    train = config.train
    if step >= train.steps:
        return
    terminal.progress("compiling", 0.0, 1.0)
    crew.compiled()
    first, size = step, 1
    with Profile(group[0].folder / "profile", config.devices.profile) as profile:
        while step < train.steps:
            boundary = (step // train.checkpoint_every + 1) * train.checkpoint_every
            boundary = min(train.steps, boundary)
            size = min(size, crew.most, boundary - step)
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
            losses = metrics["train/loss"][-1]
            note = f"loss {np.nanmean(losses):.4f} · {speed:.1f} steps/s"
            terminal.progress("training", float(step), float(train.steps), note)
            # Read once: a signal may come at any moment.
            stop = crew.stop_asked or signals.received is not None
            if stop or step == boundary:
                state = crew.host_state()
                for place, one in enumerate(group):
                    if one.failure is None:
                        one.checkpoints.save(step, _state_of(state, place, config))
            if stop:
                for one in alive:
                    one.checkpoints.wait()
                signals.stop(f"at step {step}, which is saved")
            size = max(1, math.ceil(speed * CHUNK_SECONDS))
    terminal.stop_progress()
    total = time.time() - began
    terminal.say(
        f"trained {step - first} steps in {total - to_first_step:.1f} s; "
        f"the first one was done {to_first_step:.1f} s after the start"
    )


def _log(one: _Run, step: int, metrics: dict[str, np.ndarray], speed: float) -> None:
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


def _evaluate(group: list[_Run], crew: Crew, terminal: Terminal, signals: StopSignals) -> None:
    # Imported here, for SciPy and Matplotlib would hold up the first step.
    from icl_align.curves import compute_curves_together, is_final
    from icl_align.plots import save_curves_figure

    config = group[0].config
    alive = [place for place, one in enumerate(group) if one.failure is None]
    for place in alive:
        path = group[place].folder / "curves.json"
        found = json.loads(path.read_text()) if path.exists() else None
        group[place].curves = found if found and is_final(group[place].config, found) else None
    missing = [place for place in alive if group[place].curves is None]
    if missing:

        def progress(fraction):
            terminal.progress("evaluating", 100 * fraction, 100.0)
            crew.wait()
            if crew.stop_asked:
                signals.stop("after training, during the evaluation")

        progress(0.0)
        state = jax.device_put(crew.host_state(), jax.local_devices()[0])
        own = [_state_of(state, place, config) for place in missing]
        own_state = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *own)
        configs = [group[place].config for place in missing]
        found = compute_curves_together(configs, own_state, progress)
        for place, curves in zip(missing, found, strict=True):
            one = group[place]
            save_curves_figure(one.config.task, curves, one.folder / "curves.png")
            one.tracker.log_curves(one.config.train.steps, curves, one.folder / "curves.png")
            write_json(one.folder / "curves.json", curves)  # last: where it is, all the rest is
            one.curves = curves
    terminal.stop_progress()
    for place in alive:
        if len(group) == 1:
            terminal.curves_table(group[place].curves)
        terminal.say(f"run folder: {group[place].folder}")
