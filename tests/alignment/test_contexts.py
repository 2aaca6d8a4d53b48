"""Facts of the data process: what a context is, and what each random draw may depend on."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from scipy import stats

from icl_align.alignment.contexts import (
    Stream,
    add_reward_noise,
    rank_of,
    sample_context,
    sample_contexts,
    shown_to_transformer,
    transform_rewards,
)
from icl_align.alignment.options import TASKS, TaskConfig

# A distribution that is right passes a Kolmogorov-Smirnov test at this level; keys are fixed.
LEVEL = 1e-3
noisy = jax.jit(add_reward_noise)


def numpy64(context):
    """The four arrays of a context in float64."""
    return tuple(np.asarray(array, np.float64) for array in context)


def corrupt_responses(context):
    """(y_i - r_i W x) / (1 - r_i): what the corrupt policies answered. Needs clean rewards."""
    _, responses, rewards, target = numpy64(context)
    clean_share = rewards[..., None]
    return (responses - clean_share * target[..., None, :]) / (1 - clean_share)


def centred_spectrum(context):
    """Singular values of the responses about their mean, largest first, for each context."""
    responses = numpy64(context)[1]
    return np.linalg.svd(responses - responses.mean(axis=1, keepdims=True), compute_uv=False)


# ------------------------------------------------------------------------------------- responses


def test_responses_of_shared_corruption_lie_on_a_line(draw):
    spectrum = centred_spectrum(draw(200, reward_noise=0.5))
    assert np.all(spectrum[:, 1] < 1e-5 * spectrum[:, 0])


def test_responses_of_independent_corruption_fill_the_space(draw):
    spectrum = centred_spectrum(draw(200, name="independent_corruption"))
    assert np.all(spectrum[:, -1] > 1e-3 * spectrum[:, 0])


def test_one_corrupt_response_explains_every_attempt_of_shared_corruption(draw):
    context = draw(100)
    corrupt = corrupt_responses(context)
    trusted = np.where(numpy64(context)[2] < 0.9, 1.0, np.nan)[..., None]  # 1 - r divides
    spread = np.nanmax(trusted * corrupt, axis=1) - np.nanmin(trusted * corrupt, axis=1)
    assert np.max(spread) < 1e-4


def test_corrupt_responses_of_independent_corruption_are_uncorrelated_between_attempts(draw):
    context = draw(4000, name="independent_corruption", num_responses=2)
    corrupt = corrupt_responses(context)
    usable = np.all(numpy64(context)[2] < 0.99, axis=1)
    unit = corrupt[usable] / np.linalg.norm(numpy64(context)[0][usable], axis=-1)[:, None, None]
    correlation = np.corrcoef(unit[:, 0].ravel(), unit[:, 1].ravel())[0, 1]
    assert abs(correlation) < 4 / np.sqrt(unit[:, 0].size)


@pytest.mark.parametrize("name", TASKS)
def test_query_responses_and_target_do_not_depend_on_the_reward_noise(draw, name):
    clean, some, full = (draw(20, reward_noise=p, name=name) for p in (0.0, 0.3, 1.0))
    for other in (some, full):
        np.testing.assert_array_equal(clean.query, other.query)
        np.testing.assert_array_equal(clean.responses, other.responses)
        np.testing.assert_array_equal(clean.target, other.target)
    assert not np.array_equal(clean.rewards, some.rewards)


@pytest.mark.parametrize("transform", ["power", "rank"])
def test_a_reward_transform_changes_the_rewards_alone(draw, transform):
    plain, other = draw(20), draw(20, reward_transform=transform)
    np.testing.assert_array_equal(plain.responses, other.responses)
    np.testing.assert_array_equal(plain.target, other.target)
    assert not np.allclose(plain.rewards, other.rewards)


def test_the_task_s_own_reward_noise_is_used_unless_overridden():
    key = jax.random.key(3)
    own = sample_context(TaskConfig(reward_noise=0.5), key)
    given_noise = sample_context(TaskConfig(), key, 0.5)
    overridden = sample_context(TaskConfig(reward_noise=0.5), key, 0.0)
    np.testing.assert_array_equal(own.rewards, given_noise.rewards)
    np.testing.assert_array_equal(overridden.rewards, sample_context(TaskConfig(), key).rewards)


def test_a_context_does_not_depend_on_the_batch_it_is_drawn_in():
    task = TaskConfig(num_responses=4)
    keys = jax.random.split(jax.random.key(5), 6)
    batch = sample_contexts(task, keys)
    alone = sample_context(task, keys[4])
    for several, one in zip(batch, alone, strict=True):
        np.testing.assert_allclose(several[4], one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", TASKS)
def test_two_responses_in_one_dimension_make_a_context(draw, name):
    context = draw(3, name=name, num_responses=2, dim=1)
    assert [array.shape for array in context] == [(3, 1), (3, 2, 1), (3, 2), (3, 1)]


@pytest.mark.parametrize("name", TASKS)
def test_a_query_of_unit_norm_only_rescales_the_context(draw, name):
    # Policies are linear and drawn apart from the query: x / ||x|| gives y / ||x||.
    plain, unit = draw(50, name=name), draw(50, name=name, unit_norm_queries=True)
    norm = np.linalg.norm(plain.query, axis=-1)
    np.testing.assert_allclose(np.linalg.norm(unit.query, axis=-1), 1, rtol=1e-6)
    np.testing.assert_allclose(unit.query * norm[:, None], plain.query, rtol=1e-5)
    np.testing.assert_allclose(unit.target * norm[:, None], plain.target, rtol=1e-3, atol=1e-5)
    scaled = unit.responses * norm[:, None, None]
    np.testing.assert_allclose(scaled, plain.responses, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(unit.rewards, plain.rewards)


# --------------------------------------------------------------------------------- distributions


def test_queries_are_standard_normal_and_clean_rewards_uniform(draw):
    query, _, rewards, _ = numpy64(draw(2000))
    assert stats.kstest(query.ravel(), "norm").pvalue > LEVEL
    assert stats.kstest(rewards.ravel(), "uniform").pvalue > LEVEL
    assert abs(rewards.mean() - 0.5) < 4 * np.sqrt(1 / 12 / rewards.size)


def test_target_over_query_norm_is_standard_normal(draw):
    # W has independent N(0, 1) entries, so W x given x is N(0, ||x||^2 I).
    query, _, _, target = numpy64(draw(2000))
    unit = target / np.linalg.norm(query, axis=-1, keepdims=True)
    assert stats.kstest(unit.ravel(), "norm").pvalue > LEVEL
    assert abs(np.mean(unit**2) - 1) < 4 * np.sqrt(2 / unit.size)
    assert np.all(np.abs(np.corrcoef(unit.T) - np.eye(5)) < 4 / np.sqrt(2000))


@pytest.mark.parametrize("name", TASKS)
def test_corrupt_responses_are_distributed_as_the_target_and_independent_of_it(draw, name):
    context = draw(4000, name=name, num_responses=2)
    query, _, rewards, target = numpy64(context)
    usable = rewards[:, 0] < 0.99
    norm = np.linalg.norm(query, axis=-1, keepdims=True)[usable]
    corrupt = corrupt_responses(context)[usable, 0] / norm
    assert stats.kstest(corrupt.ravel(), "norm").pvalue > LEVEL
    assert abs(np.mean(corrupt**2) - 1) < 4 * np.sqrt(2 / corrupt.size)
    correlation = np.corrcoef(corrupt.ravel(), (target[usable] / norm).ravel())[0, 1]
    assert abs(correlation) < 4 / np.sqrt(corrupt.size)


def test_streams_of_one_key_are_all_different():
    key = jax.random.key(0)
    data = {tuple(np.asarray(jax.random.key_data(one.of(key)))) for one in Stream}
    assert len(data) == len(Stream)


# ---------------------------------------------------------------------------------- reward noise


def test_no_noise_leaves_every_reward():
    rewards = jax.random.uniform(jax.random.key(1), (50, 20))
    np.testing.assert_array_equal(noisy(jax.random.key(0), rewards, 0.0), rewards)


def test_full_noise_replaces_every_reward_by_an_independent_uniform_draw(draw):
    clean, full = numpy64(draw(2000))[2], numpy64(draw(2000, reward_noise=1.0))[2]
    assert np.mean(clean == full) < 1e-4
    assert stats.kstest(full.ravel(), "uniform").pvalue > LEVEL
    assert abs(np.corrcoef(clean.ravel(), full.ravel())[0, 1]) < 4 / np.sqrt(clean.size)


def test_fully_noisy_rewards_say_nothing_about_the_responses(draw):
    # 1 - cos to the target falls with the clean reward; with the replaced one it does not vary.
    def correlation(p):
        _, responses, rewards, target = numpy64(draw(2000, reward_noise=p))
        distance = np.linalg.norm(responses - target[:, None], axis=-1)
        return stats.spearmanr(rewards.ravel(), distance.ravel()).statistic

    assert abs(correlation(1.0)) < 0.03
    assert correlation(0.0) < -0.5


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 1000))
def test_rewards_replaced_at_a_small_noise_are_replaced_at_a_larger_one(p, q, seed):
    p, q = min(p, q), max(p, q)
    clean = jnp.full((50,), 2.0)  # outside [0, 1): a replaced reward is seen at once
    few, many = (np.asarray(noisy(jax.random.key(seed), clean, level)) for level in (p, q))
    assert set(np.flatnonzero(few != 2)) <= set(np.flatnonzero(many != 2))
    both = few != 2
    np.testing.assert_array_equal(few[both], many[both])


@given(st.floats(0, 1))
def test_the_share_of_replaced_rewards_is_the_noise(p):
    clean = jnp.full((10000,), 2.0)
    share = np.mean(np.asarray(noisy(jax.random.key(7), clean, p)) != 2)
    assert abs(share - p) <= 4.5 * np.sqrt(p * (1 - p) / 10000) + 1e-4


def test_which_rewards_are_replaced_does_not_depend_on_their_value():
    # At p = 1/2 the kept rewards are as uniform as the replaced ones.
    clean = jax.random.uniform(jax.random.key(8), (20000,))
    kept = np.asarray(noisy(jax.random.key(9), clean, 0.5)) == np.asarray(clean)
    assert stats.kstest(np.asarray(clean)[kept], "uniform").pvalue > LEVEL


# ------------------------------------------------------------------------------ reward transforms

reward_lists = st.lists(st.integers(0, 64), min_size=6, max_size=6).map(
    lambda counts: np.asarray(counts, np.float32) / 64
)
TRANSFORMS = {
    "identity": TaskConfig(),
    "power": TaskConfig(reward_transform="power"),
    "root": TaskConfig(reward_transform="power", reward_power=0.5),
    "rank": TaskConfig(reward_transform="rank"),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@given(rewards=reward_lists)
def test_transforms_keep_the_order_and_stay_in_the_unit_interval(name, rewards):
    out = np.asarray(transform_rewards(TRANSFORMS[name], jnp.asarray(rewards)))
    np.testing.assert_array_equal(np.sign(out[:, None] - out), np.sign(rewards[:, None] - rewards))
    assert np.all((out >= 0) & (out <= 1))


def test_the_power_transform_is_the_power():
    rewards = np.linspace(0, 1, 11, dtype=np.float32)
    out = transform_rewards(TRANSFORMS["power"], jnp.asarray(rewards))
    np.testing.assert_allclose(out, rewards**3, rtol=1e-5)


@given(rewards=reward_lists)
def test_ranks_are_mid_ranks_over_the_number_of_attempts(rewards):
    expected = (stats.rankdata(rewards, method="average") - 0.5) / len(rewards)
    np.testing.assert_allclose(rank_of(jnp.asarray(rewards)), expected, rtol=1e-6)


@given(rewards=reward_lists)
def test_ranks_average_one_half_however_many_are_tied(rewards):
    np.testing.assert_allclose(np.mean(rank_of(jnp.asarray(rewards))), 0.5, rtol=1e-6)


def test_ranks_do_not_change_under_a_monotone_map():
    rewards = jax.random.uniform(jax.random.key(2), (10, 20))
    np.testing.assert_array_equal(rank_of(rewards), rank_of(rewards**3))


def test_ranks_are_taken_after_the_noise(draw):
    rewards = np.sort(draw(20, reward_noise=0.5, reward_transform="rank").rewards)
    np.testing.assert_allclose(rewards, np.tile((np.arange(20) + 0.5) / 20, (20, 1)), rtol=1e-5)


# ------------------------------------------------------------------------------ controls on rewards


def shown(draw, how):
    contexts = draw(30)
    keys = jax.random.split(jax.random.key(0), 30)
    return contexts, shown_to_transformer(TaskConfig(shown_rewards=how), contexts, keys)


@pytest.mark.parametrize("how", ["given", "none", "shuffled"])
def test_a_control_changes_nothing_but_the_rewards(draw, how):
    contexts, seen = shown(draw, how)
    for field in ("query", "responses", "target"):
        np.testing.assert_array_equal(getattr(contexts, field), getattr(seen, field))


def test_given_rewards_are_shown_as_they_are(draw):
    contexts, seen = shown(draw, "given")
    np.testing.assert_array_equal(contexts.rewards, seen.rewards)


def test_hidden_rewards_are_all_equal(draw):
    _, seen = shown(draw, "none")
    assert np.ptp(np.asarray(seen.rewards)) == 0


def test_shuffled_rewards_are_a_permutation_within_each_context(draw):
    contexts, seen = shown(draw, "shuffled")
    before, after = np.asarray(contexts.rewards), np.asarray(seen.rewards)
    np.testing.assert_array_equal(np.sort(before), np.sort(after))
    # A random permutation of 20 has one fixed point in the mean.
    assert 0.2 < np.sum(before == after) / len(before) < 3


def test_every_context_is_shuffled_in_its_own_way(draw):
    contexts, seen = shown(draw, "shuffled")
    before, after = np.asarray(contexts.rewards), np.asarray(seen.rewards)
    permutations = {
        tuple(np.searchsorted(np.sort(b), a)[np.argsort(b)].tolist())
        for b, a in zip(before, after, strict=True)
    }
    assert len(permutations) == len(before)


def test_shuffled_rewards_are_a_pure_function_of_the_key(draw):
    np.testing.assert_array_equal(
        shown(draw, "shuffled")[1].rewards, shown(draw, "shuffled")[1].rewards
    )
