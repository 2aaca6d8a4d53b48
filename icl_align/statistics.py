"""Means over contexts and seeds, calibration errors, and how sure they are."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Moments(NamedTuple):
    """Sums over contexts that a mean and its interval need; batches add up."""

    count: float
    seed_means: Float[np.ndarray, "s *shape"]  # mean over contexts, for each seed  # noqa: F821
    context_squares: Float[np.ndarray, "*shape"]  # squared deviations of the mean over seeds


def moments(values: Float[np.ndarray, "b s *shape"]) -> Moments:
    """The moments of one value for each context and seed."""
    values = np.asarray(values, np.float64)
    over_seeds = values.mean(axis=1)
    squares = np.sum((over_seeds - over_seeds.mean(axis=0)) ** 2, axis=0)
    return Moments(float(len(values)), values.mean(axis=0), squares)


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of two disjoint samples taken together (Chan, Golub and LeVeque 1983)."""
    count = a.count + b.count
    shift = b.seed_means - a.seed_means
    squares = a.context_squares + b.context_squares
    squares = squares + shift.mean(axis=0) ** 2 * (a.count * b.count / count)
    return Moments(count, a.seed_means + shift * (b.count / count), squares)


def mean_interval(
    moments: Moments, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, low and high: a t interval over contexts and, with several seeds, over seeds too.

    Every seed is evaluated on the same contexts, so both are random effects of a crossed design:

        variance of the mean = (variance of the seeds' means) / S + (variance over contexts) / C,

    with Welch-Satterthwaite degrees of freedom. With one seed only the contexts count, and the
    interval says nothing about other seeds.
    """
    from scipy.special import stdtrit  # scipy.stats takes a second to import

    mean = moments.seed_means.mean(axis=0)
    num_seeds, count = len(moments.seed_means), moments.count
    over_contexts = moments.context_squares / (count - 1) / count
    over_seeds = np.zeros_like(mean)
    if num_seeds > 1:
        over_seeds = moments.seed_means.var(axis=0, ddof=1) / num_seeds
    variance = over_contexts + over_seeds
    parts = over_contexts**2 / (count - 1) + over_seeds**2 / max(num_seeds - 1, 1)
    freedom = np.where(parts > 0, variance**2 / np.where(parts > 0, parts, 1), count - 1)
    half = stdtrit(freedom, 0.5 + confidence / 2) * np.sqrt(variance)
    return np.asarray(mean), np.asarray(mean - half), np.asarray(mean + half)


CONVERGED_WITHIN = 0.01  # of the last mean


def rounds_to_convergence(means: Float[np.ndarray, "*any t"]) -> Float[np.ndarray, "*any"]:
    """First round from which all later means stay within 0.01 of the last.

    Where that is the last itself, nobody knows whether it would stay.
    """
    away = np.abs(means - means[..., -1:]) > CONVERGED_WITHIN
    numbers = np.arange(1, means.shape[-1] + 1)
    return np.max(away * numbers, axis=-1) * 1.0


# -------------------------------------------------------------- what is computed of pooled contexts

BINS = 10  # of confidence in [0, 1], of equal width
RANK_BINS = 20  # of uncertainty, as a share of its largest
BOOTSTRAP_GROUPS = 1024  # of contexts
RESAMPLES = 400


def calibration_error(means: Float[np.ndarray, "*b m"], count: int) -> Float[np.ndarray, "*b"]:
    """ECE = sum_b |mean over contexts of (confidence - correct) in bin b|.

    Args:
      means: over contexts of `calibration_features`, three for each bin.
      count: of contexts.
    """
    _, gap, _ = _of_bins(means, 3)
    return np.abs(gap).sum(axis=-1)


def calibration_error_corrected(
    means: Float[np.ndarray, "*b m"], count: int
) -> Float[np.ndarray, "*b"]:
    """ECE less what it would be, in expectation, of as many contexts if confidences were right.

    Then the gap of a bin has mean 0 and variance sum conf (1 - conf) / count, and its absolute
    value the mean sqrt(2 / pi) times its standard deviation. It may be negative.
    """
    _, gap, variance = _of_bins(means, 3)
    expected = np.sqrt(2 / np.pi * np.maximum(variance, 0) / count)
    return (np.abs(gap) - expected).sum(axis=-1)


def rank_calibration_error(means: Float[np.ndarray, "*b m"], count: int) -> Float[np.ndarray, "*b"]:
    """E_u |P(correct(U) >= correct(u)) - P(U <= u)|, after Huang et al. (2024): 0 where a lower
    uncertainty always means more correct answers.

    Args:
      means: over contexts of `rank_features`: for each bin of uncertainty its share, and the share
        that is in it and correct.
      count: of contexts.
    """
    share, correct = _of_bins(means, 2)
    rate = correct / np.maximum(share, 1e-12)
    better = np.where(rate[..., None, :] >= rate[..., :, None] - 1e-12, share[..., None, :], 0)
    surer = np.cumsum(share, axis=-1)
    return np.sum(share * np.abs(better.sum(axis=-1) - surer), axis=-1)


def _of_bins(means: Float[np.ndarray, "*b m"], number: int) -> Float[np.ndarray, "n *b bins"]:
    shape = *means.shape[:-1], number, means.shape[-1] // number
    return np.moveaxis(means.reshape(shape), -2, 0)


def explained_variance(means: Float[np.ndarray, "*b m"], count: int) -> Float[np.ndarray, "*b"]:
    """R^2 = 1 - mean squared error / variance of what is predicted; 0 where that does not vary.

    Args:
      means: over contexts of the squared error, of what is predicted, and of its square.
      count: of contexts.
    """
    error, first, second = np.moveaxis(means, -1, 0)
    variance = second - first**2
    there_is = variance > 1e-9
    return np.where(there_is, 1 - error / np.where(there_is, variance, 1), 0)


POOLS: dict[str, Callable[..., np.ndarray]] = {
    "calibration_error": calibration_error,
    "calibration_error_corrected": calibration_error_corrected,
    "rank_calibration_error": rank_calibration_error,
    "explained_variance": explained_variance,
}


def pooled_moments(values: Float[np.ndarray, "c s *x m"], pool: str) -> Moments:
    """The moments of a quantity of pooled contexts; see `statistic_moments`.

    Args:
      values: features of every context and seed.
      pool: a name in POOLS.
    """
    of, count = POOLS[pool], len(values)
    return statistic_moments(lambda means: of(means, count), values)


def statistic_moments(
    of: Callable[[np.ndarray], np.ndarray], values: Float[np.ndarray, "c s *x"]
) -> Moments:
    """The moments of what `of` makes of means over contexts, as if it were a mean itself.

    Its spread over contexts is that of the bootstrap, which asks for no smoothness: a
    rank-calibration error jumps where two bins change places.

    Args:
      of: means over contexts [*any, *x] -> values [*any, ...].
      values: one for each context and seed.
    """
    values = np.asarray(values, np.float64)
    groups = min(BOOTSTRAP_GROUPS, len(values))
    seed_means = np.asarray(of(values.mean(axis=0)), np.float64)
    grouped = np.stack([values[group::groups].sum(axis=0) for group in range(groups)])
    sizes = np.array([len(values[group::groups]) for group in range(groups)], float)
    times = _resamples(groups)
    sums = np.tensordot(times, grouped, axes=1)
    drawn = (times @ sizes).reshape(-1, *[1] * (sums.ndim - 1))
    found = np.asarray(of(sums / drawn), np.float64)  # [resamples, s, ...]
    spread = found.mean(axis=1).var(axis=0, ddof=1)  # of the mean over seeds
    return Moments(float(groups), seed_means, spread * groups * (groups - 1))


def _resamples(number: int) -> Float[np.ndarray, "r n"]:
    """How often each of `number` is drawn, in every resample of the bootstrap."""
    even = np.full(number, 1 / number)
    return np.random.default_rng(0).multinomial(number, even, RESAMPLES).astype(float)
