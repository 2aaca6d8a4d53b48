"""Facts of the losses: the Plackett-Luce and Bradley-Terry models, and regression."""

import doctest
import itertools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from icl_align.alignment import losses
from icl_align.alignment.contexts import Context
from icl_align.alignment.losses import (
    bradley_terry,
    cosine,
    normalize,
    plackett_luce,
    prediction_losses,
    ranking_losses,
    response_scores,
    squared,
    training_loss,
)
from icl_align.alignment.options import LossConfig

N = 6  # attempts in most tests
RANKING = {"plackett_luce": jax.jit(plackett_luce), "bradley_terry": jax.jit(bradley_terry)}
SCORES = ("cosine", "negative_squared_distance")
both_losses = pytest.mark.parametrize("loss", RANKING.values(), ids=RANKING)
quick_plackett_luce = RANKING["plackett_luce"]
with_gradient = {loss: jax.jit(jax.value_and_grad(loss)) for loss in RANKING.values()}
quick_ranking_losses = jax.jit(ranking_losses, static_argnums=(0, 1))

score_lists = st.lists(st.floats(-5, 5, width=32), min_size=N, max_size=N).map(
    lambda values: np.asarray(values, np.float32)
)
orders = st.permutations(range(N)).map(np.asarray)
tied_rewards = st.lists(st.integers(0, 3), min_size=N, max_size=N).map(
    lambda values: np.asarray(values, np.float32) / 4
)


def product_definition(scores, rewards):
    """- log prod_i exp s_tau(i) / sum_{j>=i} exp s_tau(j), as in the paper, in float64."""
    weights = np.exp(np.asarray(scores, np.float64))[np.argsort(-np.asarray(rewards))]
    return -np.log(np.prod([w / weights[i:].sum() for i, w in enumerate(weights)]))


def random_context(seed, batch=(), n=N, d=3, ties=False):
    """A context of independent normal vectors; rewards on a coarse grid where ties are wanted."""
    rng = np.random.default_rng(seed)
    rewards = rng.integers(0, 4, (*batch, n)) / 4 if ties else rng.random((*batch, n))
    query, target = rng.normal(size=(2, *batch, d))
    arrays = query, rng.normal(size=(*batch, n, d)), rewards, target
    return Context(*(jnp.asarray(array, jnp.float32) for array in arrays))


# ------------------------------------------------------------------------- ranking losses, no ties


@given(st.floats(-30, 30, width=32), st.floats(-30, 30, width=32))
def test_with_two_responses_both_losses_are_softplus_of_worse_minus_better(better, worse):
    scores, rewards = jnp.array([worse, better]), jnp.array([0.2, 0.7])
    expected = np.logaddexp(0, np.float64(worse) - np.float64(better))
    for loss in RANKING.values():
        np.testing.assert_allclose(loss(scores, rewards), expected, rtol=1e-5, atol=1e-6)


@given(score_lists, orders)
def test_plackett_luce_is_minus_the_log_of_its_product_definition(scores, order):
    expected = product_definition(scores, order)
    rewards = jnp.asarray(order / N, jnp.float32)
    np.testing.assert_allclose(quick_plackett_luce(scores, rewards), expected, rtol=1e-4, atol=1e-5)


@given(st.integers(2, 5), st.data())
def test_plackett_luce_probabilities_of_all_rankings_sum_to_one(n, data):
    scores = data.draw(st.lists(st.floats(-8, 8, width=32), min_size=n, max_size=n))
    rankings = jnp.asarray(list(itertools.permutations(range(n))), jnp.float32)
    probabilities = jnp.exp(-quick_plackett_luce(jnp.asarray(scores, jnp.float32), rankings))
    np.testing.assert_allclose(jnp.sum(probabilities), 1, rtol=1e-4)


def test_equal_scores_make_all_rankings_equally_likely():
    rewards = jnp.arange(N) / N
    expected = np.log(720.0)  # N! rankings
    np.testing.assert_allclose(quick_plackett_luce(jnp.ones(N), rewards), expected, rtol=1e-5)


@both_losses
@given(scores=score_lists, order=orders, shift=st.floats(-20, 20, width=32))
def test_a_common_shift_of_the_scores_changes_nothing(loss, scores, order, shift):
    rewards = jnp.asarray(order, jnp.float32)
    plain, shifted = loss(scores, rewards), loss(scores + np.float32(shift), rewards)
    np.testing.assert_allclose(plain, shifted, rtol=1e-4, atol=1e-4)


