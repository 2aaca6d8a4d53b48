"""One job of a campaign, in a process of its own: trains its runs together and evaluates them.

python -m experiments.job FILE PARENT: FILE is written by `experiments.runs.Job`, PARENT is the
process that starts this one.
"""

import contextlib
import dataclasses
import importlib.metadata
import itertools
import json
import os
import platform
import signal
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np

import icl_align
from experiments.runs import NOT_LEARNED, Run
from icl_align.attack import NotLearnedRunError, attack
from icl_align.config import leaves, setting
from icl_align.dialogue.attacks.options import AttackConfig
from icl_align.running.checkpoints import Checkpoints, newest_state
from icl_align.running.compose import read_options
from icl_align.running.devices import learners_folder, set_up_command
from icl_align.running.errors import SIGNALLED, RunError, one_line_errors
from icl_align.running.evaluation import (
    by_configuration,
    compute_curves_together,
    evaluated_alike,
)
from icl_align.running.files import DamagedFileError, read_json, write_json
from icl_align.running.kept import Kept
from icl_align.running.measuring import Measuring
from icl_align.running.run import Start, run_together
from icl_align.running.run_folder import from_dict
from icl_align.running.shares import visible_cores
from icl_align.running.signals import StopSignals
from icl_align.running.study import is_studied, leave_study, make_study
from icl_align.running.terminal import Terminal

PARENT_POLL_SECONDS = 2.0
SAME_COMMAND = "the same command of the campaign"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy")


def read_runs(file: Path) -> list[Run]:
    """The runs of a job's file."""
    return [
        Run(
            config=from_dict(entry["config"]),
            folder=Path(entry["folder"]),
            tags=set(entry["tags"]),
            evaluations={tuple(overrides) for overrides in entry["evaluations"]},
            attacks={tuple(options) for options in entry["attacks"]},
        )
        for entry in json.loads(file.read_text())
    ]


def train(runs: list[Run], group: str) -> list[RunError]:
    """Trains and evaluates what is not finished; returns what failed."""
    began = time.time()
    outcomes: list = []
    # Only runs that have come equally far go on together; the others would have to start afresh.
    for _, part in itertools.groupby(sorted(runs, key=_newest_step), key=_newest_step):
        starts = [
            (
                run.config,
                run.folder,
                Start(
                    overrides=[setting(key, value) for key, _, value in leaves(run.config)],
                    tags=sorted(run.tags),
                    group=group,
                    began=began,
                    goes_on=SAME_COMMAND,
                    ends_process=True,
                ),
            )
            for run in part
        ]
        outcomes += run_together(starts)
    return [outcome for outcome in outcomes if isinstance(outcome, RunError)]


def _newest_step(run: Run) -> int:
    """The step of its newest checkpoint; -1 without any."""
    if not (run.folder / "checkpoints").is_dir():
        return -1
    checkpoints = Checkpoints(run.folder / "checkpoints", read_only=True)
    steps = checkpoints.steps()
    checkpoints.close()
    return steps[0] if steps else -1


def evaluate(runs: list[Run], under: tuple[str, ...], terminal: Terminal) -> None:
    """Evaluates trained runs together, under the overrides of another evaluation."""
    for places in evaluated_alike([run.evaluated(under) for run in runs]):
        _evaluate_alike([runs[place] for place in places], under, terminal)


def _evaluate_alike(runs: list[Run], under: tuple[str, ...], terminal: Terminal) -> None:
    states = [newest_state(run.folder, run.config, terminal.warn) for run in runs]
    params = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(s.params for _, s in states))
    configs = [run.evaluated(under) for run in runs]
    measuring = Measuring(configs[0], by_configuration(configs, params))
    with StopSignals(ends_process=True, goes_on=f"to go on: {SAME_COMMAND}") as signals:
        found = compute_curves_together(
            configs,
            states[0][0],
            measuring,
            lambda share: _stop_if_received(signals),
            Kept(learners_folder()),
        )
        for run, curves in zip(runs, found, strict=True):
            folder = run.evaluation_folder(under)
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "curves.json", curves)
        for run, config, (step, state) in zip(runs, configs, states, strict=True):
            if is_studied(config) and run.study(under) is None:
                study = make_study(
                    config,
                    step,
                    state.params,
                    run.folder,
                    lambda share: _stop_if_received(signals),
                    terminal.warn,
                )
                leave_study(config, run.evaluation_folder(under), study)


