"""Facts of means and of the intervals around them."""

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from scipy import stats
from sklearn.calibration import calibration_curve
from sklearn.metrics import r2_score

from icl_align.dialogue.quantities import calibration_features, rank_features
from icl_align.statistics import (
    POOLS,
    Moments,
    mean_interval,
    merge,
    moments,
    pooled_moments,
    rounds_to_convergence,
    statistic_moments,
)


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


# ------------------------------------------------------------------------------------- calibration


def calibration(confidence, correct):
    """Features [c, s, x, m] of arrays [c, s, x]."""
    return np.asarray(calibration_features(jnp.asarray(confidence), jnp.asarray(correct)))


def ranks(uncertainty, correct):
    return np.asarray(rank_features(jnp.asarray(uncertainty), jnp.asarray(correct)))


def drawn(count, rng, right=lambda confidence: confidence):
    """Confidences, and answers that are right with a probability that depends on them."""
    confidence = rng.uniform(0, 1, (count, 1, 1))
    return confidence, (rng.uniform(size=confidence.shape) < right(confidence)) * 1.0


def test_the_calibration_error_is_the_sum_over_bins_of_their_gaps():
    confidence, correct = drawn(500, np.random.default_rng(0), lambda c: c**2)
    expected = sum(
        abs(np.sum((confidence - correct)[np.clip((confidence * 10).astype(int), 0, 9) == place]))
        for place in range(10)
    )
    found = pooled_moments(calibration(confidence, correct), "calibration_error")
    assert found.seed_means.item() == pytest.approx(expected / 500, rel=1e-5)


def test_of_right_confidences_the_corrected_error_covers_zero_and_the_plain_one_does_not():
    covers = {"calibration_error": 0, "calibration_error_corrected": 0}
    for seed in range(60):
        features = calibration(*drawn(400, np.random.default_rng(seed)))
        for name in covers:
            _, low, high = mean_interval(pooled_moments(features, name))
            covers[name] += bool(low <= 0 <= high)
    assert covers["calibration_error_corrected"] >= 50  # of 60; 57 are expected
    assert covers["calibration_error"] <= 20


def test_of_wrong_confidences_the_error_is_how_wrong_they_are():
    confidence, correct = drawn(20000, np.random.default_rng(0), lambda c: np.maximum(c - 0.2, 0))
    features = calibration(confidence, correct)
    for name in ("calibration_error", "calibration_error_corrected"):
        expected = np.mean(confidence - np.maximum(confidence - 0.2, 0))
        assert pooled_moments(features, name).seed_means.item() == pytest.approx(expected, abs=0.01)


def test_the_rank_calibration_error_is_zero_where_surer_is_righter_and_large_the_other_way_round():
    uncertainty = np.random.default_rng(0).uniform(0, 1, (4000, 1, 1))
    for correct, low, high in ((1 - uncertainty, -0.01, 0.01), (uncertainty, 0.4, 0.6)):
        features = ranks(uncertainty, correct)
        error = pooled_moments(features, "rank_calibration_error").seed_means.item()
        assert low < error < high


def test_pooled_moments_do_not_depend_on_batches_and_have_the_crossed_design():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0, 1, (64, 3, 2))
    correct = (rng.uniform(size=confidence.shape) < confidence) * 1.0
    found = pooled_moments(calibration(confidence, correct), "calibration_error")
    assert found.seed_means.shape == (3, 2)
    assert found.context_squares.shape == (2,)
    again = pooled_moments(calibration(confidence, correct), "calibration_error")
    np.testing.assert_array_equal(found.context_squares, again.context_squares)


def test_the_bootstrap_of_a_mean_is_the_interval_of_the_mean(monkeypatch):
    monkeypatch.setitem(POOLS, "mean", lambda means, count: means.sum(axis=-1))
    values = np.random.default_rng(0).normal(size=(200, 1, 3, 1))
    expected = mean_interval(moments(values[..., 0]))
    for a, b in zip(mean_interval(pooled_moments(values, "mean")), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=0.02)


def test_of_few_seeds_a_statistic_covers_the_mean_over_seeds():
    covered = 0
    for seed in range(60):
        values = np.moveaxis(crossed(np.random.default_rng(seed), 3, 30, (1, 1, 1), 1), 0, 1)
        _, low, high = mean_interval(statistic_moments(lambda means: means, values))
        covered += int((low <= 0).item() and (high >= 0).item())
    assert covered >= 51  # of 60; 57 are expected


def test_each_bin_is_that_of_scikit_learns_calibration_curve():
    confidence, correct = drawn(2000, np.random.default_rng(3), lambda c: c**2)
    features = calibration(confidence, correct).reshape(2000, 3, 10)
    inside, gap = features[:, 0].sum(axis=0), features[:, 1].sum(axis=0)
    rate, mean = calibration_curve(correct.ravel(), confidence.ravel(), n_bins=10)
    assert (inside > 0).all()
    np.testing.assert_allclose(gap / inside, mean - rate, atol=1e-5)


def test_explained_variance_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    wanted, guess = rng.normal(size=(2, 500, 1))
    guess = wanted + 0.5 * guess
    features = np.stack([(wanted - guess) ** 2, wanted, wanted**2], axis=-1)[:, :, None]
    found = pooled_moments(features, "explained_variance").seed_means.item()
    assert found == pytest.approx(r2_score(wanted, guess), rel=1e-6)


@pytest.mark.parametrize(
    ("means", "rounds"),
    [
        ([0.5, 0.7, 0.8, 0.805, 0.8], 2),
        ([0.8, 0.8, 0.8], 0),
        ([0.1, 0.2, 0.3], 2),
        ([0.2, 0.3, 0.205, 0.2], 2),
        ([0.2], 0),
    ],
)
def test_rounds_to_convergence_are_counted_from_the_last_mean_that_is_away(means, rounds):
    assert rounds_to_convergence(np.array([means, means])).tolist() == [rounds, rounds]
