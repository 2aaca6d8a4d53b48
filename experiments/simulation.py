"""How often the judge errs, by simulation of all registered judgements at the seeds used."""

from collections.abc import Callable, Iterator

import numpy as np

from experiments.claim import above, below
from experiments.judge import Family, Measured, interval, judge

CAMPAIGNS, INTERVALS = 400, 1000
# All with mean 0 and standard deviation 1.
SHAPES: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "Gaussian": lambda rng, shape: rng.normal(size=shape),
    "exponential": lambda rng, shape: rng.exponential(size=shape) - 1,
    "two kinds of solution": lambda rng, shape: (rng.random(shape) < 0.2) / 0.4 - 0.5,
}


def simulate(families: dict[bool, Family], seeds: dict[bool, int]) -> Iterator[str]:
    """A line for each shape: in how many campaigns any verdict is wrong where every effect lies on
    the end of its range, and how often an interval holds the mean.

    Args:
      families: primary and exploratory judgements.
      seeds: of each family.
    """
    for name, draw in SHAPES.items():
        rng = np.random.default_rng(0)
        wrong = sum(_errs(rng, draw, families, seeds) for _ in range(CAMPAIGNS))
        covered = {
            primary: np.mean([_holds_mean(draw(rng, (number,))) for _ in range(INTERVALS)])
            for primary, number in seeds.items()
        }
        yield (
            f"{name}: {wrong / CAMPAIGNS:.3f} of {CAMPAIGNS} campaigns with a wrong verdict among "
            f"{sum(family.tests for family in families.values())}; 95% intervals hold the mean in "
            f"{covered[True]:.3f} ({seeds[True]} seeds) and {covered[False]:.3f} "
            f"({seeds[False]} seeds) of {INTERVALS}"
        )


def _errs(rng, draw, families: dict[bool, Family], seeds: dict[bool, int]) -> bool:
    for primary, family in families.items():
        values = draw(rng, (family.tests, seeds[primary]))
        sides = [above(0.0), below(0.0)]
        effects = [Measured(own, sides[n % 2]) for n, own in enumerate(values)]
        if any(finding.verdict != "undecided" for finding in judge(effects, family)):
            return True
    return False


def _holds_mean(values: np.ndarray) -> bool:
    low, high = interval(values)
    return low <= 0 <= high
