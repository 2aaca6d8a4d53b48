"""How often the judge errs, by simulation of all judgements at the seeds and spreads they have."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from experiments.claim import Range
from experiments.judge import Family, Measured, interval, judge

CAMPAIGNS, INTERVALS = 2000, 1000
WITHIN = 0.1  # spread of either kind, as a share of the distance between them


def _two_kinds(rng: np.random.Generator, size: int, share: float) -> Float[np.ndarray, " size"]:
    """Values in two groups, of which one has a share; of a mean 0 and a standard deviation 1."""
    values = (rng.random(size) < share) - share + WITHIN * rng.normal(size=size)
    return values / math.sqrt(share * (1 - share) + WITHIN**2)


AS_FOUND = "as skewed as found"
# Number of values, and the skewness found -> values of a mean 0 and a standard deviation 1.
SHAPES: dict[str, Callable[[np.random.Generator, int, float], np.ndarray]] = {
    "Gaussian": lambda rng, size, skewness: rng.normal(size=size),
    AS_FOUND: lambda rng, size, skewness: stats.pearson3.rvs(skewness, size=size, random_state=rng),
    "exponential": lambda rng, size, skewness: rng.exponential(size=size) - 1,
    "one in five of another kind": lambda rng, size, skewness: _two_kinds(rng, size, 0.2),
    "one in ten of another kind": lambda rng, size, skewness: _two_kinds(rng, size, 0.1),
}


class Case(NamedTuple):
    """A judgement, as far as the judge's errors depend on it.

    Attributes:
      predicted: its range.
      primary: which family it is in.
      seeds: how many.
      spread: standard deviation over seeds.
      skewness: of the values that were judged; None where there are none, which counts as 0.
    """

    predicted: Range
    primary: bool
    seeds: int
    spread: float
    skewness: float | None = None


def simulate(cases: Sequence[Case], families: dict[bool, Family]) -> Iterator[str]:
    """A line for each shape: in how many campaigns any verdict is wrong where every effect lies on
    an end of its range, and how often an interval holds the mean. Nothing is as skewed as found
    where no case has a skewness.

    Args:
      cases: all judgements.
      families: primary and exploratory ones.
    """
    numbers = sorted({case.seeds for case in cases})
    for name, draw in SHAPES.items():
        if name == AS_FOUND and all(case.skewness is None for case in cases):
            continue
        rng = np.random.default_rng(0)
        wrong = sum(_errs(rng, draw, cases, families) for _ in range(CAMPAIGNS))
        covered = ", ".join(
            f"{_coverage(rng, draw, [case for case in cases if case.seeds == n]):.3f} of {n} seeds"
            for n in numbers
        )
        yield (
            f"{name}: a wrong verdict among {len(cases)} in {wrong / CAMPAIGNS:.4f} of {CAMPAIGNS} "
            f"campaigns; 95% intervals hold the mean in {covered} ({INTERVALS} each)"
        )


def _errs(rng, draw, cases: Sequence[Case], families: dict[bool, Family]) -> bool:
    for number, case in enumerate(cases):
        ends = [end for end in (case.predicted.low, case.predicted.high) if np.isfinite(end)]
        end, family = ends[number % len(ends)], families[case.primary]
        values = end + case.spread * draw(rng, case.seeds, case.skewness or 0.0)
        # The judge's p is no smaller than Student's, and the first that Holm rejects has to stand
        # Bonferroni's correction.
        error = np.std(values, ddof=1) / math.sqrt(case.seeds)
        if abs(np.mean(values) - end) <= _critical(case.seeds, family) * error:
            continue
        [finding] = judge([Measured(values, case.predicted)], family)
        if finding.verdict != "undecided":
            return True
    return False


@functools.lru_cache
def _critical(seeds: int, family: Family) -> float:
    return float(stats.t.isf(family.level / family.tests / 2, seeds - 1))


def _coverage(rng, draw, cases: Sequence[Case]) -> float:
    held = []
    for case in itertools.islice(itertools.cycle(cases), INTERVALS):
        low, high = interval(draw(rng, case.seeds, case.skewness or 0.0))
        held.append(low <= 0 <= high)
    return float(np.mean(held))
