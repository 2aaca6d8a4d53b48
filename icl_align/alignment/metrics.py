"""What a prediction is worth.

Error against the target mixes two questions: the optimum of the ranking loss is itself some way off
W x (0.30 at 15 attempts on the published data). So three quantities are kept apart:

    refinement_error  1 - cos(y_hat, W x), in [0, 2]; what Wang et al. (2024) report
    regret            L_PL(y_hat) - min L_PL over the same attempts, >= 0
    agreement         cos(y_hat, gradient descent's answer), in [-1, 1]
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from icl_align.alignment.contexts import Context
from icl_align.alignment.losses import cosine, cosine_similarity, ranking_losses


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
