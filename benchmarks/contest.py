"""Contenders side by side: processes that take turns, and what their turns say.

In every round each contender does its steps while the others wait for input, in an order that
moves on by one from round to round. What drifts on the machine then touches all alike, and ratios
are taken within a round.
"""

import contextlib
import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent
MOST_STEPS = 10_000  # in one turn


class Failed(Exception):
    """A contender could not do what it was asked; says why in one line."""


class Worker:
    """One contender's process, see `benchmarks.worker`; it ends with the `with` block.

    Args:
      kind: one of `worker.KINDS`.
      arguments: for its class.
    """

    def __init__(self, kind: str, **arguments: Any):
        self.kind, self.arguments = kind, arguments
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Worker":
        with contextlib.ExitStack() as stack:
            caches = stack.enter_context(tempfile.TemporaryDirectory())
            self._errors = stack.enter_context(tempfile.TemporaryFile("w+"))
            self.started = time.perf_counter()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.worker", self.kind, json.dumps(self.arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env=_environment(Path(caches)),
            )
            stack.callback(self._stop)
            self._usage = psutil.Process(self._process.pid)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process; a second time does nothing."""
        self._stack.close()

    def _stop(self) -> None:
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def ask(self, verb: str, **arguments: Any) -> dict[str, Any]:
        """The answer to a request.

        Raises:
          Failed: the process says so, or has ended.
        """
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps({"do": verb, **arguments}) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise Failed(
                f"the process ended with status {self._process.wait()}{self._last_words()}"
            )
        reply = json.loads(line)
        if "failed" in reply:
            raise Failed(reply["failed"])
        return reply

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        return f": {lines[-1]}" if lines else ""

    def cpu_seconds(self) -> float:
        """Processor time that the process has used so far."""
        times = self._usage.cpu_times()
        return times.user + times.system


def _environment(caches: Path) -> dict[str, str]:
    """Of every contender: nothing compiled earlier is found, and no memory taken in advance."""
    environment = {
        **os.environ,
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "HF_HUB_OFFLINE": "1",
    }
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return environment | {"PYTHONPATH": os.pathsep.join(path)}


# ------------------------------------------------------------------------------------------ rounds


@dataclasses.dataclass
class Turn:
    """What one contender did in one round.

    Attributes:
      steps: how many it did.
      seconds: of one step.
      others: share of the machine's processors that other processes used meanwhile, in [0, 1].
      loss: after the last step, where there is one.
    """

    steps: int
    seconds: float
    others: float
    loss: float | None = None


def busy_seconds() -> float:
    """Processor time that all processes of the machine have used, and what was taken from it."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # Linux counts a guest's time in user and nice too.
    guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    return sum(times) - idle - guests


def take_turn(worker: Worker, steps: int) -> Turn:
    """Has a worker do `steps` steps."""
    busy, own, begun = busy_seconds(), worker.cpu_seconds(), time.perf_counter()
    reply = worker.ask("steps", count=steps)
    wall = time.perf_counter() - begun
    by_others = busy_seconds() - busy - (worker.cpu_seconds() - own)
    share = min(max(by_others / (wall * psutil.cpu_count()), 0.0), 1.0)
    return Turn(steps, reply["seconds"] / steps, share, reply.get("loss"))


def steps_for(worker: Worker, seconds: float) -> int:
    """How many steps take at least so long; found by doing some."""
    steps = 1
    while True:
        taken = worker.ask("steps", count=steps)["seconds"]
        if taken >= seconds / 4 or steps >= MOST_STEPS:
            return min(max(math.ceil(seconds * steps / taken), 1), MOST_STEPS)
        steps = min(4 * steps, MOST_STEPS)


def build(worker: Worker) -> dict[str, Any]:
    """What a worker says of itself; `to_first_step_seconds` counts from the start of its process.

    Raises:
      Failed: it cannot be built.
    """
    reply = worker.ask("build")
    trial = reply.pop("adam_trial_seconds", 0.0)  # no part of a start
    return reply | {"to_first_step_seconds": time.perf_counter() - worker.started - trial}


def alternate(
    workers: dict[str, Worker], rounds: int, seconds: float
) -> tuple[dict[str, list[Turn]], dict[str, str]]:
    """Turns of every worker, one a round, and why a worker that failed has none.

    Args:
      workers: built.
      rounds: how many.
      seconds: the least length of a turn.
    """
    steps, failures = {}, {}
    turns = {name: [] for name in workers}

    def guarded(name: str, action: Callable[[Worker], Any]) -> Any:
        try:
            return action(workers[name])
        except Failed as reason:
            failures[name] = str(reason)
            del turns[name]

    for name in workers:
        steps[name] = guarded(name, lambda worker: steps_for(worker, seconds))
    for number in range(rounds):
        names = [name for name in workers if name in turns]
        first = number % max(len(names), 1)
        for name in names[first:] + names[:first]:
            turn = guarded(name, lambda worker, name=name: take_turn(worker, steps[name]))
            if turn is not None:
                turns[name].append(turn)
    return turns, failures


def median_seconds(turns: Sequence[Turn]) -> float:
    """Of one step."""
    return statistics.median(turn.seconds for turn in turns)


@dataclasses.dataclass
class Ratio:
    """How many times as long one contender takes as another: median, least and most of a round."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def paired_ratio(turns: Sequence[Turn], reference: Sequence[Turn]) -> Ratio:
    """The ratio of step times within each round."""
    ratios = [a.seconds / b.seconds for a, b in zip(turns, reference, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))
