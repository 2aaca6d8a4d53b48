"""The judge: from one number a seed to a verdict, by a rule fixed before the runs.

A judgement predicts that an effect lies in an open range (a, b). Of the effect's values, one a seed
and paired, two one-sided tests ask

    inside:   is the mean both above a and below b?     p_in  = max of the two tests' p
    outside:  is it below a, or above b?                p_out = min of the two tests' p, times the
                                                               number of finite ends

A test's p is the larger of Student's and of the studentized bootstrap's (Efron and Tibshirani
1993). Student's errs where values are skewed: of 8 exponential ones 11 samples in 100 are called
far from their mean, by the larger of both 5. Far out it errs still, a third as often as Student's:
`python -m experiments simulate` says how often.

p = 2 min(p_in, p_out) is corrected after Holm (1979) within its family. Primary judgements, one a
claim, share an error rate of 0.04; exploratory ones, all others, 0.01; so of Gaussian values any
wrong verdict has a probability of 0.05 at most. The verdict is

    supported      corrected p below the family's level by p_in, and all of the 95% interval inside
    contradicted   the same by p_out, and all of the interval outside
    undecided      otherwise, with fewer than 8 seeds, or if no run that is compared has learned
                   anything: untrained networks are all alike
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from experiments.claim import Range
from icl_align.statistics import rounds_to_convergence

PRIMARY_LEVEL, EXPLORATORY_LEVEL = 0.04, 0.01
LEAST_SEEDS = 8  # of fewer the bootstrap, with samples of one value, has no small p
RESAMPLES = 39_999
COURSES = 3_999  # resampled, for where they settle
ROUNDING = 1e-12

Values = Float[np.ndarray, " seeds"]


class Finding(NamedTuple):
    """What the judge says of one effect."""

    mean: float
    low: float  # 95% interval of the mean over seeds
    high: float
    p_value: float  # two-sided, uncorrected
    corrected: float  # after Holm, within its family
    verdict: str  # supported, contradicted or undecided
    reason: str


@functools.lru_cache
def _draws(seeds: int) -> Int[np.ndarray, "r seeds"]:
    return np.random.default_rng(0).integers(seeds, size=(RESAMPLES, seeds), dtype=np.int16)


def studentized(values: Values) -> Float[np.ndarray, " r"]:
    """Student's t of every bootstrap sample against the mean of the values, in order; always the
    same for the same values.
    """
    drawn = values[_draws(len(values))]
    error = np.std(drawn, axis=1, ddof=1) / math.sqrt(len(values))
    error[error < ROUNDING * np.max(np.abs(values))] = 0  # of samples of one value
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (np.mean(drawn, axis=1) - np.mean(values)) / error
    return np.sort(np.nan_to_num(t, nan=0.0, posinf=np.inf, neginf=-np.inf))


def interval(values: Values, confidence: float = 0.95) -> tuple[float, float]:
    """The studentized bootstrap's interval of the mean; of fewer than 8 values Student's, and where
    so many values are alike that an end of the bootstrap's is infinite.
    """
    mean = float(np.mean(values))
    if len(values) < 2 or np.ptp(values) == 0:
        return mean, mean
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    tail = (1 - confidence) / 2
    by_student = float(stats.t.isf(tail, len(values) - 1))
    low, high = -by_student, by_student
    if len(values) >= LEAST_SEEDS:
        ends = np.quantile(studentized(values), [tail, 1 - tail], method="nearest")
        low, high = ends if np.all(np.isfinite(ends)) else (low, high)
    return mean - float(high) * error, mean - float(low) * error


def settling(curves: Float[np.ndarray, "seeds t"]) -> tuple[int, int, int]:
    """Index from which the mean over seeds stays near its last (`rounds_to_convergence`), and the
    ends of 95% of bootstrap samples.
    """
    [settled] = rounds_to_convergence(curves.mean(axis=0, keepdims=True))
    of_samples = rounds_to_convergence(curves[_draws(len(curves))[:COURSES]].mean(axis=1))
    low, high = np.quantile(of_samples, [0.025, 0.975], method="nearest")
    return int(settled), int(low), int(high)


def _one_sided(values: Values, bound: float) -> tuple[float, float]:
    """The p of "the mean is above the bound", and of "it is below"."""
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    t, freedom = (np.mean(values) - bound) / error, len(values) - 1
    drawn = studentized(values)
    as_large = RESAMPLES - np.searchsorted(drawn, t, side="left")
    as_small = np.searchsorted(drawn, t, side="right")
    return (
        max(float(stats.t.sf(t, freedom)), (1 + int(as_large)) / (RESAMPLES + 1)),
        max(float(stats.t.cdf(t, freedom)), (1 + int(as_small)) / (RESAMPLES + 1)),
    )


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


class Family(NamedTuple):
    """Judgements that are corrected among themselves.

    Attributes:
      level: the chance of any wrong verdict in it, at most.
      tests: how many are registered.
    """

    level: float
    tests: int


class Measured(NamedTuple):
    """An effect as the runs gave it."""

    values: Values | None  # one a seed; None where a run is missing
    predicted: Range
    learned: bool = True  # whether any of the runs it compares has

    def usable(self) -> bool:
        """Whether it can be tested."""
        enough = self.values is not None and len(self.values) >= 2
        return enough and self.learned and bool(np.ptp(self.values) > 0)  # NaN is not above 0


def judge(effects: Sequence[Measured], family: Family) -> list[Finding]:
    """A finding for each effect of a family.

    Args:
      effects: what was measured, of some of the family.
      family: with at least `len(effects)` tests.
    """
    pairs = [
        p_values(effect.values, effect.predicted) if effect.usable() else (1.0, 1.0)
        for effect in effects
    ]
    two_sided = [min(1.0, 2 * min(pair)) for pair in pairs]
    corrected = holm(two_sided, family.tests)
    rows = zip(effects, pairs, two_sided, corrected, strict=True)
    return [_finding(*row, family) for row in rows]


def _finding(
    effect: Measured,
    pair: tuple[float, float],
    p: float,
    corrected: float,
    family: Family,
) -> Finding:
    nothing = (math.nan,) * 3
    values, predicted = effect.values, effect.predicted
    if values is None:
        return Finding(*nothing, 1.0, 1.0, "undecided", "a run is missing")
    if not np.all(np.isfinite(values)):
        return Finding(
            *nothing,
            1.0,
            1.0,
            "undecided",
            "a seed of one of the runs diverged, or gave no such number",
        )
    mean, (low, high) = float(np.mean(values)), interval(values)
    numbers = (mean, low, high, p, corrected)
    if len(values) < LEAST_SEEDS:
        reason = f"{len(values)} seeds are fewer than {LEAST_SEEDS}"
        return Finding(*numbers, "undecided", reason)
    if np.ptp(values) == 0:
        return Finding(*numbers, "undecided", "all seeds gave the same number")
    if not effect.learned:
        return Finding(*numbers, "undecided", "none of the compared runs has learned")
    inside = predicted.low < low and high < predicted.high
    outside = high < predicted.low or predicted.high < low
    if not inside and not outside:
        crossed = predicted.low if low <= predicted.low <= high else predicted.high
        return Finding(*numbers, "undecided", f"the interval holds {crossed:g}")
    agreed = pair[0] < pair[1] if inside else pair[1] < pair[0]
    if corrected >= family.level or not agreed:
        reason = f"p = {p:.2g}, corrected for {family.tests} judgements {corrected:.3g}"
        reason += f", not below {family.level:g}" if corrected >= family.level else ""
        return Finding(*numbers, "undecided", reason)
    if inside:
        return Finding(*numbers, "supported", f"all of the interval is {predicted}")
    return Finding(*numbers, "contradicted", f"all of the interval is {_where(predicted, high)}")


def _where(predicted: Range, high: float) -> str:
    """On which side of the range an interval lies that ends at `high`."""
    return f"below {predicted.low:g}" if high < predicted.low else f"above {predicted.high:g}"
