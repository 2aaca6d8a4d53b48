"""The response that minimises the Plackett-Luce loss: a learner, and what regret is measured by."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from icl_align.alignment.contexts import Context
from icl_align.alignment.learners import Predictions, best_attempt
from icl_align.alignment.losses import SCORE_FUNCTIONS, normalize, ranking, ranking_losses

NUM_DIRECTIONS = 128  # from which the search for the optimum starts, beside the attempts
FACTORS = 8  # whose product is taken at once; each is below 1 + 8 N for N attempts


class _Newton(NamedTuple):
    y: Float[Array, "*batch d m"]
    loss: Float[Array, "*batch m"]
    gradient: Float[Array, "*batch d m"]
    hessian: Float[Array, "*batch d d m"]
    unfinished: Bool[Array, "*batch m"]
    damping: Float[Array, "*batch m"]
    iteration: Int[Array, ""]


def plackett_luce_optimum(
    context: Context,
    score: str = "cosine",
    *,
    attempts: Int[Array, " m"] | None = None,
    max_iterations: int = 40,
    tolerance: float = 1e-4,
) -> Float[Array, "*batch m d"]:
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
      attempts: the numbers of attempts after which answers are wanted; 0..N by default.
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
    attempts = jnp.arange(n + 1) if attempts is None else attempts
    # Here and below the numbers of attempts come last, so that whatever is small is vectorised.
    seen = order[..., :, None] < attempts  # [..., n, m]
    # Place i competes with itself and with what ranks below it.
    rivals = (place == place[:, None]) | (place >= below[..., :, None])  # [..., i, j]
    picks = _picks_of_cosines(a, rivals, seen) if on_sphere else _picks(a, rivals, seen)
    columns = _transposed(a)
    outer = columns[..., :, None, :] * columns[..., None, :, :]
    outer = outer.reshape(*outer.shape[:-3], -1, n)  # [..., d d, n]
    identity = jnp.eye(a.shape[-1], dtype=a.dtype)[..., None]

    def derivatives(y):
        """Loss, gradient, Hessian and "unfinished" at y [..., d, m]; Riemannian on the sphere."""
        s = a @ y + c[..., None]
        loss, excess, means, back = picks(s)
        gradient = columns @ (excess - seen)
        second = (outer @ excess).reshape(*y.shape[:-1], *y.shape[-2:])
        hessian = second - _through(columns, back)
        if on_sphere:
            radial = jnp.sum(y * gradient, axis=-2)
            gradient = gradient - radial[..., None, :] * y
            # Both sides projected on the tangent space, then y y^T so that it can be inverted.
            hy = jnp.sum(hessian * y[..., None, :, :], axis=-2)
            hy = hy - 0.5 * jnp.sum(y * hy, axis=-2, keepdims=True) * y
            both = y[..., :, None, :] * hy[..., None, :, :]
            curvature = jnp.maximum(-radial, 0)[..., None, None, :]
            radial_part = y[..., :, None, :] * y[..., None, :, :]
            hessian = hessian - both - jnp.swapaxes(both, -2, -3)
            hessian += curvature * (identity - radial_part) + radial_part
            terms = jnp.where(seen[..., :, None, :], means - a[..., None], 0)
            scale = jnp.sqrt(jnp.sum(terms**2, axis=(-3, -2)))
        else:  # the terms may vanish with the loss; how far apart the attempts are does not
            centre = (jnp.swapaxes(a, -1, -2) @ seen) / jnp.maximum(attempts, 1)
            distances = jnp.linalg.norm(a[..., None] - centre[..., None, :, :], axis=-2)
            scale = jnp.max(jnp.where(seen, distances, 0), axis=-2)
        rounding = 16 * jnp.finfo(loss.dtype).eps * jnp.sqrt(attempts)
        enough = jnp.maximum(tolerance * scale, rounding)
        return loss, gradient, hessian, jnp.linalg.norm(gradient, axis=-2) > enough

    def step(state: _Newton) -> _Newton:
        damped = state.hessian + state.damping[..., None, None, :] * identity
        move = _solve(damped, state.gradient)
        y = state.y - move
        y = jnp.swapaxes(normalize(jnp.swapaxes(y, -1, -2)), -1, -2) if on_sphere else y
        loss, gradient, hessian, unfinished = derivatives(y)
        rounding = jnp.finfo(loss.dtype).eps * (1 + jnp.abs(state.loss))
        # Near the optimum the loss is flat to rounding: there a smaller gradient decides.
        slack = 8 * rounding
        smaller = jnp.sum(gradient**2, axis=-2) < jnp.sum(state.gradient**2, axis=-2)
        better = (loss < state.loss - slack) | ((loss <= state.loss + slack) & smaller)
        better &= state.unfinished  # a finished problem rests, whatever the others of the batch do
        # Where a refused step promised far less than rounding, shorter ones do so too. (Not
        # for distances, whose losses round by the scores, and fall further far out.)
        promised = jnp.sum(move * state.gradient, axis=-2)
        hopeless = (16 * promised <= rounding) & on_sphere
        damping = jnp.where(better, state.damping / 8, state.damping * 8)
        return _Newton(
            jnp.where(better[..., None, :], y, state.y),
            jnp.where(better, loss, state.loss),
            jnp.where(better[..., None, :], gradient, state.gradient),
            jnp.where(better[..., None, None, :], hessian, state.hessian),
            jnp.where(better, unfinished, state.unfinished & ~hopeless),
            jnp.clip(damping, 1e-9, 1e9),
            state.iteration + 1,
        )

    y = best_attempt(context)[..., attempts, :]
    if on_sphere:
        y = _best_direction(normalize(y), a, below, jnp.swapaxes(seen, -1, -2))
    y = jnp.swapaxes(y, -1, -2)
    # The first step stays where it is, whatever the loss there: derivatives are compiled once.
    shape, d = (*y.shape[:-2], y.shape[-1]), y.shape[-2]
    state = _Newton(
        y=y,
        loss=jnp.full(shape, 1e30, y.dtype),
        gradient=jnp.zeros_like(y),
        hessian=jnp.broadcast_to(identity, (*y.shape[:-2], d, *y.shape[-2:])),
        unfinished=jnp.ones(shape, bool),
        damping=jnp.full(shape, 8e-2, y.dtype),
        iteration=jnp.array(0),
    )

    def goes_on(state: _Newton):
        return (state.iteration <= max_iterations) & jnp.any(state.unfinished)

    return jnp.swapaxes(jax.lax.while_loop(goes_on, step, state).y, -1, -2)


def _solve(
    matrices: Float[Array, "*batch d d m"], vectors: Float[Array, "*batch d m"]
) -> Float[Array, "*batch d m"]:
    """Solutions of positive definite systems, by Gauss-Jordan elimination.

    They need no search for pivots, so that all go through together; LAPACK takes one by one.
    """
    d = vectors.shape[-2]

    def eliminate(k, rows):
        row = jnp.take(rows, k, axis=-3)
        row = row / jnp.take(row, k, axis=-2)[..., None, :]
        others = rows - jnp.take(rows, k, axis=-2)[..., None, :] * row[..., None, :, :]
        here = (jnp.arange(d) == k)[:, None, None]
        return jnp.where(here, row[..., None, :, :], others)

    rows = jnp.concatenate([matrices, vectors[..., None, :]], axis=-2)  # [..., d, d + 1, m]
    return jax.lax.fori_loop(0, d, eliminate, rows)[..., d, :]


class _Picks(NamedTuple):
    """Attempts picked place by place, each among its rivals, with probability beta_ij.

    Attributes:
      loss: minus the logarithm of the probability of what was picked.
      excess: sum_i beta_ij, how often place j is expected to be picked.
      means: m_i = sum_j beta_ij a_j.
      back: sum_i beta_ij m_i, so that sum_j a_j back_j^T = sum_i m_i m_i^T.
    """

    loss: Float[Array, "*batch m"]
    excess: Float[Array, "*batch n m"]
    means: Float[Array, "*batch n d m"]
    back: Float[Array, "*batch n d m"]


def _picks(
    a: Float[Array, "*batch n d"],
    rivals: Bool[Array, "*batch n n"],
    seen: Bool[Array, "*batch n m"],
) -> Callable[[Float[Array, "*batch n m"]], _Picks]:
    """What is picked, as a function of the scores by place, after each number of attempts.

    Args:
      a: the scores' gradients.
      rivals: entry [i, j] says whether j competes where i is picked.
      seen: the places that count.
    """
    compete = rivals[..., None] & seen[..., None, :, :]  # [..., i, j, m]

    def of(scores):
        logits = jnp.where(compete, scores[..., None, :, :], -jnp.inf)
        z = jnp.where(seen, jax.nn.logsumexp(logits, axis=-2), 0)
        beta = jnp.where(seen[..., None, :], jnp.exp(logits - z[..., None, :]), 0)
        loss = jnp.sum(jnp.where(seen, z - scores, 0), axis=-2)
        means = jnp.swapaxes(a, -1, -2)[..., None, :, :] @ beta
        back = jnp.einsum("...ijm,...idm->...jdm", beta, means)
        return _Picks(loss, jnp.sum(beta, axis=-3), means, back)

    return of


def _picks_of_cosines(
    a: Float[Array, "*batch n d"],
    rivals: Bool[Array, "*batch n n"],
    seen: Bool[Array, "*batch n m"],
) -> Callable[[Float[Array, "*batch n m"]], _Picks]:
    """As `_picks`, by sums of exponentials that need no care: no array over pairs and prefixes.

    beta_ij = w_j shares_i for rivals, with w_j = exp s_j, so that every sum is a product with the
    mask of rivals.
    """
    among, to_each = rivals.astype(a.dtype), _transposed(rivals.astype(a.dtype))

    def of(scores):
        weights = jnp.where(seen, jnp.exp(scores), 0)
        sums = jnp.where(seen, among @ weights, 1)
        loss = jnp.sum(jnp.where(seen, jnp.log(sums) - scores, 0), axis=-2)
        shares = jnp.where(seen, 1 / sums, 0)
        means = shares[..., None, :] * _through(among, weights[..., None, :] * a[..., None])
        back = weights[..., None, :] * _through(to_each, shares[..., None, :] * means)
        return _Picks(loss, weights * (to_each @ shares), means, back)

    return of


def _transposed(matrices: Float[Array, "*batch i j"]) -> Float[Array, "*batch j i"]:
    """In memory, too: XLA would merge it into products, which it then computes more slowly."""
    return jax.lax.optimization_barrier(jnp.swapaxes(matrices, -1, -2))


def _through(
    matrix: Float[Array, "*batch i j"], arrays: Float[Array, "*batch j d m"]
) -> Float[Array, "*batch i d m"]:
    """sum_j matrix_ij arrays_j, as one product of matrices."""
    flat = matrix @ arrays.reshape(*arrays.shape[:-2], -1)
    return flat.reshape(*flat.shape[:-1], *arrays.shape[-2:])


def _best_direction(
    default: Float[Array, "*batch m d"],
    a: Float[Array, "*batch n d"],
    below: Int[Array, "*batch n"],
    seen: Bool[Array, "*batch m n"],
) -> Float[Array, "*batch m d"]:
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
    losses = _losses_of_directions(a @ jnp.swapaxes(candidates, -1, -2), below, seen)
    most, least = jnp.max(losses, axis=-1), jnp.min(losses, axis=-1)
    flat = most - least <= 16 * jnp.finfo(losses.dtype).eps * (1 + most)
    known = jnp.ones((*seen.shape[:-1], NUM_DIRECTIONS), bool)
    known = jnp.concatenate([seen, seen, known], axis=-1)
    losses = jnp.where(known, losses, jnp.inf)
    # The first of the least, as argmin's, which XLA does not vectorise.
    index = jnp.arange(losses.shape[-1])
    is_least = losses <= jnp.min(losses, axis=-1, keepdims=True)
    best = jnp.min(jnp.where(is_least, index, index.size - 1), axis=-1)
    best = jnp.take_along_axis(candidates, best[..., None], axis=-2)
    return jnp.where(flat[..., None], default, best)


def _losses_of_directions(
    cosines: Float[Array, "*batch n c"],
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
    n = below.shape[-1]
    weights = jnp.exp(cosines)
    inverse = 1 / weights
    ends = below == jnp.arange(n) + 1  # nothing of equal rank after it
    zero = jnp.zeros((*seen.shape[:-1], cosines.shape[-1]), cosines.dtype)
    losses, product, total, tail = zero, zero + 1, zero, zero
    for k in range(n - 1, -1, -1):  # unrolled: one pass through memory
        counts = seen[..., :, k, None]
        tail = jnp.where(ends[..., k, None, None], total, tail)
        factor = 1 + tail * inverse[..., None, k, :]
        product = product * jnp.where(counts, factor, 1)
        total = total + jnp.where(counts, weights[..., None, k, :], 0)
        if k % FACTORS == 0:
            losses, product = losses + jnp.log(product), zero + 1
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
