"""What a prediction is worth, and how sure the mean over contexts and seeds is.

Error against the target mixes two questions: the optimum of the ranking loss is itself some way off
W x (0.30 at 15 attempts on the published data). So three quantities are kept apart:

    refinement_error  1 - cos(y_hat, W x), in [0, 2]; what Wang et al. (2024) report
    regret            L_PL(y_hat) - min L_PL over the same attempts, >= 0
    agreement         cos(y_hat, gradient descent's answer), in [-1, 1]
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from icl_align.contexts import Context
from icl_align.losses import cosine, cosine_similarity, ranking_losses

QUANTITIES = ("refinement_error", "regret", "agreement")


def refinement_error(
    predictions: Float[Array, "*batch m d"], context: Context
) -> Float[Array, "*batch m"]:
    """1 - cos(y_hat, W x), in [0, 2]; 1 for a zero prediction (Wang et al. 2024)."""
    return cosine(predictions, context.target[..., None, :])


def regret(
    predictions: Float[Array, "*batch n_plus_1 d"],
    optimum: Float[Array, "*batch n_plus_1 d"],
    context: Context,
    score: str = "cosine",
) -> Float[Array, "*batch n_plus_1"]:
    """Plackett-Luce loss above the per-context minimum, which `optimum` attains.

    At least 0, as far as `optimum` is the global minimum: see `plackett_luce_optimum`.

    The ranking is that of the context's rewards as given, noise included.
    """
    attempts = jnp.arange(predictions.shape[-2])
    own = ranking_losses("plackett_luce", score, predictions, context, attempts)
    least = ranking_losses("plackett_luce", score, optimum, context, attempts)
    return own - least


def agreement(
    predictions: Float[Array, "*batch m d"], other: Float[Array, "*batch m d"]
) -> Float[Array, "*batch m"]:
    """Cosine of two learners' predictions, in [-1, 1]."""
    return cosine_similarity(predictions, other)


# ------------------------------------------------------------------------- means and intervals


class Moments(NamedTuple):
    """Sums over contexts that a mean and its interval need; batches add up."""

    count: float
    seed_means: Float[np.ndarray, "s *shape"]  # mean over contexts, for each seed
    context_squares: Float[np.ndarray, "*shape"]  # squared deviations of the mean over seeds


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
    from scipy.stats import t

    mean = moments.seed_means.mean(axis=0)
    num_seeds, count = len(moments.seed_means), moments.count
    over_contexts = moments.context_squares / (count - 1) / count
    over_seeds = np.zeros_like(mean)
    if num_seeds > 1:
        over_seeds = moments.seed_means.var(axis=0, ddof=1) / num_seeds
    variance = over_contexts + over_seeds
    parts = over_contexts**2 / (count - 1) + over_seeds**2 / max(num_seeds - 1, 1)
    freedom = np.where(parts > 0, variance**2 / np.where(parts > 0, parts, 1), count - 1)
    half = t.ppf(0.5 + confidence / 2, freedom) * np.sqrt(variance)
    return mean, mean - half, mean + half
