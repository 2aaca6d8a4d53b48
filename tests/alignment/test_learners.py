"""Facts of the learners that need no training: closed forms, optimality, and who may see what."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_align.alignment.contexts import Context, sample_contexts
from icl_align.alignment.learners import (
    best_attempt,
    gradient_descent,
    gradient_descent_steps,
    least_squares,
    weighted_average,
)
from icl_align.alignment.losses import normalize, plackett_luce, ranking_losses
from icl_align.alignment.metrics import refinement_error
from icl_align.alignment.optimum import optimality_gap, plackett_luce_optimum
from icl_align.alignment.options import TASKS, GradientDescentConfig, TaskConfig
from icl_align.running.keys import evaluation_keys

PUBLISHED = GradientDescentConfig()
SGD = GradientDescentConfig(optimizer="sgd", learning_rate=1e-4, init="zero")
DISTANCE = "negative_squared_distance"


def keys_of(context, seed=0):
    """One key for each context."""
    batch = context.rewards.shape[:-1]
    return jax.random.split(jax.random.key(seed), batch)


@jax.jit
def descend(context, keys, steps):
    """The published baseline; the number of steps is traced."""
    return gradient_descent(context, PUBLISHED, keys, steps=steps)


LEARNERS = {
    "best_attempt": best_attempt,
    "weighted_average": weighted_average,
    "least_squares": least_squares,
    "gradient_descent": lambda context: descend(context, keys_of(context), 10),
    "gradient_descent_sgd": lambda context: gradient_descent(
        context, SGD, keys_of(context), loss="bradley_terry", score=DISTANCE, steps=100
    ),
    "plackett_luce_optimum": plackett_luce_optimum,
}
LEARNERS = {name: jax.jit(learner) for name, learner in LEARNERS.items()}
every_learner = pytest.mark.parametrize("learner", LEARNERS.values(), ids=LEARNERS)


@jax.jit
def cosine_losses(predictions, context):
    """Cosine Plackett-Luce loss of row n on the first n attempts."""
    attempts = jnp.arange(context.rewards.shape[-1] + 1)
    return ranking_losses("plackett_luce", "cosine", predictions, context, attempts)


@jax.jit
def distance_losses(predictions, context):
    """The same with the negative squared distance."""
    attempts = jnp.arange(context.rewards.shape[-1] + 1)
    return ranking_losses("plackett_luce", DISTANCE, predictions, context, attempts)


quick_gap = jax.jit(optimality_gap, static_argnums=2)


def next_contexts(context):
    """The same contexts one place on: for each another one."""
    return jax.tree.map(lambda array: jnp.roll(array, 1, axis=0), context)


def with_other_future(context, other, n):
    """`context` up to attempt n, `other`'s attempts after it."""
    past = np.arange(context.rewards.shape[-1]) < n
    return context._replace(
        responses=jnp.where(past[:, None], context.responses, other.responses),
        rewards=jnp.where(past, context.rewards, other.rewards),
    )


@pytest.fixture(scope="module")
def few(draw):
    """Eight contexts of six attempts whose directions fill the space."""
    return draw(8, name="independent_corruption", num_responses=6)


def float64_context(seed, batch=(), n=6, d=3):
    """Independent normal vectors and uniform rewards, as float64 numpy arrays."""
    rng = np.random.default_rng(seed)
    query, target = rng.normal(size=(2, *batch, d))
    return Context(query, rng.normal(size=(*batch, n, d)), rng.random((*batch, n)), target)


# ----------------------------------------------------------------------------------- every learner


@every_learner
def test_a_learner_answers_after_every_number_of_attempts(learner, few):
    predictions = learner(few)
    assert predictions.shape == (8, 7, 5) and np.all(np.isfinite(predictions))


@every_learner
def test_an_answer_does_not_change_with_later_attempts_but_with_the_next_one(learner, few):
    other, predictions = next_contexts(few), learner(few)
    next_changed = []
    for n in (0, 1, 2, 3, 5):
        moved = np.abs(learner(with_other_future(few, other, n)) - predictions).max(axis=-1)
        assert np.all(moved[:, : n + 1] < 1e-3)
        next_changed.append(moved[:, n + 1] > 1e-3)
    assert np.mean(next_changed) > 0.3


