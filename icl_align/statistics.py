"""Means over contexts and seeds, and how sure they are."""

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
    return mean, mean - half, mean + half