@both_losses
@given(scores=score_lists, rewards=tied_rewards)
def test_a_strictly_monotone_map_of_the_rewards_changes_nothing(loss, scores, rewards):
    mapped = jnp.exp(3 * rewards) - 7
    np.testing.assert_array_equal(loss(scores, rewards), loss(scores, mapped))


@both_losses
@given(scores=score_lists, rewards=tied_rewards, order=orders)
def test_the_order_of_the_attempts_changes_nothing_even_with_ties(loss, scores, rewards, order):
    plain, permuted = loss(scores, rewards), loss(scores[order], rewards[order])
    np.testing.assert_allclose(plain, permuted, rtol=1e-4, atol=1e-5)


@both_losses
def test_raising_the_best_score_or_lowering_the_worst_helps(loss):
    scores = jnp.array([0.3, -1.0, 0.2, 2.0, 0.0, 1.0])
    _, gradient = with_gradient[loss](scores, jnp.array([0.1, 0.9, 0.3, 0.4, 0.5, 0.6]))
    assert gradient[1] < 0 < gradient[0]
    np.testing.assert_allclose(jnp.sum(gradient), 0, atol=1e-6)  # a shift changes nothing


@both_losses
def test_scores_that_rank_with_wide_margins_lose_nothing(loss):
    rewards = jnp.arange(N) / N
    assert loss(100.0 * jnp.arange(N), rewards) < 1e-6 < 1 < loss(-100.0 * jnp.arange(N), rewards)


def test_bradley_terry_is_the_mean_over_the_pairs():
    context = random_context(1, ties=True)
    scores, rewards = context.responses[:, 0], np.asarray(context.rewards)
    terms = [
        np.log1p(np.exp(np.float64(scores[j]) - np.float64(scores[i])))
        for i in range(N)
        for j in range(N)
        if rewards[i] > rewards[j]
    ]
    np.testing.assert_allclose(RANKING["bradley_terry"](scores, rewards), np.mean(terms), rtol=1e-5)


# -------------------------------------------------------------------------------------------- ties


@both_losses
@given(scores=score_lists, reward=st.floats(0, 1, width=32))
def test_attempts_that_are_all_tied_lose_nothing(loss, scores, reward):
    value, gradient = with_gradient[loss](scores, jnp.full(N, reward))
    assert value == 0 and np.all(np.asarray(gradient) == 0)


@given(score_lists)
def test_two_tied_attempts_each_compete_with_the_worse_third_only(scores):
    a, b, c = scores[:3]
    expected = np.logaddexp(0, np.float64(c) - a) + np.logaddexp(0, np.float64(c) - b)
    loss = quick_plackett_luce(jnp.array([c, a, b]), jnp.array([0.1, 0.5, 0.5]))
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-6)


