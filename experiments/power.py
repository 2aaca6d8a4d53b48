"""How likely a judgement is decided, and how many seeds that takes, by simulation of the judge.

A judgement has to be decided when its effect lies `resolution` beyond an end of its range, or, of a
range with two ends, in its middle.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from experiments.claim import Range
from experiments.judge import LEAST_SEEDS, RESAMPLES, Family, studentized

WANTED = 0.9
SAMPLES = 200  # of Gaussian values: a power of 0.9 is found within 0.04
BOOTSTRAP_UP_TO = 40  # seeds; of more the judge's two tests agree
TAIL = RESAMPLES // 20
NUMBERS = (*range(LEAST_SEEDS, BOOTSTRAP_UP_TO + 1, 4), 50, 60, 80, 100, 120, 160, 200)


class Samples(NamedTuple):
    """Gaussian samples of a size, with the ends of their bootstrap distributions."""

    errors: Float[np.ndarray, " s"]  # standard error of each mean
    means: Float[np.ndarray, " s"]
    highest: Float[np.ndarray, "s tail"]  # from the largest down
    lowest: Float[np.ndarray, "s tail"]  # of the negated, from the largest down


@functools.lru_cache(maxsize=len(NUMBERS))
def _samples(seeds: int) -> Samples:
    values = np.random.default_rng(seeds).normal(size=(SAMPLES, seeds))
    ends = np.zeros((2, SAMPLES, 0))
    if seeds <= BOOTSTRAP_UP_TO:
        drawn = np.stack([studentized(sample) for sample in values])
        ends = np.stack([drawn[:, ::-1][:, :TAIL], -drawn[:, :TAIL]])
    errors = np.std(values, axis=1, ddof=1) / math.sqrt(seeds)
    return Samples(errors, np.mean(values, axis=1), *ends)


def power(spread: float, seeds: int, predicted: Range, family: Family) -> float:
    """The chance that the judge decides.

    Args:
      spread: standard deviation over seeds, above 0.
      seeds: how many, at least 2.
      predicted: the range.
      family: whose p has to stand its correction, by Bonferroni at worst.
    """
    samples, level = _samples(seeds), family.level / family.tests / 2
    by_student = stats.t.isf(level, seeds - 1)
    as_large = math.ceil(level * (RESAMPLES + 1)) - 1  # bootstrap samples that may be, and one less
    critical = [np.full(SAMPLES, by_student)] * 2
    if samples.highest.shape[1]:
        ends = (samples.highest, samples.lowest)
        beyond = [end[:, min(as_large, TAIL) - 1] if as_large else math.inf for end in ends]
        critical = [np.maximum(by_student, end) for end in beyond]
    distance = predicted.resolution / spread
    from_low = (distance + samples.means) / samples.errors > critical[0]
    from_high = (distance - samples.means) / samples.errors > critical[1]
    if predicted.has_two_ends:
        return float(np.mean(from_low & from_high))
    return float((np.mean(from_low) + np.mean(from_high)) / 2)


def needed_seeds(
    spread: float, predicted: Range, family: Family, wanted: float = WANTED
) -> int | None:
    """The fewest of `NUMBERS` with that power; None if the most are too few."""
    low, high = 0, len(NUMBERS)
    while low < high:
        middle = (low + high) // 2
        enough = power(spread, NUMBERS[middle], predicted, family) >= wanted
        low, high = (low, middle) if enough else (middle + 1, high)
    return NUMBERS[low] if low < len(NUMBERS) else None