@every_learner
def test_a_learner_answers_each_context_on_its_own(learner, few):
    # The same batch with other contexts in its second half: the first half keeps its answers.
    changed = jax.tree.map(lambda array: array.at[4:].multiply(-1.0), few)
    before, after = learner(few), learner(changed)
    np.testing.assert_allclose(after[:4], before[:4], rtol=1e-3, atol=1e-4)
    assert not np.allclose(after[4:], before[4:], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in LEARNERS if name != "gradient_descent"])
def test_a_learner_without_random_weights_rotates_with_its_context(name, few):
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0].astype(np.float32)
    query, responses, target = (a @ rotation for a in (few.query, few.responses, few.target))
    turned = LEARNERS[name](Context(query, responses, few.rewards, target))
    np.testing.assert_allclose(turned, LEARNERS[name](few) @ rotation, rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", ["best_attempt", "gradient_descent", "plackett_luce_optimum"])
def test_a_learner_that_ranks_does_not_notice_a_monotone_map_of_the_rewards(name, few):
    mapped = few._replace(rewards=few.rewards**3)
    np.testing.assert_allclose(LEARNERS[name](mapped), LEARNERS[name](few), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["weighted_average", "least_squares"])
def test_a_learner_that_reads_the_rewards_notices_a_monotone_map_of_them(name, few):
    mapped = few._replace(rewards=few.rewards**3)
    moved = np.abs(LEARNERS[name](mapped) - LEARNERS[name](few)).max(axis=-1)
    assert np.all(moved[:, 2:] > 1e-4)


# -------------------------------------------------------------------------- best, average, regression


def test_best_attempt_is_the_response_of_highest_reward_so_far_and_the_earlier_of_equals():
    context = float64_context(0, (4,))
    context = context._replace(rewards=np.round(context.rewards * 3) / 3)  # ties
    got = best_attempt(jax.tree.map(jnp.float32, context))
    for b in range(4):
        np.testing.assert_array_equal(got[b, 0], 0)
        for n in range(1, 7):
            best = max(range(n), key=lambda i: (context.rewards[b, i], -i))
            np.testing.assert_allclose(got[b, n], context.responses[b, best], rtol=1e-6)


def test_weighted_average_weighs_responses_by_their_rewards():
    context = float64_context(1, (4,))
    got = weighted_average(jax.tree.map(jnp.float32, context))
    np.testing.assert_array_equal(got[:, 0], 0)
    for b in range(4):
        for n in range(1, 7):
            expected = np.average(context.responses[b, :n], axis=0, weights=context.rewards[b, :n])
            np.testing.assert_allclose(got[b, n], expected, rtol=1e-4, atol=1e-5)


def test_weighted_average_of_rewards_that_are_all_zero_is_zero():
    context = jax.tree.map(jnp.float32, float64_context(1))
    got = weighted_average(context._replace(rewards=jnp.zeros(6)))
    np.testing.assert_array_equal(got, 0)


def test_least_squares_is_numpy_s_least_squares_on_r_and_one_minus_r():
    context = float64_context(2, (4,))
    with jax.enable_x64(True):
        got = np.asarray(least_squares(jax.tree.map(jnp.asarray, context)))
    for b in range(4):
        for n in range(2, 7):
            r = context.rewards[b, :n]
            design = np.stack([r, 1 - r], axis=-1)
            fit = np.linalg.lstsq(design, context.responses[b, :n], rcond=None)[0]
            np.testing.assert_allclose(got[b, n], fit[0], rtol=1e-7, atol=1e-9)


def test_least_squares_of_one_attempt_is_that_attempt():
    context = jax.tree.map(jnp.float32, float64_context(3))
    np.testing.assert_allclose(least_squares(context)[1], context.responses[0], rtol=1e-6)


def test_least_squares_is_exact_from_two_attempts_on_shared_corruption():
    rng = np.random.default_rng(4)
    target, corrupt = rng.normal(size=(2, 20, 1, 5))
    r = rng.random((20, 10))
    responses = r[..., None] * target + (1 - r[..., None]) * corrupt
    with jax.enable_x64(True):
        arrays = target[:, 0], responses, r, target[:, 0]
        got = np.asarray(least_squares(Context(*map(jnp.asarray, arrays))))
    np.testing.assert_allclose(got[:, 2:], np.tile(target, (1, 9, 1)), rtol=0, atol=1e-9)
    assert np.abs(got[:, 1] - target[:, 0]).max() > 0.1


def test_least_squares_of_equal_rewards_is_the_mean_response():
    context = jax.tree.map(jnp.float32, float64_context(5, (50,)))
    rewards = np.random.default_rng(6).random((50, 1)).astype(np.float32)
    context = context._replace(rewards=jnp.asarray(np.tile(rewards, (1, 6))))
    means = np.cumsum(context.responses, axis=1) / np.arange(1, 7)[:, None]
    np.testing.assert_allclose(least_squares(context)[:, 1:], means, rtol=0, atol=1e-3)


# --------------------------------------------------------------------------------- gradient descent


def test_one_step_from_zero_is_the_closed_form_on_the_attempts_seen_so_far():
    # Wang et al. 2024: dy = 2 eta ||x||^2 sum_i ( y_tau(i) - sum_{j>=i} beta_ij y_tau(j) ).
    context = float64_context(7, (2,), n=5)
    eta = 0.2
    config = GradientDescentConfig(optimizer="sgd", learning_rate=eta, steps=1, init="zero")
    with jax.enable_x64(True):
        got = np.asarray(
            gradient_descent(
                jax.tree.map(jnp.asarray, context), config, keys_of(context), score=DISTANCE
            )
        )
    for b in range(2):
        for n in range(6):
            ranked = context.responses[b, :n][np.argsort(-context.rewards[b, :n])]
            weights = np.exp(-np.sum(ranked**2, axis=-1))  # the first prediction is 0
            total = np.zeros(3)
            for i in range(n - 1):
                total += ranked[i] - weights[i:] @ ranked[i:] / weights[i:].sum()
            expected = 2 * eta * np.sum(context.query[b] ** 2) * total
            np.testing.assert_allclose(got[b, n], expected, rtol=1e-9, atol=1e-12)


def test_without_steps_the_policy_is_uniform_within_one_over_root_d():
    # The same key with the queries e_1 .. e_d reads the columns of the initial policies.
    d, n = 4, 200
    zeros = jnp.zeros((d, n, d))
    context = Context(jnp.eye(d), zeros + 1, zeros[..., 0], jnp.eye(d))
    keys = jnp.broadcast_to(jax.random.key(0), (d,))
    columns = descend(context, keys, 0)
    policies = np.moveaxis(np.asarray(columns), 0, -1)  # [n + 1, d, d]
    bound = 1 / np.sqrt(d)
    assert np.all(np.abs(policies) <= bound) and np.abs(policies).max() > 0.99 * bound
    assert abs(policies.mean()) < 4 * bound / np.sqrt(3 * policies.size)
    np.testing.assert_allclose(policies.std(), bound / np.sqrt(3), rtol=0.05)
    assert len(np.unique(policies)) > 0.99 * policies.size  # every row has a policy of its own


def test_without_steps_the_answer_is_linear_in_the_query(few):
    answer = descend(few, keys_of(few), 0)
    doubled = descend(few._replace(query=-2 * few.query), keys_of(few), 0)
    np.testing.assert_allclose(doubled, -2 * answer, rtol=1e-5)


def test_before_two_attempts_there_is_nothing_to_learn(few):
    start, end = (descend(few, keys_of(few), steps) for steps in (0, 10))
    np.testing.assert_allclose(end[:, :2], start[:, :2], rtol=1e-6)
    assert np.all(np.abs(end[:, 2:] - start[:, 2:]).max(axis=-1) > 1e-3)


def test_each_context_has_its_own_initial_policy_from_its_own_key(few):
    keys = keys_of(few, 3)
    together = descend(few, keys, 5)
    alone = descend(jax.tree.map(lambda array: array[4], few), keys[4], 5)
    np.testing.assert_allclose(together[4], alone, rtol=1e-4, atol=1e-5)
    grid = jax.tree.map(lambda array: array.reshape(2, 4, *array.shape[1:]), few)
    split = descend(grid, keys.reshape(2, 4), 5)
    np.testing.assert_allclose(split.reshape(together.shape), together, rtol=1e-4, atol=1e-5)


def test_small_steps_lower_the_loss_every_time(few):
    losses = [distance_losses(few_small_steps(few, steps), few)[:, 2:] for steps in range(0, 40, 5)]
    assert np.all(np.diff(np.stack(losses), axis=0) < 1e-6)
    assert np.mean(losses[-1]) < 0.95 * np.mean(losses[0])


@jax.jit
def few_small_steps(context, steps):
    """Plain gradient descent from zero at a rate far below the curvature's bound."""
    return gradient_descent(context, SGD, keys_of(context), score=DISTANCE, steps=steps)


def test_the_published_baseline_lowers_the_loss_of_nearly_every_context(few):
    start, end = (
        np.stack([cosine_losses(descend(few, keys_of(few, s), t), few) for s in range(10)])
        for t in (0, 50)
    )
    assert np.mean((end < start)[..., 2:]) > 0.97


def test_the_steps_given_override_those_of_the_config(few):
    config = GradientDescentConfig(steps=7)
    seven = jax.jit(lambda context: gradient_descent(context, config, keys_of(context)))(few)
    np.testing.assert_allclose(descend(few, keys_of(few), 7), seven, rtol=1e-4, atol=1e-5)


def test_with_two_attempts_both_ranking_losses_descend_alike(few):
    # Plain steps: Plackett-Luce sums over attempts, Bradley-Terry averages over the one pair.
    config = GradientDescentConfig(optimizer="sgd", steps=10)
    one, other = (
        jax.jit(lambda c, loss=loss: gradient_descent(c, config, keys_of(c), loss=loss))(few)
        for loss in ("plackett_luce", "bradley_terry")
    )
    np.testing.assert_allclose(one[:, :3], other[:, :3], rtol=1e-4, atol=1e-5)
    assert np.all(np.abs(one[:, 3:] - other[:, 3:]).max(axis=-1) > 1e-3)


def test_fewer_steps_are_made_under_reward_noise_as_published():
    quick = jax.jit(lambda p: gradient_descent_steps(PUBLISHED, p))
    assert [int(gradient_descent_steps(PUBLISHED, p)) for p in (0.0, 0.5, 1.0)] == [50, 37, 25]
    for p in np.linspace(0, 1, 21):
        assert int(quick(jnp.float32(p))) == int(50 - 25 * p)


def test_gradient_descent_reproduces_the_published_curve():
    # The published dashed curve (256 contexts): 0.386 after 2 attempts, 0.299 after 15.
    keys = evaluation_keys(0, jnp.arange(1024))

    @jax.jit
    def mean_error(keys):
        context = sample_contexts(TaskConfig(num_responses=15), keys)
        return refinement_error(gradient_descent(context, PUBLISHED, keys), context)

    curve = np.mean(mean_error(keys), axis=0)
    assert abs(curve[2] - 0.386) < 0.03
    assert abs(curve[15] - 0.299) < 0.02


# ---------------------------------------------------------------------------- Plackett-Luce optimum

optimum_of = LEARNERS["plackett_luce_optimum"]
CASES = [(dim, name, p) for dim in (2, 3, 5) for name in TASKS for p in (0.0, 1.0)]


@pytest.fixture(scope="module")
def solved(draw):
    """solved(dim, name, p) -> 300 contexts of 8 attempts and their cosine optimum."""

    @functools.cache
    def solved(dim, name=TASKS[0], p=0.0):
        context = draw(300, p, name=name, dim=dim, num_responses=8)
        return context, optimum_of(context)

    return solved


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_gradient_vanishes_at_the_cosine_optimum(solved, case):
    context, optimum = solved(*case)
    assert np.max(quick_gap(optimum, context, "cosine")) < 5e-3
    np.testing.assert_allclose(np.linalg.norm(optimum[:, 1:], axis=-1), 1, rtol=1e-5)


@jax.jit
def least_competitor(context):
    """Lowest loss among 60 random directions and gradient descent from two initial policies."""
    num, n, d = context.responses.shape
    directions = jax.random.normal(jax.random.key(0), (60, d))
    many = jax.lax.map(
        lambda one: cosine_losses(jnp.broadcast_to(one, (num, n + 1, d)), context), directions
    )
    least = jnp.min(many, axis=0)
    for seed in (0, 1):
        keys = jax.random.split(jax.random.key(seed), num)
        least = jnp.minimum(least, cosine_losses(descend(context, keys, 40), context))
    return least


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_direction_and_no_descent_beats_the_cosine_optimum(solved, case):
    context, optimum = solved(*case)
    beaten = np.any(cosine_losses(optimum, context) > least_competitor(context) + 1e-4, axis=-1)
    assert np.mean(beaten) <= 0.01


def test_in_the_plane_the_optimum_is_that_of_a_dense_grid_of_angles(solved):
    context, optimum = solved(2)
    angles = jnp.linspace(0, 2 * jnp.pi, 720, endpoint=False)
    grid = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    scores = jnp.swapaxes(normalize(context.responses) @ grid.T, -1, -2)
    least = np.asarray(cosine_losses(optimum, context))
    for n in (2, 4, 8):
        seen = jnp.arange(8) < n
        on_grid = plackett_luce(scores, context.rewards[:, None], seen).min(axis=1)
        # Half a grid step away each of the n terms is at most (1 + 1) / 2 angle^2 higher.
        slack = n * (np.pi / 720) ** 2 + 1e-4
        assert np.all((least[:, n] <= on_grid + 1e-4) & (least[:, n] >= on_grid - slack))


def test_with_two_attempts_the_cosine_optimum_is_the_normalised_difference(few):
    # softplus(cos(y, y_worse) - cos(y, y_better)) falls with y . (a_better - a_worse).
    better = few.rewards[:, 0] > few.rewards[:, 1]
    unit = normalize(few.responses)
    difference = jnp.where(better[:, None], 1, -1) * (unit[:, 0] - unit[:, 1])
    np.testing.assert_allclose(optimum_of(few)[:, 2], normalize(difference), atol=1e-3)


def test_after_one_attempt_the_optimum_is_that_attempt_and_before_it_zero(few):
    optimum = optimum_of(few)
    np.testing.assert_array_equal(optimum[:, 0], 0)
    np.testing.assert_allclose(optimum[:, 1], normalize(few.responses[:, 0]), rtol=1e-5, atol=1e-6)


def test_the_optimum_does_not_depend_on_the_order_of_the_attempts(few):
    order = np.random.default_rng(0).permutation(6)
    permuted = few._replace(responses=few.responses[:, order], rewards=few.rewards[:, order])
    np.testing.assert_allclose(optimum_of(permuted)[:, -1], optimum_of(few)[:, -1], atol=1e-3)


def test_the_cosine_optimum_does_not_depend_on_the_lengths_of_the_responses(few):
    scales = jnp.asarray(np.random.default_rng(0).uniform(0.1, 10, (8, 6, 1)), jnp.float32)
    scaled = few._replace(responses=scales * few.responses)
    np.testing.assert_allclose(optimum_of(scaled), optimum_of(few), atol=1e-3)


def test_the_gap_is_not_zero_away_from_the_optimum(few):
    gap = quick_gap(best_attempt(few), few, "cosine")
    assert np.all(gap[:, 2:] > 0.05)
    np.testing.assert_array_equal(gap[:, :2], 0)  # one attempt has no ranking


def test_the_optimum_s_loss_so_far_does_not_depend_on_later_attempts(solved):
    context, optimum = solved(2, p=1.0)
    moved = optimum_of(with_other_future(context, next_contexts(context), 6))
    change = cosine_losses(moved, context) - cosine_losses(optimum, context)
    assert np.mean(np.abs(change[:, :7]).max(axis=-1) > 1e-3) <= 0.005


@pytest.mark.parametrize("last", [0.5, 0.9])
def test_where_all_rewards_so_far_are_tied_the_optimum_keeps_the_best_attempt(few, last):
    context = few._replace(rewards=jnp.full((8, 6), 0.5).at[:, -1].set(last))
    best = normalize(best_attempt(context))
    np.testing.assert_allclose(optimum_of(context)[:, :6], best[:, :6], atol=1e-5)


def test_attempts_in_one_dimension_and_of_one_sign_leave_the_optimum_at_the_best(solved):
    # There a cosine is a sign: such attempts cannot be told apart and the loss is flat.
    context, optimum = solved(1)
    signs = np.sign(context.responses[..., 0])
    flat = np.abs(np.cumsum(signs, axis=1)) == np.arange(1, 9)
    kept = np.sign(best_attempt(context))[:, 1:, 0]
    np.testing.assert_allclose(optimum[:, 1:, 0][flat], kept[flat], atol=1e-6)


def test_in_one_dimension_the_optimum_is_the_better_sign(solved):
    context, optimum = solved(1)
    losses = [cosine_losses(jnp.full((300, 9, 1), sign), context) for sign in (1.0, -1.0)]
    np.testing.assert_allclose(cosine_losses(optimum, context), np.minimum(*losses), atol=1e-4)


@pytest.mark.parametrize("dim", [2, 5])
def test_among_tied_rewards_no_direction_and_no_descent_beats_the_cosine_optimum(solved, dim):
    context, _ = solved(dim, TASKS[1], 1.0)
    context = context._replace(rewards=jnp.round(3 * context.rewards))
    optimum = optimum_of(context)
    beaten = np.any(cosine_losses(optimum, context) > least_competitor(context) + 1e-4, axis=-1)
    assert np.mean(beaten) <= 0.01
    assert np.max(quick_gap(optimum, context, "cosine")) < 5e-3


@pytest.mark.parametrize("score", ["cosine", DISTANCE])
def test_slices_of_contexts_have_the_optima_of_the_whole(few, score):
    whole = jax.jit(lambda context: plackett_luce_optimum(context, score))(few)
    slices = jax.tree.map(lambda array: array.reshape(4, 2, *array.shape[1:]), few)
    found = jax.jit(lambda c: jax.lax.map(lambda s: plackett_luce_optimum(s, score), c))(slices)
    losses = cosine_losses if score == "cosine" else distance_losses
    found = losses(found.reshape(whole.shape), few)
    np.testing.assert_allclose(found, losses(whole, few), rtol=0, atol=1e-3)


def test_the_optimum_has_the_type_of_its_context():
    context = float64_context(8)
    with jax.enable_x64(True):
        for dtype in (jnp.float32, jnp.float64):
            optimum = plackett_luce_optimum(
                jax.tree.map(lambda a, t=dtype: jnp.asarray(a, t), context)
            )
            assert optimum.dtype == dtype and np.all(np.isfinite(optimum))


# ------------------------------------------------------------------ optimum of the squared distance


def test_a_finite_squared_distance_optimum_has_no_gradient_and_is_not_beaten(solved):
    # Every attempt once more with the opposite rank: no response ranks without error, so the
    # minimum is finite. The loss is convex, so descent comes down to it from anywhere.
    context, _ = solved(2, TASKS[1])
    first, rewards = context.responses[:, :4], context.rewards[:, :4]
    context = context._replace(
        responses=jnp.concatenate([first, first], axis=-2),
        rewards=jnp.concatenate([rewards, -rewards], axis=-1),
    )
    optimum, descent = distance_optimum(context), distance_descent(context)
    assert np.all(quick_gap(optimum, context, DISTANCE)[:, -1] < 5e-3)
    least, reached = (distance_losses(y, context)[:, -1] for y in (optimum, descent))
    assert np.all(least <= reached + 1e-3)
    assert np.mean(reached <= 1.02 * least) > 0.95


distance_optimum = jax.jit(lambda context: plackett_luce_optimum(context, DISTANCE))
distance_descent = jax.jit(
    lambda context: gradient_descent(
        context, PUBLISHED, keys_of(context), score=DISTANCE, steps=200
    )
)


@pytest.mark.parametrize("name", TASKS)
def test_the_gradient_vanishes_at_the_squared_distance_optimum(solved, name):
    context, _ = solved(2, name)
    gap = quick_gap(distance_optimum(context), context, DISTANCE)
    assert np.mean(np.max(gap, axis=-1) > 5e-3) <= 0.005


def test_no_descent_beats_the_squared_distance_optimum(solved):
    context, _ = solved(2)
    own, other = (f(context) for f in (distance_optimum, distance_descent))
    excess = distance_losses(own, context) - distance_losses(other, context)
    assert np.mean(np.max(excess, axis=-1) > 1e-3) <= 0.01


def test_the_squared_distance_optimum_so_far_does_not_depend_on_later_attempts(solved):
    context, _ = solved(2)
    moved = distance_optimum(with_other_future(context, next_contexts(context), 4))
    # Where the infimum is at infinity the answers are far out; what they are worth is compared.
    change = distance_losses(moved, context) - distance_losses(distance_optimum(context), context)
    assert np.mean(np.abs(change[:, :5]).max(axis=-1) > 1e-2) <= 0.03
