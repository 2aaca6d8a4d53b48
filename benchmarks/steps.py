"""Time and memory of a training step, beside PyTorch's and the machine's peak."""

import contextlib
import dataclasses
import statistics
from typing import Any

from benchmarks.cases import CASES, INSTEAD
from benchmarks.contest import (
    Failed,
    Turn,
    Worker,
    alternate,
    build,
    median_seconds,
    paired_ratio,
)
from benchmarks.flops import step_flops
from benchmarks.worlds import subject_of
from icl_align.running.compose import compose_config
from icl_align.world import world_of

# Sizes of the products and copies that measure the peak.
CPU_PRODUCT, ACCELERATOR_PRODUCT = 2048, 8192
COPY_BYTES = 512 * 2**20
ATTENTIONS = ("sdpa", "eager")  # Hugging Face's names; the faster one competes
CHOICE_ROUNDS, CHOICE_SECONDS = 3, 0.5
OURS, EAGER, COMPILED = "icl_align", "PyTorch eager", "torch.compile"


def fastest_torch(
    stack: contextlib.ExitStack, overrides: list[str], compiled: bool, seconds: float
) -> tuple[Worker, dict[str, Any]]:
    """PyTorch with the faster kind of attention, built, and what it says of itself.

    Args:
      stack: ends the process.
      overrides: of the configuration.
      compiled: with `torch.compile`.
      seconds: the least length of a turn of the trial.

    Raises:
      Failed: no kind can be built.
    """
    kind = subject_of(compose_config(overrides)).rival
    with contextlib.ExitStack() as trial:
        workers, said, reasons = {}, {}, []
        for attention in ATTENTIONS:
            arguments = {"overrides": overrides, "compiled": compiled, "attention": attention}
            worker = trial.enter_context(Worker(kind, **arguments))
            try:
                said[attention] = build(worker)
                workers[attention] = worker
            except Failed as reason:
                reasons.append(str(reason))
        turns, failures = alternate(workers, CHOICE_ROUNDS, min(seconds, CHOICE_SECONDS))
        seconds_of = {name: median_seconds(taken) for name, taken in turns.items()}
        if not seconds_of:
            raise Failed([*reasons, *failures.values()][0])
        best = min(seconds_of, key=seconds_of.get)
        for name, worker in workers.items():
            if name != best:
                worker.close()
        stack.push(trial.pop_all())
    return workers[best], said[best] | {"attention": best, "trial_seconds": seconds_of}


def peak_workers(platform: str, with_torch: bool) -> dict[str, tuple[Worker, float]]:
    """Name -> a contender that does nothing but one product or one copy, and its FLOP or bytes."""
    on_cpu = platform == "cpu"
    size = CPU_PRODUCT if on_cpu else ACCELERATOR_PRODUCT
    copier = Worker("copy" if on_cpu else "jax_copy", num_bytes=COPY_BYTES)
    found = {"copy": (copier, 2.0 * COPY_BYTES)}
    for kind in ("jax", "torch") if with_torch else ("jax",):
        for dtype in ("float32",) if on_cpu else ("float32", "bfloat16"):
            worker = Worker(f"{kind}_product", size=size, dtype=dtype)
            found[f"{kind} {dtype}"] = (worker, 2.0 * size**3)
    return found


def measure_case(
    name: str, rounds: int, seconds: float, torch_modes: tuple[str, ...]
) -> dict[str, Any]:
    """Everything about one of `CASES`.

    Args:
      name: of the case.
      rounds: paired rounds.
      seconds: the least length of a turn.
      torch_modes: some of `EAGER`, `COMPILED`.

    Returns:
      contenders (by name: what `build` and `memory` said, the turns, and the ratio to ours, or
      failed; PyTorch eager on the case `INSTEAD` is one), peak (FLOP/s by product, bytes/s of a
      copy), flops of a step, contexts a step, tokens of a context.

    Raises:
      Failed: ours does.
    """
    overrides = CASES[name]
    config = compose_config(overrides)
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(Worker("jax", overrides=overrides))
        said = {OURS: build(ours)}
        workers, failures = {OURS: ours}, {}
        rivals = {}
        if subject_of(config).rival is not None:
            rivals = {mode: (overrides, mode == COMPILED) for mode in torch_modes}
        if name in INSTEAD and EAGER in rivals:
            rivals[f"{EAGER}, {INSTEAD[name]}"] = CASES[INSTEAD[name]], False
        for label, (of_rival, compiled) in rivals.items():
            try:
                workers[label], said[label] = fastest_torch(stack, of_rival, compiled, seconds)
                said[label]["flops"] = step_flops(compose_config(of_rival))
            except Failed as reason:
                failures[label] = str(reason)
        peaks = peak_workers(said[OURS]["platform"], bool(torch_modes))
        for label, (worker, _) in peaks.items():
            build(stack.enter_context(worker))
            workers[label] = worker
        turns, more_failures = alternate(workers, rounds, seconds)
        failures |= more_failures
        if OURS in failures:
            raise Failed(failures[OURS])
        contenders = {}
        for label in (OURS, *rivals):
            if label in failures:
                contenders[label] = {"failed": failures[label]}
                continue
            contenders[label] = {
                **said[label],
                "memory": workers[label].ask("memory"),
                **turns_as_json(turns[label]),
                "ratio": dataclasses.asdict(paired_ratio(turns[label], turns[OURS])),
            }
    peak = {
        label: {"per_second": amount / median_seconds(turns[label]), **turns_as_json(turns[label])}
        for label, (_, amount) in peaks.items()
        if label in turns
    }
    return {
        "overrides": overrides,
        "contenders": contenders,
        "peak": peak,
        "flops": step_flops(config),
        "contexts": config.train.batch_size * config.num_seeds,
        "tokens": world_of(config).num_tokens(config),
    }


def turns_as_json(turns: list[Turn]) -> dict[str, Any]:
    """The median step time, and all turns."""
    return {
        "step_seconds": median_seconds(turns),
        "turns": [dataclasses.asdict(turn) for turn in turns],
        "others": statistics.median(turn.others for turn in turns),
    }


def peak_flops(case: dict[str, Any]) -> float:
    """The most FLOP/s of a float32 product, of JAX or of PyTorch."""
    return max(v["per_second"] for k, v in case["peak"].items() if k.endswith("float32"))