def attack_run(run: Run, options: tuple[str, ...], terminal: Terminal) -> None:
    """Attacks a trained run, where that is missing; of networks that have not learned that is all
    there is to say.
    """
    if not run.is_evaluated(()) or run.attack(options) is not None:
        return
    folder = run.attack_folder(options)
    folder.mkdir(parents=True, exist_ok=True)
    asked = read_options(AttackConfig, [*options])
    try:
        attack(dataclasses.replace(asked, run_dir=str(run.folder), folder=str(folder)))
    except NotLearnedRunError as error:
        terminal.warn(str(error))
        (folder / NOT_LEARNED).write_text(f"{error}\n")


def _stop_if_received(signals: StopSignals) -> None:
    if signals.received is not None:
        signals.stop("during an evaluation", f"to go on: {SAME_COMMAND}")


def _leave_account(runs: list[Run], seconds: float) -> None:
    """Adds to each run's machine.json what it was made with, and its part of the job's time."""
    device = jax.local_devices()[0]
    cores = len(visible_cores()) or os.cpu_count()
    for run in runs:
        path = run.folder / "machine.json"
        before = 0.0
        with contextlib.suppress(DamagedFileError, OSError, KeyError):
            before = read_json(path)["seconds"]
        account = {
            "seconds": before + seconds / len(runs),
            "device": device.device_kind
            if device.platform != "cpu"
            else f"{_cpu()}, cores used: {cores}",
            "python": platform.python_version(),
            "versions": {"icl_align": icl_align.__version__}
            | {name: importlib.metadata.version(name) for name in PACKAGES},
        }
        if run.folder.is_dir():
            write_json(path, account)


def _cpu() -> str:
    """The processor's name, where the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _stop_with(parent: int) -> None:
    """Saves and stops this process, as SIGTERM does, when the one that started it is gone."""
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def run(file: Path, began: float) -> None:
    """Trains and evaluates the runs of a job, in this process.

    Args:
      file: the job.
      began: when its process began, in seconds since the epoch.

    Raises:
      SystemExit: it was told to stop, or could not go on; in one line.
    """
    terminal = Terminal()
    runs = read_runs(file)
    whole = [run for run in runs if not run.diverged()]
    try:
        with one_line_errors():
            failures = train(whole, group=file.parent.parent.name)
            whole = [run for run in runs if not run.diverged()]
            for under in sorted({under for run in whole for under in run.evaluations}):
                wanting = [run for run in whole if under in run.evaluations]
                asked = [run for run in wanting if not run.is_evaluated(under)]
                if asked:
                    evaluate(asked, under, terminal)
            refused = []
            for run in whole:
                for options in sorted(run.attacks):
                    try:
                        attack_run(run, options, terminal)
                    except RunError as error:
                        if error.status > SIGNALLED:
                            raise
                        refused.append(error)  # the others are made first
            for failure in [*failures, *refused]:
                terminal.warn(str(failure))
            if refused:
                raise RunError(f"{len(refused)} attacks could not be made")
    finally:
        _leave_account(runs, time.time() - began)


def main() -> None:
    """Runs the job of the file named on the command line."""
    began = time.time()
    set_up_command()
    file, parent = Path(sys.argv[1]), int(sys.argv[2])
    threading.Thread(target=_stop_with, args=(parent,), daemon=True).start()
    run(file, began)


if __name__ == "__main__":
    main()
