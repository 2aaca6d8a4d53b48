"""The judge: from one number a seed to a verdict, by a rule fixed before the runs.

A judgement predicts that an effect lies in an open range (a, b). Of the effect's values, one a seed
and paired, two one-sided t-tests ask

    inside:   is the mean both above a and below b?     p_in  = max of the two tests' p
    outside:  is it below a, or above b?                p_out = min of the two tests' p, times the
                                                               number of finite ends

p = 2 min(p_in, p_out) is corrected for all registered judgements after Holm (1979). The verdict is

    supported      corrected p < 0.05 by p_in, and the 95% bootstrap interval lies inside the range
    contradicted   corrected p < 0.05 by p_out, and the interval lies outside
    undecided      otherwise, with fewer than 5 seeds, or if no run that is compared has learned
                   anything: untrained networks are all alike

The bootstrap of 5 numbers gives an interval that is too narrow (it covers the mean in about 83 of
100 samples of a Gaussian), which is why it never decides alone.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from experiments.claim import Range

LEVEL = 0.05
LEAST_SEEDS = 5
RESAMPLES = 9999

Values = Float[np.ndarray, " seeds"]


class Finding(NamedTuple):
    """What the judge says of one effect."""

    mean: float
    low: float  # 95% bootstrap interval of the mean over seeds
    high: float
    p_value: float  # two-sided, uncorrected
    corrected: float  # after Holm, over all registered judgements
    verdict: str  # supported, contradicted or undecided
    reason: str


def bootstrap_interval(values: Values, confidence: float = 0.95) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean (Efron and Tibshirani 1993); always the same
    for the same values.
    """
    if len(values) < 2 or np.ptp(values) == 0:
        return float(np.mean(values)), float(np.mean(values))
    found = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=confidence,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def _one_sided(values: Values, bound: float) -> tuple[float, float]:
    """Student's t: the p of "the mean is above the bound", and of "it is below"."""
    t = (np.mean(values) - bound) / (np.std(values, ddof=1) / math.sqrt(len(values)))
    freedom = len(values) - 1
    return float(stats.t.sf(t, freedom)), float(stats.t.cdf(t, freedom))


def p_values(values: Values, predicted: Range) -> tuple[float, float]:
    """(p_in, p_out): how surprising the values are if the effect were not inside, not outside."""
    inside, outside = [], []
    if predicted.low > -math.inf:
        p_above, p_below = _one_sided(values, predicted.low)
        inside.append(p_above)
        outside.append(p_below)
    if predicted.high < math.inf:
        p_above, p_below = _one_sided(values, predicted.high)
        inside.append(p_below)
        outside.append(p_above)
    return max(inside), min(1.0, min(outside) * len(outside))


def holm(p: Sequence[float], tests: int | None = None) -> list[float]:
    """p-values corrected for the number of tests (Holm 1979).

    Args:
      p: uncorrected, in [0, 1].
      tests: how many there are in all, at least `len(p)`; those not given count as p = 1.
    """
    tests = len(p) if tests is None else tests
    corrected, worst = [1.0] * len(p), 0.0
    for rank, place in enumerate(np.argsort(p, kind="stable")):
        worst = max(worst, min(1.0, (tests - rank) * p[place]))
        corrected[place] = worst
    return corrected


class Measured(NamedTuple):
    """An effect as the runs gave it."""

    values: Values | None  # one a seed; None where a run is missing
    predicted: Range
    learned: bool = True  # whether any of the runs it compares has learned to rank

    def usable(self) -> bool:
        """Whether it can be tested."""
        enough = self.values is not None and len(self.values) >= 2
        return enough and self.learned and bool(np.ptp(self.values) > 0)  # NaN is not above 0


def judge(effects: Sequence[Measured], tests: int | None = None) -> list[Finding]:
    """A finding for each effect.

    Args:
      effects: what was measured.
      tests: number of registered judgements, at least `len(effects)`; by default just these.
    """
    tests = len(effects) if tests is None else tests
    pairs = [
        p_values(effect.values, effect.predicted) if effect.usable() else (1.0, 1.0)
        for effect in effects
    ]
    two_sided = [min(1.0, 2 * min(pair)) for pair in pairs]
    corrected = holm(two_sided, tests)
    return [_finding(*row, tests) for row in zip(effects, pairs, two_sided, corrected, strict=True)]


def _finding(
    effect: Measured,
    pair: tuple[float, float],
    p: float,
    corrected: float,
    tests: int,
) -> Finding:
    nothing = (math.nan,) * 3
    values, predicted = effect.values, effect.predicted
    if values is None:
        return Finding(*nothing, 1.0, 1.0, "undecided", "a run is missing")
    if not np.all(np.isfinite(values)):
        return Finding(*nothing, 1.0, 1.0, "undecided", "a seed of one of the runs diverged")
    mean, (low, high) = float(np.mean(values)), bootstrap_interval(values)
    numbers = (mean, low, high, p, corrected)
    if len(values) < LEAST_SEEDS:
        reason = f"{len(values)} seeds are fewer than {LEAST_SEEDS}"
        return Finding(*numbers, "undecided", reason)
    if np.ptp(values) == 0:
        return Finding(*numbers, "undecided", "all seeds gave the same number: is it one run?")
    if not effect.learned:
        return Finding(*numbers, "undecided", "none of the compared runs has learned to rank")
    inside = predicted.low < low and high < predicted.high
    outside = high < predicted.low or predicted.high < low
    if not inside and not outside:
        crossed = predicted.low if low <= predicted.low <= high else predicted.high
        return Finding(*numbers, "undecided", f"the interval holds {crossed:g}")
    agreed = pair[0] < pair[1] if inside else pair[1] < pair[0]
    if corrected >= LEVEL or not agreed:
        reason = f"p = {p:.2g}, {corrected:.2g} when corrected for {tests} judgements"
        return Finding(*numbers, "undecided", reason)
    if inside:
        return Finding(*numbers, "supported", f"all of the interval is {predicted}")
    return Finding(*numbers, "contradicted", f"all of the interval is {_where(predicted, high)}")


def _where(predicted: Range, high: float) -> str:
    """On which side of the range an interval lies that ends at `high`."""
    return f"below {predicted.low:g}" if high < predicted.low else f"above {predicted.high:g}"
