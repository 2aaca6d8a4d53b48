"""Learners that need no training.

Every learner maps a Context to predictions [..., N+1, d]; row n is its answer after n attempts, and
row 0 sees the query alone. The trained transformer has the same signature.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from icl_align.alignment.contexts import Context, Stream
from icl_align.alignment.losses import ranking_losses
from icl_align.alignment.options import (
    INITIAL_POLICIES,
    OPTIMIZERS,
    RANKING_LOSSES,
    GradientDescentConfig,
    Options,
)
from icl_align.config import implemented

Predictions = Float[Array, "*batch n_plus_1 d"]


def _seen(num_responses: int) -> Bool[Array, "n_plus_1 n"]:
    """Entry [n, i] says whether the prediction after n attempts may read attempt i (from 0)."""
    return jnp.arange(num_responses) < jnp.arange(num_responses + 1)[:, None]


def best_attempt(context: Context) -> Predictions:
    """The response of highest reward so far, the earlier of equals; the zero vector at first."""
    n = context.rewards.shape[-1]
    seen = jnp.where(_seen(n), context.rewards[..., None, :], -jnp.inf)
    picked = jax.nn.one_hot(jnp.argmax(seen, axis=-1), n, dtype=context.responses.dtype)
    return (picked * _seen(n)) @ context.responses


def weighted_average(context: Context) -> Predictions:
    """Responses averaged with their rewards (>= 0) as weights; the zero vector without any."""
    weights = context.rewards[..., None, :] * _seen(context.rewards.shape[-1])
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return (weights / jnp.where(total > 0, total, 1)) @ context.responses


def least_squares(context: Context) -> Predictions:
    """Regression of the response on (r, 1 - r), read off at r = 1.

    It never ranks: y_i = r_i W x + (1 - r_i) W- x is exactly of this form, so on the published data
    two attempts give W x. Where the rewards seen are all equal, the mean response.
    """
    seen = _seen(context.rewards.shape[-1])
    count = jnp.maximum(jnp.sum(seen, axis=-1, keepdims=True), 1)
    rewards = context.rewards[..., None, :]
    mean_reward = jnp.sum(rewards * seen, axis=-1, keepdims=True) / count
    centred = (rewards - mean_reward) * seen
    variance = jnp.sum(centred**2, axis=-1, keepdims=True)
    # Equal rewards leave a variance of rounding errors, which says nothing about the slope.
    rounding = jnp.finfo(variance.dtype).eps * jnp.max(
        jnp.abs(rewards * seen), axis=-1, keepdims=True
    )
    varies = variance > count * (4 * rounding) ** 2
    slope_weights = jnp.where(varies, centred / jnp.where(varies, variance, 1), 0)
    return (seen / count + (1 - mean_reward) * slope_weights) @ context.responses


def _as_torch(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "m d d"]:
    # PyTorch's Linear(d, d, bias=False).
    return jax.random.uniform(key, shape, minval=-1) / jnp.sqrt(shape[-1])


POLICY_DRAWS = implemented(
    INITIAL_POLICIES, {"torch": _as_torch, "zero": lambda key, shape: jnp.zeros(shape)}
)
OPTIMIZER_MAKERS = implemented(OPTIMIZERS, {"adam": optax.adam, "sgd": optax.sgd})


def gradient_descent(
    context: Context,
    config: GradientDescentConfig,
    keys: Key[Array, "*batch"],
    *,
    loss: str = "plackett_luce",
    score: str = "cosine",
    steps: Int[Array, ""] | int | None = None,
    attempts: Int[Array, " m"] | None = None,
) -> Float[Array, "*batch m d"]:
    """Gradient descent of a linear policy W on the ranking loss of the attempts seen so far.

    Each context and each number of attempts has a policy of its own, drawn as PyTorch draws
    Linear(d, d, bias=False): U(-1, 1) / sqrt(d). With the default configuration this is the
    baseline of Wang et al. (2024): Adam 0.1, 50 steps.

    Args:
      context: any leading axes.
      config: optimiser, rate, steps and initial policy.
      keys: one key for each context.
      loss: "plackett_luce" or "bradley_terry".
      score: as in `losses.response_scores`.
      steps: overrides `config.steps`; may be traced.
      attempts: the numbers of attempts after which answers are wanted; 0..N by default.
    """
    n, d = context.responses.shape[-2:]
    attempts = jnp.arange(n + 1) if attempts is None else attempts
    shape = (n + 1, d, d)
    draw = jnp.vectorize(
        lambda key: POLICY_DRAWS[config.init](Stream.LEARNER.of(key), shape),
        signature="()->(m,d,e)",
    )
    policies = draw(keys).astype(context.query.dtype)[..., attempts, :, :]
    optimizer = OPTIMIZER_MAKERS[config.optimizer](config.learning_rate)

    def answer(policies):
        return jnp.einsum("...mij,...j->...mi", policies, context.query)

    def total_loss(policies):  # a sum of independent problems: their gradients do not mix
        return jnp.sum(ranking_losses(loss, score, answer(policies), context, attempts))

    def step(_, carry):
        policies, state = carry
        updates, state = optimizer.update(jax.grad(total_loss)(policies), state)
        return optax.apply_updates(policies, updates), state

    steps = config.steps if steps is None else steps
    policies, _ = jax.lax.fori_loop(0, steps, step, (policies, optimizer.init(policies)))
    return answer(policies)


def descent_of(
    config: Options,
    contexts: Context,
    keys: Key[Array, "*batch"],
    reward_noise: Float[Array, ""] | float,
    attempts: Int[Array, " m"] | None = None,
) -> Float[Array, "*batch m d"]:
    """Gradient descent as the options of a run have it: on its own loss if that ranks.

    Args:
      config: options.
      contexts: any leading axes.
      keys: one key for each context.
      reward_noise: of the contexts, which says how many steps.
      attempts: as in `gradient_descent`.
    """
    ranks = config.loss.name in RANKING_LOSSES
    return gradient_descent(
        contexts,
        config.gradient_descent,
        keys,
        loss=config.loss.name if ranks else "plackett_luce",
        score=config.loss.score,
        steps=gradient_descent_steps(config.gradient_descent, reward_noise),
        attempts=attempts,
    )


def gradient_descent_steps(
    config: GradientDescentConfig, reward_noise: Float[Array, ""] | float
) -> Int[Array, ""]:
    """Steps at reward noise p: int(50 - 25 p) with the published numbers."""
    fewer = (config.steps - config.steps_at_full_noise) * jnp.asarray(reward_noise)
    return jnp.floor(config.steps - fewer).astype(int)
