"""Facts of the keys: none is another's, whatever the seeds, and all are pure functions."""

import jax
import jax.numpy as jnp
import numpy as np

from icl_align.running import keys as keys_module
from icl_align.running.keys import evaluation_key, evaluation_keys, numbered_keys, training_keys


def words(keys):
    """A batch of keys as a set of tuples."""
    return {tuple(row) for row in np.asarray(jax.random.key_data(keys)).reshape(-1, 2).tolist()}


def test_training_keys_are_a_pure_function_of_seed_and_step():
    traced = jax.jit(lambda seed, step: training_keys(seed, step, 8))
    assert words(training_keys(3, 11, 8)) == words(traced(3, 11))
    assert len(words(training_keys(3, 11, 8))) == 8


def test_training_keys_of_other_steps_and_seeds_are_all_different():
    keys = jax.vmap(
        lambda seed: jax.vmap(lambda step: training_keys(seed, step, 16))(jnp.arange(50))
    )
    assert len(words(keys(jnp.arange(4)))) == 4 * 50 * 16


def test_no_evaluation_key_is_a_training_key():
    steps = jnp.concatenate([jnp.arange(50), jnp.array([2**31 - 2, 2**31 - 1])])
    keys = jax.vmap(lambda seed: jax.vmap(lambda step: training_keys(seed, step, 16))(steps))
    trained = words(keys(jnp.arange(3)))
    for seed in range(3):
        evaluated = words(evaluation_keys(seed, jnp.arange(512)))
        assert len(evaluated) == 512 and not evaluated & trained


def test_evaluation_keys_do_not_depend_on_the_split_into_batches():
    whole = evaluation_keys(0, jnp.arange(12))
    parts = [evaluation_keys(0, jnp.arange(5)), evaluation_keys(0, jnp.arange(5, 12))]
    data = [jax.random.key_data(keys) for keys in (whole, *parts)]
    np.testing.assert_array_equal(data[0], jnp.concatenate(data[1:]))


def test_evaluation_keys_of_other_seeds_differ():
    first, second = (words(evaluation_keys(seed, jnp.arange(64))) for seed in (0, 1))
    assert not first & second


def test_contexts_of_a_training_seeds_own_are_nobody_elses():
    seeds = (0, 1, 2**31 - 1)
    own = [words(numbered_keys(evaluation_key(0, seed), jnp.arange(64))) for seed in seeds]
    trained = [words(training_keys(seed, 0, 64)) for seed in seeds]
    everything = [*own, *trained, words(evaluation_keys(0, jnp.arange(64)))]
    assert len(set().union(*everything)) == sum(map(len, everything)) == 7 * 64


def test_special_numbers_lie_beyond_every_training_step_and_fit_32_bits():
    special = (keys_module.EVALUATION, keys_module.INITIALISATION)
    assert len(set(special)) == 2 and all(2**31 <= number < 2**32 for number in special)
    assert keys_module.OWN_CONTEXTS + 2**31 - 1 < 2**32
