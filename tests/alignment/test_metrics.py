"""Facts of the metrics, and of the intervals around their means."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from scipy import stats

from icl_align.alignment.learners import best_attempt, plackett_luce_optimum, weighted_average
from icl_align.alignment.losses import ranking_losses
from icl_align.alignment.metrics import agreement, refinement_error, regret
from icl_align.alignment.options import TASKS
from icl_align.statistics import Moments, mean_interval, merge

quick_regret = jax.jit(regret, static_argnums=3)
quick_losses = jax.jit(ranking_losses, static_argnums=(0, 1))
optimum_of = jax.jit(plackett_luce_optimum)


@pytest.fixture(scope="module")
def few(draw):
    """Twenty contexts of six attempts."""
    return draw(20, num_responses=6)


# -------------------------------------------------------------------------------------- quantities


@pytest.mark.parametrize("factor, error", [(1, 0), (0.01, 0), (-3, 2), (0, 1)])
def test_refinement_error_is_zero_along_the_target_two_against_it_and_one_at_zero(
    few, factor, error
):
    predictions = factor * jnp.repeat(few.target[:, None], 3, axis=1)
    np.testing.assert_allclose(refinement_error(predictions, few), error, atol=1e-5)


def test_refinement_error_is_one_minus_the_cosine_of_the_angle_to_the_target(few):
    angle = np.linspace(0, np.pi, 9)
    target = np.asarray(few.target, np.float64)
    across = np.eye(5)[0] - target * target[:, :1] / np.sum(target**2, axis=-1, keepdims=True)
    across *= (np.linalg.norm(target, axis=-1) / np.linalg.norm(across, axis=-1))[:, None]
    turned = np.cos(angle)[:, None] * target[:, None] + np.sin(angle)[:, None] * across[:, None]
    errors = refinement_error(jnp.asarray(turned, jnp.float32), few)
    np.testing.assert_allclose(errors, np.tile(1 - np.cos(angle), (20, 1)), atol=1e-5)


@pytest.fixture(scope="module", params=[(name, p) for name in TASKS for p in (0.0, 1.0)], ids=str)
def solved(draw, request):
    """Twenty contexts and their optimum, for each task with clean and with random rewards."""
    name, p = request.param
    context = draw(20, p, name=name, num_responses=6)
    return context, optimum_of(context)


@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_no_random_prediction_has_less_loss_than_the_optimum(solved, seed, scale):
    context, optimum = solved
    predictions = scale * np.random.default_rng(seed).normal(size=(20, 7, 5)).astype(np.float32)
    value = quick_regret(jnp.asarray(predictions), optimum, context)
    assert np.all(value >= -1e-3)
    np.testing.assert_allclose(value[:, :2], 0, atol=1e-6)  # one attempt has no ranking
    assert np.mean(value[:, 2:]) > 0.1


def test_the_optimum_has_no_regret_and_the_opposite_direction_much(few):
    optimum = optimum_of(few)
    np.testing.assert_array_equal(quick_regret(optimum, optimum, few), 0)
    assert np.all(quick_regret(-optimum, optimum, few)[:, 2:] > 0)


@pytest.mark.parametrize("score", ["cosine", "negative_squared_distance"])
def test_regret_of_two_predictions_differs_by_their_losses(few, score):
    # Whatever the optimum is, it cancels.
    optimum, one, other = (f(few) for f in (optimum_of, best_attempt, weighted_average))
    difference = quick_regret(one, optimum, few, score) - quick_regret(other, optimum, few, score)
    losses = [quick_losses("plackett_luce", score, y, few, jnp.arange(7)) for y in (one, other)]
    np.testing.assert_allclose(difference, losses[0] - losses[1], rtol=1e-3, atol=1e-3)


def test_cosine_regret_does_not_depend_on_the_length_of_the_prediction(few):
    optimum, prediction = optimum_of(few), best_attempt(few)
    plain = quick_regret(prediction, optimum, few)
    np.testing.assert_allclose(quick_regret(7 * prediction, optimum, few), plain, atol=1e-4)


def test_agreement_with_itself_is_one_with_its_opposite_minus_one_and_symmetric(few):
    one, other = best_attempt(few)[:, 1:], optimum_of(few)[:, 1:]
    np.testing.assert_allclose(agreement(one, one), 1, atol=1e-5)
    np.testing.assert_allclose(agreement(one, -2 * one), -1, atol=1e-5)
    np.testing.assert_allclose(agreement(one, other), agreement(other, one), atol=1e-6)
    assert np.all(np.abs(agreement(one, other)) <= 1 + 1e-5)


def test_agreement_with_the_target_is_one_minus_the_refinement_error(few):
    predictions = weighted_average(few)[:, 1:]
    targets = jnp.broadcast_to(few.target[:, None], predictions.shape)
    total = agreement(predictions, targets) + refinement_error(predictions, few)
    np.testing.assert_allclose(total, 1, atol=1e-5)


# -------------------------------------------------------------------------------- moments and means


def moments_of(values):
    """Moments of values [s, c, *shape] by their definition."""
    over_seeds = values.mean(axis=0)
    squares = np.sum((over_seeds - over_seeds.mean(axis=0)) ** 2, axis=0)
    return Moments(float(values.shape[1]), values.mean(axis=1), squares)


def merged(parts):
    """Moments of all parts, merged one after another."""
    total = moments_of(parts[0])
    for part in parts[1:]:
        total = merge(total, moments_of(part))
    return total


@given(
    st.integers(0, 10**6),
    st.integers(1, 4),
    st.lists(st.integers(1, 29), min_size=0, max_size=5, unique=True),
)
def test_merging_any_split_gives_the_moments_of_the_whole(seed, num_seeds, cuts):
    rng = np.random.default_rng(seed)
    values = 100 + rng.normal(size=(num_seeds, 30, 3)) * [1e-3, 1.0, 50.0]
    got = merged(np.split(values, sorted(cuts), axis=1))
    whole = moments_of(values)
    assert got.count == whole.count
    np.testing.assert_allclose(got.seed_means, whole.seed_means, rtol=1e-12)
    np.testing.assert_allclose(got.context_squares, whole.context_squares, rtol=1e-6)


def test_merging_does_not_depend_on_the_order():
    values = np.random.default_rng(0).normal(size=(2, 30, 3))
    one, other = moments_of(values[:, :7]), moments_of(values[:, 7:])
    for a, b in zip(merge(one, other), merge(other, one), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_with_one_seed_the_interval_is_the_classical_t_interval(confidence):
    values = np.random.default_rng(1).normal(3, 2, size=(1, 12, 4))
    mean, low, high = mean_interval(moments_of(values), confidence)
    expected = stats.ttest_1samp(values[0], 0).confidence_interval(confidence)
    np.testing.assert_allclose(mean, values[0].mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(low, expected.low, rtol=1e-10)
    np.testing.assert_allclose(high, expected.high, rtol=1e-10)


def test_where_contexts_do_not_differ_the_interval_is_the_t_interval_over_seeds():
    values = np.tile(np.random.default_rng(2).normal(size=(5, 1, 4)), (1, 12, 1))
    _, low, high = mean_interval(moments_of(values))
    expected = stats.ttest_1samp(values[:, 0], 0).confidence_interval()
    np.testing.assert_allclose(low, expected.low, rtol=1e-9)
    np.testing.assert_allclose(high, expected.high, rtol=1e-9)


def crossed(rng, num_seeds, num_contexts, spreads, designs=1000):
    """Values [s, c, designs] = seed effect + context effect + their interaction, of mean 0."""
    shapes = (num_seeds, 1), (1, num_contexts), (num_seeds, num_contexts)
    return sum(
        spread * rng.normal(size=(*shape, designs))
        for spread, shape in zip(spreads, shapes, strict=True)
    )


@pytest.mark.parametrize(
    "num_seeds, spreads",
    [(5, (1, 1, 1)), (5, (0, 1, 0.5)), (3, (1, 0, 0.1)), (4, (0.3, 2, 1)), (1, (0, 1, 0))],
)
def test_the_interval_covers_the_mean_of_a_crossed_design_as_often_as_it_says(num_seeds, spreads):
    values = crossed(np.random.default_rng(3), num_seeds, 40, spreads)
    mean, low, high = mean_interval(moments_of(values))
    assert 0.92 <= np.mean((low <= 0) & (high >= 0)) <= 0.99
    assert np.all((low <= mean) & (mean <= high))
    np.testing.assert_allclose(mean, values.mean(axis=(0, 1)), atol=1e-12)


def test_with_one_seed_the_interval_says_nothing_about_other_seeds():
    # It covers the mean over contexts for this seed, and misses the mean over seeds.
    _, low, high = mean_interval(moments_of(crossed(np.random.default_rng(4), 1, 40, (1, 1, 0))))
    assert np.mean((low <= 0) & (high >= 0)) < 0.6


def test_more_contexts_and_more_seeds_narrow_the_interval():
    def width(num_seeds, num_contexts):
        values = crossed(np.random.default_rng(5), num_seeds, num_contexts, (1, 1, 1), 200)
        _, low, high = mean_interval(moments_of(values))
        return np.mean(high - low)

    assert width(5, 80) < width(5, 10)
    assert width(20, 40) < width(5, 40)


def test_a_higher_confidence_widens_the_interval():
    moments = moments_of(crossed(np.random.default_rng(6), 3, 20, (1, 1, 1), 50))
    narrow, wide = (mean_interval(moments, confidence) for confidence in (0.9, 0.99))
    assert np.all((wide[1] < narrow[1]) & (narrow[2] < wide[2]))


def test_values_that_never_vary_have_an_interval_of_width_zero():
    for num_seeds in (1, 3):
        mean, low, high = mean_interval(moments_of(np.full((num_seeds, 10, 2), 0.25)))
        np.testing.assert_array_equal([mean, low, high], np.full((3, 2), 0.25))
