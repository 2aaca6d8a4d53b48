"""Facts of the metrics."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from icl_align.alignment.learners import best_attempt, weighted_average
from icl_align.alignment.losses import ranking_losses
from icl_align.alignment.metrics import agreement, refinement_error, regret
from icl_align.alignment.optimum import plackett_luce_optimum
from icl_align.alignment.options import TASKS

quick_regret = jax.jit(regret, static_argnums=3)
quick_losses = jax.jit(ranking_losses, static_argnums=(0, 1))
optimum_of = jax.jit(plackett_luce_optimum)


@pytest.fixture(scope="module")
def few(draw):
    """Twenty contexts of six attempts."""
    return draw(20, num_responses=6)


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
