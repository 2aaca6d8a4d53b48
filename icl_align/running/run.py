"""One run in its folder: start or go on, train, evaluate, leave the results.

Signals and clocks live here and in `loop`; `training` is pure.
"""

import contextlib
import dataclasses
import functools
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from icl_align.config import (
    EVALUATION,
    Config,
    ConfigError,
    concerned,
    differences,
    program_key,
    setting,
    with_values,
)
from icl_align.running.checkpoints import Checkpoints
from icl_align.running.crew import Crew, compiled_steps
from icl_align.running.curves_file import read_curves
from icl_align.running.devices import leads, learners_folder
from icl_align.running.errors import USAGE_ERROR, RunError
from icl_align.running.evaluation import (
    are_of,
    by_configuration,
    compute_curves_together,
    evaluated_alike,
)
from icl_align.running.extension import begin_where_it_ended, extended_config
from icl_align.running.files import (
    DamagedFileError,
    save_figure,
    why_not_written,
    write_json,
)
from icl_align.running.kept import Kept
from icl_align.running.loop import OneRun, Start, train
from icl_align.running.memory import refuse_state_that_cannot_fit
from icl_align.running.mesh import make_mesh
from icl_align.running.new_folder import python_here
from icl_align.running.run_folder import (
    config_to_go_on_with,
    from_dict,
    nothing_left_if_refused,
    refuse_other,
    saved_config,
    sole_user_of,
    write_hydra_files,
)
from icl_align.running.shares import visible_cores
from icl_align.running.signals import StopSignals
from icl_align.running.study import is_studied, leave_study, make_study, read_study, study_file
from icl_align.running.terminal import Terminal, changed_options, headline
from icl_align.running.tracking import Tracker, check_account, start_service
from icl_align.running.training import TrainState, state_shapes
from icl_align.world import world_of


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
        traced numbers and the names that W&B shows.

    Returns:
      For each its curves, or what made it fail. A training that diverges does not stop the others.

    Raises:
      RunError: a folder cannot be used, or a signal stopped all.
      ConfigError: W&B cannot be reached as asked.
      ValueError: the configurations cannot train together.
    """
    _, folder, start = runs[0]
    alone = jax.process_count() == 1  # in a cluster the others would wait for this one
    with StopSignals(start.ends_process and alone, start.how_to_go_on(folder)) as signals:
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
    terminal = Terminal(runs[0][2].job)
    check_account(runs[0][0].wandb, runs[0][1])
    group = []
    for config, folder, start in runs:
        saved = saved_config(folder)
        if config.extend is not None:
            config = with_values(config, {"extend": str(Path(config.extend).absolute())})
        if saved is not None:
            config = config_to_go_on_with(saved, config, start.overrides)
            refuse_other(folder, saved, config)
            _refuse_other_evaluation(folder, saved, config)
        elif config.extend is not None:
            config = extended_config(config, start.overrides)
        group.append(OneRun(config, folder, start))
    if len({program_key(one.config) for one in group}) > 1:
        raise ValueError("these configurations do not share a program")
    mesh = make_mesh(group[0].config, sum(one.config.num_seeds for one in group))
    compiled = functools.partial(compiled_steps, len(group))
    refuse_state_that_cannot_fit(
        group[0].config, mesh, len(group), compiled, fixed=saved is not None
    )
    try:
        with contextlib.ExitStack() as stack:
            for one in group:
                stack.enter_context(nothing_left_if_refused(one.folder))
                stack.enter_context(sole_user_of(one.folder))
            _train_and_evaluate(group, crew, mesh, terminal, signals)
            if signals.received is not None:
                signals.stop("after the run was finished", group[0].goes_on)
            return [one.failure or one.curves for one in group]
    except ConfigError:
        raise
    except Exception as error:
        reason = None if isinstance(error, RunError) else why_not_written(error, group[0].folder)
        if reason is None:
            raise
        folders = ", ".join(str(folder) for _, folder, _ in runs)
        line = f"{folders}: {reason}; what was saved is kept; {group[0].goes_on}"
        raise RunError(line, at_once=True) from error
    finally:
        terminal.stop_progress()


def _refuse_other_evaluation(folder: Path, saved: Config, config: Config) -> None:
    """Raises RunError where curves of a finished run would be replaced by others."""
    try:
        curves = read_curves(folder / "curves.json", saved.measures)
    except DamagedFileError:
        return
    if curves is None or not are_of(saved, saved.train.steps, curves):
        return
    of_evaluation = concerned(config, EVALUATION)
    changed = [
        setting(key, new)
        for key, (_, new) in differences(saved, config).items()
        if key in of_evaluation
    ]
    if changed:
        words = shlex.join([f"run_dir={folder}", *changed])
        command = f"{python_here()} -m icl_align.evaluate {words}"
        line = f"hydra.run.dir={folder}: is finished and evaluated; under other options: {command}"
        raise RunError(line, USAGE_ERROR)


def _train_and_evaluate(
    group: list[OneRun], crew: Crew, mesh: Mesh, terminal: Terminal, signals: StopSignals
) -> None:
    done = False
    with contextlib.ExitStack() as last:
        last.callback(terminal.stop_progress)
        for one in group:
            resolved = dataclasses.asdict(one.config)
            keep = one.config.train.keep_checkpoints
            one.checkpoints = Checkpoints(one.folder / "checkpoints", resolved, keep)
            last.callback(one.checkpoints.close)
            for written in one.checkpoints.configs():
                refuse_other(one.folder, from_dict(written), one.config)
        for one in group:
            if one.config.extend is not None and not one.checkpoints.steps():
                begin_where_it_ended(one.config, one.folder, one.checkpoints, terminal.warn)
        for one in group:
            # Before anything takes long: whoever is stopped goes on with these options.
            write_hydra_files(one.folder, one.config, one.start.hydra_config, one.start.overrides)
        start_service(group[0].folder, group[0].config.wandb)
        step, restored = _newest_common_state(group, terminal)
        configs = [one.config for one in group]
        for one in group:
            terminal.say(f"run folder: {one.folder}")
        crew.begin(configs, mesh, restored)
        terminal.say(_start_line(configs, mesh, crew.num_parameters))
        if step:
            finished = step >= configs[0].train.steps
            going_on = f"going on at step {step} of {configs[0].train.steps}"
            terminal.say("training was finished earlier" if finished else going_on)
        for one in group:
            resolved = dataclasses.asdict(one.config)
            start = one.start
            one.tracker = Tracker(
                one.folder,
                one.config.wandb,
                resolved,
                start.tags,
                start.group,
                one.config.measures,
                terminal.warn,
            )
            if step >= one.config.train.log_every and not one.tracker.had_rows:
                terminal.warn(
                    f"{one.folder / 'metrics.jsonl'} is gone: the rows of the first {step} steps "
                    "cannot be made again"
                )
            last.callback(
                lambda one=one: one.tracker.close(0 if done and one.failure is None else 1)
            )
        train(group, crew, step, terminal, signals)
        for one in group:
            one.checkpoints.wait()
        signals.saved = True
        _evaluate(group, crew, terminal, signals)
        done = True


def _newest_common_state(group: list[OneRun], terminal: Terminal) -> tuple[int, TrainState | None]:
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


def _start_line(configs: list[Config], mesh: Mesh, parameters: int) -> str:
    config = configs[0]
    device = mesh.devices.flat[0]
    cores = len(visible_cores()) or os.cpu_count()
    kind = f"CPU ({cores} cores)" if device.platform == "cpu" else device.device_kind
    if mesh.size > 1:
        processes = jax.process_count()
        kind = f"{mesh.size} x {kind}" + (f" in {processes} processes" if processes > 1 else "")
    seeds = f" x {config.num_seeds} seeds" if config.num_seeds > 1 else ""
    several = f" x {len(configs)} configurations" if len(configs) > 1 else ""
    return f"{kind} · {parameters:,} parameters{seeds}{several} · {changed_options(config)}"


def _evaluate(group: list[OneRun], crew: Crew, terminal: Terminal, signals: StopSignals) -> None:
    config = group[0].config
    measures = config.measures
    alive = [place for place, one in enumerate(group) if one.failure is None]
    for place in alive:
        path = group[place].folder / "curves.json"
        one = group[place]
        found = _read_curves(path, one.config, terminal)
        one.curves = found if found and are_of(one.config, one.config.train.steps, found) else None
        picture = one.folder / "curves.png"
        if one.curves and not picture.exists():
            save_figure(world_of(one.config).figure(one.config, one.curves), picture)
        if one.curves and not one.tracker.had_rows:
            one.tracker.log_curves(one.config.train.steps, one.curves, picture)
    missing = [place for place in alive if group[place].curves is None]
    together = evaluated_alike([group[place].config for place in missing])
    for number, of_missing in enumerate(together):

        def progress(fraction, before=number):
            terminal.progress("evaluating", 100 * (before + fraction) / len(together), 100.0)
            crew.wait()
            if crew.stop_asked:
                signals.stop("after training, during the evaluation", group[0].goes_on)

        progress(0.0)
        places = [missing[place] for place in of_missing]
        crew.begin_measuring(places)
        configs, step = [group[place].config for place in places], config.train.steps
        found = compute_curves_together(configs, step, crew, progress, Kept(learners_folder()))
        for place, curves in zip(places, found, strict=True):
            one = group[place]
            picture = one.folder / "curves.png"
            save_figure(world_of(config).figure(one.config, curves), picture)
            one.tracker.log_curves(step, curves, picture)
            write_json(one.folder / "curves.json", curves)  # last: where it is, all the rest is
            one.curves = curves
    for place in alive:
        if is_studied(config):
            _study(place, group, crew, terminal, signals)
    terminal.stop_progress()
    for place in alive:
        if group[place].start.job is not None:  # the sweep ends with a table of all
            terminal.say(headline(measures, group[place].curves))
        elif len(group) == 1:
            terminal.curves_table(measures, group[place].curves)
            if is_studied(config):
                terminal.study_table(measures, group[place].study)


def _study(
    place: int, group: list[OneRun], crew: Crew, terminal: Terminal, signals: StopSignals
) -> None:
    """The study of one run, found in its folder or made on this process alone."""
    one = group[place]
    step = one.config.train.steps
    try:
        one.study = read_study(one.config, step, one.folder)
    except DamagedFileError as error:
        terminal.warn(f"{error}; it is made again")

    def progress(fraction):
        terminal.progress(one.config.measures.study, 100 * fraction, 100.0)
        crew.wait()
        if crew.stop_asked:
            signals.stop("after the evaluation, during its study", group[0].goes_on)

    picture = study_file(one.config, one.folder).with_suffix(".png")
    if one.study is None:
        progress(0.0)
        params = by_configuration([other.config for other in group], crew.host_state().params)
        own = jax.tree.map(lambda leaf: leaf[place], params)
        one.study = make_study(one.config, step, own, one.folder, progress, terminal.warn)
        leave_study(one.config, one.folder, one.study)
    elif not picture.exists():
        leave_study(one.config, one.folder, one.study)
    one.tracker.log_study(one.study, picture)


def _read_curves(path: Path, config: Config, terminal: Terminal) -> dict[str, Any] | None:
    """What curves.json holds; None where it is missing, or damaged, which is said."""
    try:
        return read_curves(path, config.measures)
    except DamagedFileError as error:
        terminal.warn(f"{error}; it is made again")
        return None
