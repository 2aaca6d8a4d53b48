"""The process of one contender: does what the line on its input says, answers with one line.

python -m benchmarks.worker KIND ARGUMENTS      ARGUMENTS is a JSON object for the kind's class

A request is a JSON object {"do": VERB, ...}; its other entries are arguments of the verb:

    build       gets ready and does one step; what is known then, and the seconds it took
    steps       does `count` steps; {"seconds": ...}
    memory      bytes of the process: before `build`, at most in all, at most after `build`
    error       mean refinement error after `attempts` attempts, on the contexts in file `path`
    draw        writes `count` contexts for `error` to file `path`

The answer is a JSON object, {"failed": REASON} in the last line of a process that goes wrong. The
process ends with its input. Between requests it waits for input and uses no processor.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import psutil

VERBS = ("build", "steps", "memory", "error", "draw")
# Kind -> module and class: a module is loaded in the process that needs it, and nowhere else. A
# world's own are called WORLD:KIND, and stand in its `worlds.Subject`.
KINDS = {
    "jax": ("jax_worker", "Training"),
    "jax_loss": ("jax_worker", "Loss"),
    "jax_attention": ("jax_worker", "Attention"),
    "jax_product": ("jax_worker", "Product"),
    "jax_copy": ("jax_worker", "Copy"),
    "torch_product": ("torch_product", "Product"),
    "copy": ("copy_worker", "Copy"),
}


class Contender:
    """What every kind has; a kind adds `build`, `steps` and what other verbs it knows."""

    def device_peak(self) -> int | None:
        """Most bytes of an accelerator's memory in use so far; None without one."""
        return None


def make_contender(kind: str, arguments: dict[str, Any]) -> Contender:
    """An object of the class of `kind`."""
    import importlib

    world, _, own = kind.rpartition(":")
    if world:
        kinds = importlib.import_module(f"benchmarks.{world}").SUBJECT.workers
        module, name = f"{world}.{kinds[own][0]}", kinds[own][1]
    else:
        module, name = KINDS[kind]
    return getattr(importlib.import_module(f"benchmarks.{module}"), name)(**arguments)


class Memory:
    """Resident memory of this process, in bytes."""

    def __init__(self) -> None:
        self.start = psutil.Process().memory_info().rss
        self.peak_of_build = 0
        self.is_split = False

    def built(self) -> None:
        """From here on peaks are those of the steps, where the system can forget the old one."""
        self.peak_of_build = peak_bytes()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
            self.is_split = True

    def read(self) -> dict[str, int | None]:
        """`start`, `peak`, and `steps_peak`, which is None where it cannot be told from `peak`."""
        now = peak_bytes()
        return {
            "start": self.start,
            "peak": max(now, self.peak_of_build),
            "steps_peak": now if self.is_split else None,
        }


def peak_bytes() -> int:
    """The most memory this process has had resident, in bytes."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def serve(contender: Contender, requests: TextIO, answer: Callable[[dict[str, Any]], None]) -> None:
    """Answers every line of `requests` until there are no more.

    Args:
      contender: does the work.
      requests: lines as in the module's docstring.
      answer: takes the answers.
    """
    memory = Memory()
    for line in requests:
        request = json.loads(line)
        verb = request.pop("do")
        if verb not in VERBS:
            raise ValueError(f"no verb {verb}")
        if verb == "memory":
            answer({**memory.read(), "device_peak": contender.device_peak()})
            continue
        begun = time.perf_counter()
        reply = getattr(contender, verb)(**request)
        if verb == "build":
            reply["build_seconds"] = time.perf_counter() - begun
            memory.built()
        answer(reply)


def main() -> None:
    """The command `python -m benchmarks.worker`."""
    # What libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(reply: dict[str, Any]) -> None:
        answers.write(json.dumps(reply) + "\n")
        answers.flush()

    try:
        serve(make_contender(sys.argv[1], json.loads(sys.argv[2])), sys.stdin, answer)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        answer({"failed": f"{type(error).__name__}: {reason}"})
        raise


if __name__ == "__main__":
    main()