@given(scores=score_lists, rewards=tied_rewards)
def test_plackett_luce_with_ties_pits_each_attempt_against_the_strictly_worse(scores, rewards):
    weights = np.exp(scores.astype(np.float64))
    expected = -np.sum(
        [
            np.log(w / (w + weights[rewards < r].sum()))
            for w, r in zip(weights, rewards, strict=True)
        ]
    )
    np.testing.assert_allclose(quick_plackett_luce(scores, rewards), expected, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------- extreme scores


@both_losses
def test_huge_scores_give_the_exact_loss_and_a_finite_gradient(loss):
    value, gradient = with_gradient[loss](jnp.array([1e4, -1e4]), jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(value, 2e4, rtol=1e-6)
    np.testing.assert_allclose(gradient, [1, -1], rtol=1e-6)


@both_losses
@given(order=orders, seed=st.integers(0, 100))
def test_huge_scores_of_many_attempts_cost_what_the_best_wrongly_ranked_ones_lead_by(
    loss, order, seed
):
    # At this scale log-sum-exp is the maximum.
    scores = 1e4 * np.random.default_rng(seed).normal(size=N)
    scores = scores.astype(np.float32).astype(np.float64)
    ranked = scores[np.argsort(-order)]
    if loss is quick_plackett_luce:
        expected = sum(ranked[i:].max() - ranked[i] for i in range(N))
    else:
        pairs = itertools.combinations(ranked, 2)
        expected = np.mean([max(worse - better, 0) for better, worse in pairs])
    value, gradient = with_gradient[loss](
        jnp.asarray(scores, jnp.float32), jnp.asarray(order, jnp.float32)
    )
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=0.1)
    assert np.all(np.isfinite(gradient))


# ----------------------------------------------------------------------------- masks and broadcast


@both_losses
@given(
    scores=score_lists, rewards=tied_rewards, mask=st.lists(st.booleans(), min_size=N, max_size=N)
)
def test_a_mask_equals_dropping_the_masked_attempts(loss, scores, rewards, mask):
    mask = np.asarray(mask)
    kept = np.flatnonzero(mask)
    masked, gradient = with_gradient[loss](scores, rewards, mask)
    assert np.all(np.asarray(gradient)[~mask] == 0) and np.all(np.isfinite(gradient))
    dropped = loss(scores[kept], rewards[kept]) if len(kept) else 0
    np.testing.assert_allclose(masked, dropped, rtol=1e-5, atol=1e-6)


@both_losses
def test_what_is_masked_may_be_huge(loss):
    scores, mask = jnp.array([1e30, 1.0, 2.0, -1e30]), jnp.array([False, True, True, False])
    rewards = jnp.array([0.1, 0.9, 0.5, 0.7])
    np.testing.assert_allclose(loss(scores, rewards, mask), np.log1p(np.exp(1)), rtol=1e-5)


@both_losses
@pytest.mark.parametrize(
    "shapes",
    [((4, 3, N), (4, 3, N), None), ((3, N), (N,), (N,)), ((N,), (3, N), (N,)), ((N,), (3, N), (3, N)),
     ((4, 1, N), (3, N), (4, 3, N)), ((1, N), (3, N), None)],
)  # fmt: skip
def test_leading_axes_broadcast_and_each_row_is_its_own_problem(loss, shapes):
    rng = np.random.default_rng(0)
    draws = (rng.normal(size=shapes[0]), rng.integers(0, 4, shapes[1]))
    arrays = [jnp.asarray(array, jnp.float32) for array in draws]
    arrays += [jnp.asarray(rng.random(shapes[2]) < 0.7)] if shapes[2] else [jnp.ones(N, bool)]
    got = loss(*arrays)
    rows = np.broadcast_shapes(*(array.shape for array in arrays))
    assert got.shape == rows[:-1]
    full = [np.broadcast_to(array, rows).reshape(-1, N) for array in arrays]
    one_by_one = [loss(*row) for row in zip(*full, strict=True)]
    np.testing.assert_allclose(np.ravel(got), one_by_one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", [plackett_luce, bradley_terry])
def test_a_mask_may_have_more_leading_axes_than_scores_and_rewards(loss):
    scores, rewards = jnp.array([0.0, 1.0, 2.0]), jnp.array([0.5, 0.1, 0.9])
    masks = jnp.array([[True, True, False], [False, True, True]])
    expected = [loss(scores, rewards, mask) for mask in masks]
    np.testing.assert_allclose(loss(scores, rewards, masks), expected, rtol=1e-6)


# ------------------------------------------------------------------------------------------ scores


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_scores_are_cosine_and_minus_the_squared_distance_of_each_pair(batch):
    rng = np.random.default_rng(0)
    predictions, responses = rng.normal(size=(*batch, 4, 3)), rng.normal(size=(*batch, 5, 3))
    cosines, distances = (
        response_scores(
            name, jnp.asarray(predictions, jnp.float32), jnp.asarray(responses, jnp.float32)
        )
        for name in SCORES
    )
    for index in np.ndindex(*batch, 4, 5):
        p, y = predictions[index[:-1]], responses[(*index[:-2], index[-1])]
        expected = p @ y / np.linalg.norm(p) / np.linalg.norm(y)
        np.testing.assert_allclose(cosines[index], expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(distances[index], -np.sum((p - y) ** 2), rtol=1e-4)


def test_on_unit_vectors_squared_distance_and_cosine_rank_alike():
    rng = np.random.default_rng(0)
    p, y = (normalize(jnp.asarray(rng.normal(size=(n, 4)), jnp.float32)) for n in (3, 20))
    cosines, distances = (response_scores(name, p, y) for name in SCORES)
    np.testing.assert_allclose(distances, 2 * cosines - 2, atol=1e-5)
    np.testing.assert_array_equal(np.argsort(cosines, axis=-1), np.argsort(distances, axis=-1))


def test_on_the_unit_sphere_the_two_scores_give_parallel_gradients():
    # There -||p - y||^2 is twice the cosine up to a shift: the tangential gradient of the one
    # Plackett-Luce loss is the gradient of the other with its scores doubled.
    context = random_context(0)
    responses = normalize(context.responses)

    def loss(prediction, name, factor):
        return plackett_luce(
            factor * response_scores(name, prediction[None], responses)[0], context.rewards
        )

    p = normalize(context.target)
    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    distance, angle = gradient(p, "negative_squared_distance", 1.0), gradient(p, "cosine", 2.0)
    np.testing.assert_allclose(distance - p * (p @ distance), angle, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-5, 1e-2, 1e5])
def test_the_cosine_score_does_not_depend_on_lengths(scale):
    context = random_context(2)
    p = context.target[None]
    plain = response_scores("cosine", p, context.responses)
    scaled = response_scores("cosine", scale * p, context.responses / scale)
    np.testing.assert_allclose(plain, scaled, rtol=1e-4, atol=1e-6)


def test_a_zero_vector_has_no_direction_and_a_finite_gradient():
    zero = jnp.zeros((2, 3))
    np.testing.assert_array_equal(normalize(zero), zero)
    gradient = jax.grad(lambda v: jnp.sum(normalize(v) @ jnp.ones(3)))(zero)
    assert np.all(np.isfinite(gradient))


# --------------------------------------------------------------------------------- a gradient step


def test_one_gradient_step_on_the_policy_moves_the_prediction_as_derived_by_hand():
    # Wang et al. 2024: dy = 2 eta ||x||^2 sum_i ( y_tau(i) - sum_{j>=i} beta_ij y_tau(j) ).
    rng = np.random.default_rng(4)
    d, n, eta = 5, 12, 0.3
    x, policy, y, r = (
        rng.normal(size=d),
        rng.normal(size=(d, d)) / 3,
        rng.normal(size=(n, d)),
        rng.random(n),
    )
    ranked = y[np.argsort(-r)]
    scores = -np.sum((policy @ x - ranked) ** 2, axis=-1)
    total = np.zeros(d)
    for i in range(n - 1):
        beta = np.exp(scores[i:] - scores[i:].max())
        total += ranked[i] - beta / beta.sum() @ ranked[i:]
    expected = 2 * eta * x @ x * total
    with jax.enable_x64(True):

        def loss(policy):
            s = response_scores("negative_squared_distance", (policy @ x)[None], jnp.asarray(y))
            return plackett_luce(s[0], jnp.asarray(r))

        moved = -eta * jax.jit(jax.grad(loss))(jnp.asarray(policy)) @ x
    np.testing.assert_allclose(moved, expected, rtol=1e-10)


# ---------------------------------------------------------------------- the losses of a prediction


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("name", RANKING)
@pytest.mark.parametrize("ties", [False, True])
def test_the_ranking_loss_of_row_m_is_that_of_the_first_m_attempts(name, score, ties):
    context = random_context(5, n=5, ties=ties)
    predictions = jnp.asarray(np.random.default_rng(6).normal(size=(6, 3)), jnp.float32)
    attempts = jnp.arange(6)
    got = quick_ranking_losses(name, score, predictions, context, attempts)
    scores = response_scores(score, predictions, context.responses)
    expected = [RANKING[name](scores[m, :m], context.rewards[:m]) if m else 0 for m in range(6)]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_ranking_losses_of_a_batch_are_those_of_its_contexts():
    context = random_context(7, batch=(2, 3))
    predictions = jnp.asarray(np.random.default_rng(8).normal(size=(2, 3, 2, 3)), jnp.float32)
    attempts = jnp.array([6, 3])
    whole = quick_ranking_losses("plackett_luce", "cosine", predictions, context, attempts)
    for index in np.ndindex(2, 3):
        one = jax.tree.map(lambda array, i=index: array[i], context)
        alone = quick_ranking_losses("plackett_luce", "cosine", predictions[index], one, attempts)
        np.testing.assert_allclose(whole[index], alone, rtol=1e-5)


LOSS_CONFIGS = [
    LossConfig(),
    LossConfig(name="bradley_terry", score="negative_squared_distance", min_attempts=3),
    LossConfig(name="squared", min_attempts=0, max_attempts=2),
    LossConfig(name="cosine", min_attempts=4, max_attempts=4),
]


@pytest.mark.parametrize("config", LOSS_CONFIGS, ids=lambda config: config.name)
def test_the_training_loss_is_the_plain_mean_from_min_to_max_attempts(config):
    context = random_context(9, batch=(4,))
    predictions = jnp.asarray(np.random.default_rng(10).normal(size=(4, N + 1, 3)), jnp.float32)
    last = N if config.max_attempts is None else config.max_attempts
    values = []
    for b, m in itertools.product(range(4), range(config.min_attempts, last + 1)):
        row, target = predictions[b, m], context.target[b]
        if config.name in RANKING:
            scores = response_scores(config.score, row[None], context.responses[b, :m])[0]
            values.append(RANKING[config.name](scores, context.rewards[b, :m]))
        else:
            values.append({"squared": squared, "cosine": cosine}[config.name](row, target))
    got = jax.jit(lambda p: training_loss(config, p, context))(predictions)
    np.testing.assert_allclose(got, np.mean(values), rtol=1e-4)


@pytest.mark.parametrize("config", LOSS_CONFIGS, ids=lambda config: config.name)
def test_predictions_outside_min_to_max_attempts_are_not_trained(config):
    context = random_context(9, batch=(2,))
    predictions = jnp.asarray(np.random.default_rng(11).normal(size=(2, N + 1, 3)), jnp.float32)
    last = N if config.max_attempts is None else config.max_attempts
    gradient = jax.jit(jax.grad(lambda p: training_loss(config, p, context)))(predictions)
    trained = np.any(np.asarray(gradient) != 0, axis=(0, 2))
    np.testing.assert_array_equal(np.flatnonzero(trained), np.arange(config.min_attempts, last + 1))


@pytest.mark.parametrize("name", ["squared", "cosine"])
def test_regression_does_not_look_at_the_attempts(name):
    context, other = random_context(12), random_context(13)
    swapped = context._replace(responses=other.responses, rewards=other.rewards)
    predictions = other.responses[:2]
    config, attempts = LossConfig(name=name), jnp.array([1, 4])
    np.testing.assert_array_equal(
        prediction_losses(config, predictions, context, attempts),
        prediction_losses(config, predictions, swapped, attempts),
    )


# -------------------------------------------------------------------------------------- regression

vectors = st.lists(st.floats(-4, 4, width=32), min_size=3, max_size=3).map(
    lambda values: jnp.asarray(values, jnp.float32)
)
directions = vectors.filter(lambda v: float(jnp.linalg.norm(v)) > 0.1)


@given(directions, directions, st.floats(0.0625, 16))
def test_cosine_regression_is_scale_free_and_lies_between_zero_and_two(a, b, scale):
    value = cosine(a, b)
    np.testing.assert_allclose(cosine(scale * a, b / scale), value, rtol=1e-4, atol=1e-5)
    assert -1e-5 <= value <= 2 + 1e-5


@pytest.mark.parametrize(
    "scale",
    [1e-7, 1e-5, 1e-3, 1e3],
)  # fmt: skip
def test_cosine_regression_sees_the_direction_of_short_and_long_vectors(scale):
    v = jnp.array([1.0, -2.0, 3.0])
    np.testing.assert_allclose(cosine(scale * v, v), 0, atol=1e-4)
    np.testing.assert_allclose(cosine(-scale * v, v), 2, atol=1e-4)


@given(directions)
def test_regression_is_zero_at_the_target_and_cosine_two_opposite_it(target):
    assert squared(target, target) == 0
    np.testing.assert_allclose(cosine(target, target), 0, atol=1e-5)
    np.testing.assert_allclose(cosine(-target, target), 2, atol=1e-5)


def test_cosine_regression_of_orthogonal_vectors_is_one():
    np.testing.assert_allclose(cosine(jnp.array([0.0, 2.0]), jnp.array([3.0, 0.0])), 1, rtol=1e-6)


def test_a_zero_prediction_has_cosine_loss_one_and_a_finite_gradient():
    value, gradient = jax.value_and_grad(cosine)(jnp.zeros(3), jnp.array([1.0, 2.0, 3.0]))
    assert value == 1 and np.all(np.isfinite(gradient))


@given(vectors, vectors)
def test_squared_regression_is_the_squared_distance_over_the_dimension(a, b):
    expected = np.sum((np.asarray(a, np.float64) - np.asarray(b)) ** 2) / 3
    np.testing.assert_allclose(squared(a, b), expected, rtol=1e-5)


def test_the_examples_in_the_docstrings_run():
    results = doctest.testmod(losses)
    assert results.attempted > 0 and results.failed == 0
