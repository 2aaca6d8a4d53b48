"""How the cost of a step grows with attempts, depth, width, batch and seeds."""

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.cases import CASES
from benchmarks.contest import Failed, Worker, alternate, build, paired_ratio
from benchmarks.flops import forward_flops, step_flops
from benchmarks.steps import turns_as_json
from icl_align.running.compose import compose_config

CASE = "default"  # the configuration that grows
# What grows in every world -> its values: four doublings each.
AXES = {
    "model.num_layers": (1, 2, 4, 8, 16),
    "model.width": (32, 64, 128, 256, 512),
    "train.batch_size": (32, 64, 128, 256, 512),
    "num_seeds": (1, 2, 4, 8, 16),
}
WORSE = 0.15  # a measured exponent this much above the expected one needs a reason
# The reason of an axis whose measured exponent is worse than expected.
REASONS: dict[str, str] = {}


@dataclasses.dataclass
class Exponent:
    """The slope p of log y = p log x + c, with its standard error (None for two points)."""

    value: float
    error: float | None

    def __str__(self) -> str:
        return f"{self.value:.2f}" + (f" ± {self.error:.2f}" if self.error is not None else "")


def fit_exponent(x: Sequence[float | int], y: Sequence[float | int]) -> Exponent:
    """Least squares of y = C x^p in logarithms.

    Args:
      x, y: positive, at least two of each.
    """
    a, b = np.log(np.asarray(x, float)), np.log(np.asarray(y, float))
    deviation = a - a.mean()
    squares = float(deviation @ deviation)
    slope = float(deviation @ (b - b.mean()) / squares)
    if len(a) < 3:
        return Exponent(slope, None)
    residuals = b - b.mean() - slope * deviation
    return Exponent(slope, math.sqrt(float(residuals @ residuals) / (len(a) - 2) / squares))


def largest_half(values: Sequence[Any]) -> Sequence[Any]:
    """The last half, the middle one included."""
    return values[len(values) // 2 :]


def summarize(axis: str, points: list[dict[str, Any]]) -> dict[str, Any]:
    """Exponents over all points and over the largest half, beside those of the FLOP formula.

    Args:
      axis: what grows.
      points: by size: value, flops, step_seconds, temporary_bytes.
    """
    fits = {}
    for name, part in (("all", points), ("largest_half", largest_half(points))):
        values = [point["value"] for point in part]
        fits[name] = {
            "measured": fit_exponent(values, [point["step_seconds"] for point in part]),
            "expected": fit_exponent(values, [point["flops"] for point in part]),
        }
        if all(point.get("temporary_bytes") for point in part):
            sizes = [point["temporary_bytes"] for point in part]
            fits[name]["memory"] = fit_exponent(values, sizes)
    last = fits["largest_half"]
    worse = last["measured"].value - last["expected"].value > WORSE
    return {
        "axis": axis,
        "points": points,
        "fits": {
            part: {name: dataclasses.asdict(fit) for name, fit in of_part.items()}
            for part, of_part in fits.items()
        },
        "worse": worse,
        "reason": REASONS.get(axis, "not known yet") if worse else "",
    }


def measure_axis(
    axis: str, values: Sequence[int], base: list[str], rounds: int, seconds: float
) -> dict[str, Any]:
    """Step times of ours at each value, the processes taking turns; see `summarize`.

    Args:
      axis: an option.
      values: of it, ascending.
      base: overrides of all points.
      rounds: turns of each point.
      seconds: the least length of a turn.

    Returns:
      What `summarize` does, and dropped: by size the reason why it is not among the points.

    Raises:
      Failed: fewer than three points could be measured.
    """
    points, workers, dropped = {}, {}, {}
    with contextlib.ExitStack() as stack:
        for value in values:
            overrides = [*base, f"{axis}={value}"]
            worker = stack.enter_context(Worker("jax", overrides=overrides))
            try:
                said = build(worker)
            except Failed as reason:  # too large for this machine
                dropped[str(value)] = str(reason)
                continue
            workers[str(value)] = worker
            points[str(value)] = {
                "value": value,
                "flops": step_flops(compose_config(overrides)),
                "temporary_bytes": said["temporary_bytes"],
                "compile_seconds": said["compile_seconds"],
            }
        turns, failures = alternate(workers, rounds, seconds)
        measured = []
        for name, of_point in turns.items():
            memory = workers[name].ask("memory")
            measured.append(points[name] | {"memory": memory} | turns_as_json(of_point))
    if len(measured) < 3:  # the largest half of them must hold two
        raise Failed("fewer than three sizes could be measured")
    return summarize(axis, measured) | {"dropped": dropped | failures}


def measure_parts(name: str, rounds: int, seconds: float) -> dict[str, Any]:
    """The loss of all prefixes, and the attention of all layers, with their gradients.

    Args:
      name: of one of `CASES`.
      rounds: paired rounds.
      seconds: the least length of a turn.

    Returns:
      loss, attention and step, the turns of each; loss_to_attention and loss_to_step, the ratios.

    Raises:
      Failed: one of the three does.
    """
    overrides = CASES[name]
    kinds = {"loss": "jax_loss", "attention": "jax_attention", "step": "jax"}
    with contextlib.ExitStack() as stack:
        workers = {}
        for part, kind in kinds.items():
            workers[part] = stack.enter_context(Worker(kind, overrides=overrides))
            build(workers[part])
        turns, failures = alternate(workers, rounds, seconds)
    if failures:
        raise Failed(next(iter(failures.values())))
    return {
        **{part: turns_as_json(of_part) for part, of_part in turns.items()},
        "loss_to_attention": dataclasses.asdict(paired_ratio(turns["loss"], turns["attention"])),
        "loss_to_step": dataclasses.asdict(paired_ratio(turns["loss"], turns["step"])),
        "attention_flops": forward_flops(compose_config(overrides))["attention"],
    }
