"""How likely a judgement is decided, and how many seeds that takes.

Of Gaussian values with a known spread Student's test at a bound is decided with the probability of
a noncentral t. A judgement has to be decided when its effect lies `resolution` away from an end of
its range, on either side.
"""

import math

from scipy import stats

from experiments.judge import LEAST_SEEDS, Family

WANTED = 0.9
MOST_SEEDS = 200


def power(spread: float, seeds: int, distance: float, family: Family) -> float:
    """The chance that a mean at a distance from a bound is told to lie on its side of it.

    Args:
      spread: standard deviation over seeds, above 0.
      seeds: how many, at least 2.
      distance: from the bound, at least 0.
      family: whose p has to stand its correction, by Bonferroni at worst.
    """
    freedom = seeds - 1
    wanted = stats.t.isf(family.level / family.tests / 2, freedom)
    return float(stats.nct.sf(wanted, freedom, distance / spread * math.sqrt(seeds)))


def needed_seeds(
    spread: float, distance: float, family: Family, wanted: float = WANTED
) -> int | None:
    """The fewest seeds with that power; None if `MOST_SEEDS` are too few."""
    for seeds in range(LEAST_SEEDS, MOST_SEEDS + 1):
        if power(spread, seeds, distance, family) >= wanted:
            return seeds
    return None
