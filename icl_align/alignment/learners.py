"""Learners that need no training.

Every learner maps a Context to predictions [..., N+1, d]; row n is its answer after n attempts, and
row 0 sees the query alone. The trained transformer has the same signature.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from icl_align.alignment.contexts import Context, Stream
from icl_align.alignment.losses import SCORE_FUNCTIONS, normalize, ranking, ranking_losses
from icl_align.alignment.options import INITIAL_POLICIES, OPTIMIZERS, GradientDescentConfig
from icl_align.config import implemented

NUM_DIRECTIONS = 128  # from which the search for the optimum starts, beside the attempts
FACTORS = 8  # whose product is taken at once; each is below 1 + 8 N for N attempts

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


def gradient_descent_steps(
    config: GradientDescentConfig, reward_noise: Float[Array, ""] | float
) -> Int[Array, ""]:
    """Steps at reward noise p: int(50 - 25 p) with the published numbers."""
    fewer = (config.steps - config.steps_at_full_noise) * jnp.asarray(reward_noise)
    return jnp.floor(config.steps - fewer).astype(int)


class _Newton(NamedTuple):
    y: Float[Array, "*batch d"]
    loss: Float[Array, "*batch"]
    gradient: Float[Array, "*batch d"]
    hessian: Float[Array, "*batch d d"]
    unfinished: Bool[Array, "*batch"]
    damping: Float[Array, "*batch"]
    iteration: Int[Array, ""]


def plackett_luce_optimum(
    context: Context, score: str = "cosine", *, max_iterations: int = 40, tolerance: float = 1e-4
) -> Predictions:
    """The response that minimises the Plackett-Luce loss of the attempts seen so far.

    A policy W can send one query anywhere, so minimising over W is minimising over the response.
    Scores are linear in it up to a common shift, s_j = a_j.y + c_j, so the loss is a sum of
    log-sum-exps of linear forms with

        gradient  sum_i ( m_i - a_i ),   Hessian  sum_i ( sum_j beta_ij a_j a_j^T - m_i m_i^T ),
        m_i = sum_j beta_ij a_j,         beta_i. = softmax of s over i and what ranks below it.

    Cosine scores: y on the unit sphere, where the loss has several local minima once rewards are
    noisy. The best of many directions is refined by damped Newton steps in the tangent space;
    the global minimum is missed in fewer than 1% of contexts (0.1% at the published d = 5).

    Negative squared distance: damped Newton steps in space, where the loss is convex. Its infimum
    is reached only at infinity when some response ranks the attempts without error (always so on
    the published data); the steps then stop where the gradient falls below the tolerance.

    Where the loss is flat the best attempt is kept: row 1 is the first attempt and row 0 is zero.
    `optimality_gap` checks the result.

    Args:
      context: any leading axes.
      score: as in `losses.response_scores`.
      max_iterations: of the damped Newton method.
      tolerance: on the gradient norm; for cosines relative to the norm of its terms m_i - a_i, for
        distances to the spread of the attempts.
    """
    n = context.rewards.shape[-1]
    order, below = ranking(context.rewards)
    responses = jnp.take_along_axis(context.responses, order[..., None], axis=-2)
    on_sphere = SCORE_FUNCTIONS[score].are_cosines
    a = normalize(responses) if on_sphere else 2 * responses
    c = jnp.zeros(a.shape[:-1], a.dtype) if on_sphere else -jnp.sum(responses**2, axis=-1)
    place = jnp.arange(n)
    attempts = jnp.arange(n + 1)
    seen = order[..., None, :] < attempts[:, None]  # [..., m, n]
    # Place i competes with itself and with what ranks below it.
    rivals = (place == place[:, None]) | (place >= below[..., :, None])  # [..., i, j]
    picks = _picks_of_cosines if on_sphere else _picks

    def derivatives(y):
        """Loss, gradient, Hessian and "unfinished" at y [..., m, d]; Riemannian on the sphere."""
        s = y @ jnp.swapaxes(a, -1, -2) + c[..., None, :]
        loss, excess, means = picks(s, a, rivals, seen)
        gradient = (excess - seen) @ a
        hessian = _second_moment(excess, a) - jnp.swapaxes(means, -1, -2) @ means
        if on_sphere:
            radial = jnp.sum(y * gradient, axis=-1)
            gradient = gradient - radial[..., None] * y
            # Both sides projected on the tangent space, then y y^T so that it can be inverted.
            hy = (hessian @ y[..., None])[..., 0]
            outer = (
                y[..., :, None] * (hy - 0.5 * jnp.sum(y * hy, -1, keepdims=True) * y)[..., None, :]
            )
            hessian = hessian - outer - jnp.swapaxes(outer, -1, -2)
            # The sphere's curvature counts only where it helps, so that no step heads for a saddle.
            curvature = jnp.maximum(-radial, 0)[..., None, None]
            radial_part = y[..., :, None] * y[..., None, :]
            identity = jnp.eye(y.shape[-1], dtype=y.dtype)
            hessian += curvature * (identity - radial_part) + radial_part
        if on_sphere:
            terms = jnp.where(seen[..., None], means - a[..., None, :, :], 0)
            scale = jnp.sqrt(jnp.sum(terms**2, axis=(-2, -1)))
        else:  # the terms may vanish with the loss; how far apart the attempts are does not
            centre = (seen @ a) / jnp.maximum(attempts, 1)[:, None]
            distances = jnp.linalg.norm(a[..., None, :, :] - centre[..., None, :], axis=-1)
            scale = jnp.max(jnp.where(seen, distances, 0), axis=-1)
        rounding = 16 * jnp.finfo(loss.dtype).eps * jnp.sqrt(attempts)
        enough = jnp.maximum(tolerance * scale, rounding)
        return loss, gradient, hessian, jnp.linalg.norm(gradient, axis=-1) > enough

    def step(state: _Newton) -> _Newton:
        identity = jnp.eye(state.y.shape[-1], dtype=state.y.dtype)
        damped = state.hessian + state.damping[..., None, None] * identity
        move = jnp.linalg.solve(damped, state.gradient[..., None])[..., 0]
        y = normalize(state.y - move) if on_sphere else state.y - move
        loss, gradient, hessian, unfinished = derivatives(y)
        # Near the optimum the loss is flat to rounding: there a smaller gradient decides.
        slack = 8 * jnp.finfo(loss.dtype).eps * (1 + jnp.abs(state.loss))
        smaller = jnp.sum(gradient**2, axis=-1) < jnp.sum(state.gradient**2, axis=-1)
        better = (loss < state.loss - slack) | ((loss <= state.loss + slack) & smaller)
        better &= state.unfinished  # a finished problem rests, whatever the others of the batch do
        damping = jnp.where(better, state.damping / 8, state.damping * 8)
        return _Newton(
            jnp.where(better[..., None], y, state.y),
            jnp.where(better, loss, state.loss),
            jnp.where(better[..., None], gradient, state.gradient),
            jnp.where(better[..., None, None], hessian, state.hessian),
            jnp.where(better, unfinished, state.unfinished),
            jnp.clip(damping, 1e-9, 1e9),
            state.iteration + 1,
        )

    y = best_attempt(context)
    if on_sphere:
        y = _best_direction(normalize(y), a, below, seen)
    # The first step stays where it is, whatever the loss there: derivatives are compiled once.
    shape, d = y.shape[:-1], y.shape[-1]
    state = _Newton(
        y=y,
        loss=jnp.full(shape, 1e30, y.dtype),
        gradient=jnp.zeros_like(y),
        hessian=jnp.zeros((*y.shape, d), y.dtype),
        unfinished=jnp.ones(shape, bool),
        damping=jnp.full(shape, 8e-2, y.dtype),
        iteration=jnp.array(0),
    )

    def goes_on(state: _Newton):
        return (state.iteration <= max_iterations) & jnp.any(state.unfinished)

    return jax.lax.while_loop(goes_on, step, state).y


def _picks(
    scores: Float[Array, "*batch m n"],
    a: Float[Array, "*batch n d"],
    rivals: Bool[Array, "*batch n n"],
    seen: Bool[Array, "*batch m n"],
) -> tuple[Float[Array, "*batch m"], Float[Array, "*batch m n"], Float[Array, "*batch m n d"]]:
    """Loss; how often each place is expected to be picked; the mean m_i of a where place i is.

    Args:
      scores: by place.
      a: their gradients.
      rivals: entry [i, j] says whether j competes where i is picked.
      seen: the places that count.
    """
    compete = rivals[..., None, :, :] & seen[..., None, :]  # [..., m, i, j]
    logits = jnp.where(compete, scores[..., None, :], -jnp.inf)
    z = jnp.where(seen, jax.nn.logsumexp(logits, axis=-1), 0)
    beta = jnp.where(seen[..., None], jnp.exp(logits - z[..., None]), 0)
    loss = jnp.sum(jnp.where(seen, z - scores, 0), axis=-1)
    return loss, jnp.sum(beta, axis=-2), beta @ a[..., None, :, :]


def _picks_of_cosines(
    scores: Float[Array, "*batch m n"],
    a: Float[Array, "*batch n d"],
    rivals: Bool[Array, "*batch n n"],
    seen: Bool[Array, "*batch m n"],
) -> tuple[Float[Array, "*batch m"], Float[Array, "*batch m n"], Float[Array, "*batch m n d"]]:
    """As `_picks`, by sums of exponentials that need no care: no array over pairs and prefixes."""
    n, d = a.shape[-2:]
    weights = jnp.where(seen, jnp.exp(scores), 0)
    among = rivals.astype(a.dtype)
    sums = jnp.where(seen, weights @ jnp.swapaxes(among, -1, -2), 1)
    each = jnp.moveaxis(among[..., None] * a[..., None, :, :], -2, -3)  # [..., j, i, d]
    means = (weights @ each.reshape(*each.shape[:-2], n * d)).reshape(*sums.shape, d)
    means = jnp.where(seen[..., None], means / sums[..., None], 0)
    loss = jnp.sum(jnp.where(seen, jnp.log(sums) - scores, 0), axis=-1)
    return loss, weights * ((seen / sums) @ among), means


def _second_moment(
    weights: Float[Array, "*batch m n"], a: Float[Array, "*batch n d"]
) -> Float[Array, "*batch m d d"]:
    """sum_j w_j a_j a_j^T."""
    outer = a[..., :, None] * a[..., None, :]
    flat = weights @ outer.reshape(*outer.shape[:-2], -1)
    return flat.reshape(*weights.shape[:-1], *outer.shape[-2:])


def _best_direction(
    default: Float[Array, "*batch n_plus_1 d"],
    a: Float[Array, "*batch n d"],
    below: Int[Array, "*batch n"],
    seen: Bool[Array, "*batch n_plus_1 n"],
) -> Predictions:
    """The direction of lowest loss among many; `default` where the loss is flat.

    Candidates are the attempts seen, their opposites, and NUM_DIRECTIONS fixed ones all around. The
    attempts are tilted a little out of their span: where they span a subspace and the minimum in
    space lies inside the ball, the minimum on the sphere leaves that subspace, and a start inside
    it would never do so.
    """
    n, d = a.shape[-2:]
    tilt, around = jnp.split(
        jax.random.normal(jax.random.key(0), (2 * n + NUM_DIRECTIONS, d), a.dtype), [2 * n]
    )
    around = jnp.broadcast_to(normalize(around), (*a.shape[:-2], NUM_DIRECTIONS, d))
    near = normalize(jnp.concatenate([a, -a], axis=-2) + 0.1 * tilt)
    candidates = jnp.concatenate([near, around], axis=-2)
    losses = _losses_of_directions(candidates @ jnp.swapaxes(a, -1, -2), below, seen)
    most, least = jnp.max(losses, axis=-1), jnp.min(losses, axis=-1)
    flat = most - least <= 16 * jnp.finfo(losses.dtype).eps * (1 + most)
    known = jnp.ones((*seen.shape[:-1], NUM_DIRECTIONS), bool)
    known = jnp.concatenate([seen, seen, known], axis=-1)
    best = jnp.argmin(jnp.where(known, losses, jnp.inf), axis=-1)
    best = jnp.take_along_axis(candidates, best[..., None], axis=-2)
    return jnp.where(flat[..., None], default, best)


def _losses_of_directions(
    cosines: Float[Array, "*batch c n"],
    below: Int[Array, "*batch n"],
    seen: Bool[Array, "*batch m n"],
) -> Float[Array, "*batch m c"]:
    """Plackett-Luce loss of every direction after every number of attempts.

    It is log prod_i ( 1 + sum_{j ranked below i} exp(s_j - s_i) ), with one logarithm for several
    factors.

    Args:
      cosines: of the attempts by place with each direction, in [-1, 1]: no factor overflows.
      below: for each place the first place ranked below it.
      seen: the places that count.
    """
    n, padding = below.shape[-1], -below.shape[-1] % FACTORS

    def by_place(array):  # the last first, in groups of FACTORS; what is added counts for nothing
        array = jnp.flip(jnp.moveaxis(array, -1, 0), 0)
        array = jnp.pad(array, [(0, padding)] + [(0, 0)] * (array.ndim - 1))
        return array.reshape(-1, FACTORS, *array.shape[1:])

    ends = by_place(below == jnp.arange(n) + 1)[..., None, None]  # nothing of equal rank after it
    weights, inverse = by_place(jnp.exp(cosines)), by_place(jnp.exp(-cosines))
    counts = by_place(seen)

    def several(carry, group):
        total, tail, equal = carry
        product = jnp.ones_like(total)
        for end, weight, inverted, count in zip(*group, strict=True):
            tail = jnp.where(end, tail + equal, tail)
            equal = jnp.where(end, 0, equal)
            factor = 1 + tail * inverted[..., None, :]
            product = product * jnp.where(count[..., None], factor, 1)
            equal = equal + jnp.where(count[..., None], weight[..., None, :], 0)
        return (total + jnp.log(product), tail, equal), None

    zero = jnp.zeros((*seen.shape[:-1], cosines.shape[-2]), cosines.dtype)
    (losses, _, _), _ = jax.lax.scan(several, (zero,) * 3, (ends, weights, inverse, counts))
    return losses


def optimality_gap(
    predictions: Predictions, context: Context, score: str = "cosine"
) -> Float[Array, "*batch n_plus_1"]:
    """Norm of the loss's gradient at each prediction scaled to norm 1 (cosine) or as it is.

    0 at an optimum. It uses the loss itself, and nothing of the solver.
    """
    attempts = jnp.arange(context.rewards.shape[-1] + 1)
    if SCORE_FUNCTIONS[score].are_cosines:
        predictions = normalize(predictions)

    def total(predictions):
        return jnp.sum(ranking_losses("plackett_luce", score, predictions, context, attempts))

    gradient = jnp.where(attempts[:, None] > 1, jax.grad(total)(predictions), 0)
    return jnp.linalg.norm(gradient, axis=-1)
