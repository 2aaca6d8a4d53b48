"""How long training takes until it refines well."""

import contextlib
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.contest import Worker, build, take_turn
from benchmarks.steps import EAGER, OURS, fastest_torch
from icl_align.running.compose import compose_config

ERROR = 0.31  # the optimum of the ranking loss itself is 0.29 off on the published data
EVERY = 10  # steps between two checks
IN_A_ROW = 2  # checks that must be as good, so that luck with one does not count
NUM_CONTEXTS = 4096


def training_until(worker: Worker, path: Path, most_steps: int, attempts: int) -> dict[str, Any]:
    """Trains a built worker until its refinement error stays at `ERROR`.

    The checks do not count as training. The first step is done by then: it belongs to `build`.

    Returns:
      checks (steps, seconds of training, error and others' share of each); steps and seconds at
      the first of `IN_A_ROW` checks in a row that are at most `ERROR`, both None if there is none.
    """
    steps, seconds, good, checks = 1, 0.0, [], []
    while steps < most_steps and len(good) < IN_A_ROW:
        count = min(EVERY, most_steps - steps)
        turn = take_turn(worker, count)
        seconds += turn.seconds * count
        steps += count
        error = worker.ask("error", path=str(path), attempts=attempts)["error"]
        check = {"steps": steps, "seconds": seconds, "error": error, "others": turn.others}
        checks.append(check)
        good = [*good, check] if error <= ERROR else []
    reached = good[0] if len(good) == IN_A_ROW else {"steps": None, "seconds": None}
    return {"steps": reached["steps"], "seconds": reached["seconds"], "checks": checks}


def measure_reach(
    overrides: list[str], seeds: list[int], with_torch: bool, seconds: float
) -> dict[str, Any]:
    """Trainings of ours and of PyTorch eager, for every seed, in turns.

    Both are checked on the same contexts, after the judged number of attempts without reward noise.

    Args:
      overrides: of the configuration.
      seeds: training seeds.
      with_torch: PyTorch too.
      seconds: the least length of a turn of the trial that chooses its attention.

    Raises:
      Failed: a training does.
    """
    config = compose_config(overrides)
    most_steps = config.train.steps
    attempts = min(config.measures.judged_at, config.task.num_responses)
    found: dict[str, list[dict[str, Any]]] = {OURS: []} | ({EAGER: []} if with_torch else {})
    attention = None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "contexts.npz"
        for seed in seeds:
            seeded = [*overrides, f"seed={seed}"]
            with contextlib.ExitStack() as stack:
                ours = stack.enter_context(Worker("alignment:refining", overrides=seeded))
                said = build(ours)
                if not path.exists():
                    ours.ask("draw", path=str(path), count=NUM_CONTEXTS)
                once = training_until(ours, path, most_steps, attempts)
                found[OURS].append(
                    {"seed": seed, "compile_seconds": said["compile_seconds"]} | once
                )
            if not with_torch:
                continue
            with contextlib.ExitStack() as stack:
                if attention is None:
                    with contextlib.ExitStack() as trial:
                        attention = fastest_torch(trial, seeded, False, seconds)[1]["attention"]
                arguments = {"overrides": seeded, "compiled": False, "attention": attention}
                torch = stack.enter_context(Worker("alignment:torch", **arguments))
                build(torch)
                once = training_until(torch, path, most_steps, attempts)
                found[EAGER].append({"seed": seed, "compile_seconds": 0.0} | once)
    return {
        "quantity": "refinement error",
        "error": ERROR,
        "after": f"{attempts} attempts",
        "most_steps": most_steps,
        "contexts": NUM_CONTEXTS,
        "every": EVERY,
        "trainings": found,
    }
