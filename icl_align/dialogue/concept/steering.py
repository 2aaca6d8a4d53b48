"""Steering: a dose of a direction is added to the residual stream, and the answers are looked at.

If the probe reads a concept that the network uses, then a dose of its direction has to change what
it says; a random direction of the same length should not.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from icl_align.dialogue.concept.intervals import Interval, of_mean, of_pool, of_statistic
from icl_align.dialogue.concept.probes import Direction, unit
from icl_align.dialogue.options import QUANTITIES
from icl_align.statistics import POOLS

DOSES = (-4, -2, -1, 0, 1, 2, 4)  # standard deviations
RANDOM = 2  # random directions of each network
# Where the probe looks; how the state moves with the log-odds; as far as that, anywhere.
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

Vectors = dict[str, Float[np.ndarray, "k layers d"]]  # one standard deviation of k of each kind


def vectors(directions: list[Direction], seed: int) -> Vectors:
    """One standard deviation of each kind of direction, at every layer.

    Args:
      directions: of each layer.
      seed: of the random ones, which are as long as the patterns.
    """
    pattern = np.stack([direction.pattern for direction in directions])
    random = np.random.default_rng(seed).normal(size=(RANDOM, *pattern.shape))
    length = np.linalg.norm(pattern, axis=1, keepdims=True)
    random *= length / np.linalg.norm(random, axis=-1, keepdims=True)
    probe = np.stack([direction.spread * unit(direction.raw) for direction in directions])
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
    cells = [(layer, dose) for layer in range(1, num_layers + 1) for dose in DOSES]
    total, done = len(by_seed) * (len(DIRECTIONS) - 1 + RANDOM) * len(cells), 0
    values: dict[str, list] = {name: [] for name in DIRECTIONS}
    plain = []
    for number, own in enumerate(by_seed):
        plain.append(_over_rounds(measure(number, np.zeros_like(own["probe"][0]))))
        for name in DIRECTIONS:
            for vector in own[name]:
                of_cells = []
                for layer, dose in cells:
                    added = np.zeros_like(vector)
                    added[layer] = dose * vector[layer]
                    of_cells.append(_over_rounds(measure(number, added)) if dose else plain[-1])
                    done += 1
                    progress(done / total)
                values[name].append(of_cells)

    def grid(name: str, quantity: str) -> Interval:
        """Random directions count as seeds: they vary as freely."""
        stacked = np.stack(
            [np.stack([cell[quantity] for cell in own], axis=1) for own in values[name]], axis=1
        )
        stacked = stacked.reshape(*stacked.shape[:2], num_layers, len(DOSES), *stacked.shape[3:])
        return _change(stacked, DOSES.index(0), _pool(quantity))

    def unchanged(quantity: str) -> Interval:
        stacked, pool = np.stack([own[quantity] for own in plain], axis=1), _pool(quantity)
        return of_mean(stacked) if pool is None else of_pool(stacked, pool)

    found = {name: {quantity: grid(name, quantity) for quantity in MEASURED} for name in DIRECTIONS}
    return found | {"unchanged": {quantity: unchanged(quantity) for quantity in MEASURED}}


def most_effective(found: dict[str, Any]) -> int:
    """The place in the list of blocks where one dose of the pattern moves the accuracy most."""
    means = np.asarray(found["pattern"]["accuracy"]["mean"])
    return int(np.argmax(means[:, DOSES.index(1)] - means[:, DOSES.index(-1)]))


def _pool(quantity: str) -> str | None:
    return QUANTITIES[quantity].pool if quantity in QUANTITIES else None


def _change(
    values: Float[np.ndarray, "b s layers doses *m"], zero: int, pool: str | None
) -> Interval:
    if pool is None:
        return of_mean(values - values[:, :, :, zero : zero + 1])
    of, count = POOLS[pool], len(values)

    def change(means):
        found = of(means, count)
        return np.mean(found - found[:, :, zero : zero + 1], axis=0)

    return of_statistic(change, values)


def _over_rounds(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {quantity: values[quantity].mean(axis=1) for quantity in MEASURED}
