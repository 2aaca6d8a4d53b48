"""Steering: a dose of a direction is added to the residual stream, and the answers are looked at.

If the probe reads a concept that the network uses, then a dose of its direction has to change what
it says; a random direction of the same length should not.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from icl_align.dialogue.concept.probes import Direction, unit
from icl_align.dialogue.options import QUANTITIES
from icl_align.intervals import Interval, of_mean, of_statistic, stacked
from icl_align.statistics import POOLS

DOSES = (-4, -2, -1, 0, 1, 2, 4)
RANDOM = 2  # random directions of each network
# Where the probe looks; how the state moves with the log-odds; anywhere. All of one length.
DIRECTIONS = ("probe", "pattern", "random")
MEASURED = (
    "activation",
    "reading",
    "accuracy",
    "biased",
    "uncertainty",
    "confidence",
    "calibration_error_corrected",
)

Vectors = dict[str, Float[np.ndarray, "k layers d"]]  # one dose of each of k of a kind


def vectors(directions: list[Direction], seed: int) -> Vectors:
    """One dose of each kind of direction at every layer, as long as the pattern there.

    So a dose moves a state as far as one standard deviation of the log-odds does.

    Args:
      directions: of each layer.
      seed: of the random ones.
    """
    pattern = np.stack([direction.pattern for direction in directions])
    length = np.linalg.norm(pattern, axis=1, keepdims=True)
    random = np.random.default_rng(seed).normal(size=(RANDOM, *pattern.shape))
    random *= length / np.linalg.norm(random, axis=-1, keepdims=True)
    probe = length * np.stack([unit(direction.raw) for direction in directions])
    found = {"probe": probe[None], "pattern": pattern[None], "random": random}
    return {name: found[name].astype(np.float32) for name in DIRECTIONS}


def steered(
    measure: Callable[[int, Float[np.ndarray, "layers d"]], dict[str, np.ndarray]],
    by_seed: list[Vectors],
    progress: Callable[[float], None],
) -> dict[str, Any]:
    """What doses after each block change in answers under the plan `none`, as a mean over rounds.

    Args:
      measure: (number of the seed, what is added) -> values [b, t] by quantity.
      by_seed: the vectors of each seed.
      progress: called with the share that is done.

    Returns:
      DIRECTION -> QUANTITY -> interval of the change [layer, dose] from no dose, on the same
      dialogues; layers from the first block on. "unchanged" -> QUANTITY -> interval without a dose.
    """
    num_layers = by_seed[0]["probe"].shape[1] - 1
    total, done = len(by_seed) * (len(DIRECTIONS) - 1 + RANDOM) * num_layers * len(DOSES), 0
    plain = [
        _kept(measure(number, np.zeros_like(own["probe"][0]))) for number, own in enumerate(by_seed)
    ]
    found: dict[str, Any] = {name: {quantity: [] for quantity in MEASURED} for name in DIRECTIONS}
    for name in DIRECTIONS:
        for layer in range(1, num_layers + 1):
            of_seeds = []
            for number, own in enumerate(by_seed):
                of_vectors = []
                for vector in own[name]:
                    of_doses = []
                    for dose in DOSES:
                        added = np.zeros_like(vector)
                        added[layer] = dose * vector[layer]
                        of_doses.append(_kept(measure(number, added)) if dose else plain[number])
                        done += 1
                        progress(done / total)
                    of_vectors.append(of_doses)
                of_seeds.append(of_vectors)
            for quantity in MEASURED:
                # [s, k, doses, b, ...] -> [b, s, k, doses, ...]
                nested = [[[v[quantity] for v in k] for k in one] for one in of_seeds]
                values = np.moveaxis(np.asarray(nested), 3, 0)
                found[name][quantity].append(_change(values, _pool(quantity)))
    whole = {
        name: {quantity: stacked(found[name][quantity]) for quantity in MEASURED}
        for name in DIRECTIONS
    }
    return whole | {"unchanged": {quantity: _unchanged(plain, quantity) for quantity in MEASURED}}


def shown_block(num_layers: int) -> int:
    """The place in the list of blocks that figure and summary show: half way up."""
    return (num_layers - 1) // 2


def _kept(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What is needed of a measurement: means over rounds, and features by round."""
    return {
        quantity: values[quantity] if _pool(quantity) else values[quantity].mean(axis=1)
        for quantity in MEASURED
    }


def _pool(quantity: str) -> str | None:
    return QUANTITIES[quantity].pool if quantity in QUANTITIES else None


def _change(values: Float[np.ndarray, "b s k doses *rest"], pool: str | None) -> Interval:
    """From no dose; mean over the k directions of a network, and over rounds."""
    zero = slice(DOSES.index(0), DOSES.index(0) + 1)
    if pool is None:
        return of_mean((values - values[:, :, :, zero]).mean(axis=2))
    of, count = POOLS[pool], len(values)

    def change(means):
        error = of(means, count).mean(axis=-1)  # over rounds
        return np.mean(error - error[..., zero], axis=-2)

    return of_statistic(change, values)


def _unchanged(plain: list[dict[str, np.ndarray]], quantity: str) -> Interval:
    values, pool = np.stack([own[quantity] for own in plain], axis=1), _pool(quantity)
    if pool is None:
        return of_mean(values)
    of, count = POOLS[pool], len(values)
    return of_statistic(lambda means: of(means, count).mean(axis=-1), values)
