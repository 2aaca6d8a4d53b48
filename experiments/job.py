"""One job of a campaign, in a process of its own: trains its runs together and evaluates them.

python -m experiments.job FILE, where FILE is written by `experiments.campaign.Job`.
"""

import importlib.metadata
import itertools
import json
import platform
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp

import icl_align
from experiments.campaign import Run
from icl_align.checkpoints import Checkpoints, newest_state
from icl_align.cli import RunError, one_line_errors
from icl_align.config import leaves, setting
from icl_align.curves import compute_curves_together
from icl_align.files import write_json
from icl_align.run import Start, StopSignals, run_together
from icl_align.run_folder import from_dict
from icl_align.terminal import Terminal

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy")


def read_runs(file: Path) -> list[Run]:
    """The runs of a job's file."""
    return [
        Run(
            config=from_dict(entry["config"]),
            folder=Path(entry["folder"]),
            tags=set(entry["tags"]),
            evaluations={tuple(overrides) for overrides in entry["evaluations"]},
        )
        for entry in json.loads(file.read_text())
    ]


def train(runs: list[Run], group: str) -> list[RunError]:
    """Trains and evaluates what is not finished; returns what failed."""
    began = time.time()
    outcomes: list = []
    # Runs whose training is over are only evaluated: the others may be anywhere before.
    for _, part in itertools.groupby(sorted(runs, key=_is_trained), key=_is_trained):
        starts = [
            (
                run.config,
                run.folder,
                Start(
                    overrides=[setting(key, value) for key, _, value in leaves(run.config)],
                    tags=sorted(run.tags),
                    group=group,
                    began=began,
                ),
            )
            for run in part
        ]
        outcomes += run_together(starts)
    return [outcome for outcome in outcomes if isinstance(outcome, RunError)]


def _is_trained(run: Run) -> bool:
    if not (run.folder / "checkpoints").is_dir():
        return False
    checkpoints = Checkpoints(run.folder / "checkpoints", read_only=True)
    steps = checkpoints.steps()
    checkpoints.close()
    return bool(steps) and steps[0] >= run.config.train.steps


def evaluate(runs: list[Run], under: tuple[str, ...], terminal: Terminal) -> None:
    """Evaluates trained runs together, under the overrides of another evaluation."""
    states = [newest_state(run.folder, run.config, terminal.warn)[1] for run in runs]
    state = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *states)
    with StopSignals() as signals:
        found = compute_curves_together(
            [run.evaluated(under) for run in runs],
            state,
            lambda share: signals.stop_if_received("during an evaluation"),
        )
    for run, curves in zip(runs, found, strict=True):
        folder = run.evaluation_folder(under)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "curves.json", curves)


def _leave_account(runs: list[Run], seconds: float) -> None:
    """Adds to each run's machine.json what it was made with and how long its job has taken."""
    device = jax.local_devices()[0]
    for run in runs:
        path = run.folder / "machine.json"
        before = json.loads(path.read_text())["seconds"] if path.exists() else 0.0
        account = {
            "seconds": before + seconds,
            "runs_at_once": len(runs),
            "device": platform.machine() + " CPU"
            if device.platform == "cpu"
            else device.device_kind,
            "python": platform.python_version(),
            "versions": {"icl_align": icl_align.__version__}
            | {name: importlib.metadata.version(name) for name in PACKAGES},
        }
        write_json(path, account)


def main() -> None:
    """Runs the job of the file named on the command line."""
    began = time.time()
    file = Path(sys.argv[1])
    terminal = Terminal()
    runs = read_runs(file)
    with one_line_errors():
        failures = train([r for r in runs if not r.diverged()], group=file.parent.parent.name)
        whole = [run for run in runs if not run.diverged()]
        for under in sorted({under for run in whole for under in run.evaluations}):
            asked = [run for run in whole if under in run.evaluations and not run.curves(under)]
            if asked:
                evaluate(asked, under, terminal)
        _leave_account(runs, time.time() - began)
        for failure in failures:
            terminal.warn(str(failure))


if __name__ == "__main__":
    main()
