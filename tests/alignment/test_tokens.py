"""Facts of the token layouts: what a token holds, and in which order."""

import jax.numpy as jnp
import numpy as np

from icl_align.alignment.options import TaskConfig
from icl_align.alignment.tokens import InterleavedTokens, TripletNormTokens, TripletTokens
from networks import D, N, random_context


def features(layout, context):
    queries = jnp.broadcast_to(context.query[..., None, :], context.responses.shape)
    return layout(TaskConfig(dim=D)).features(context, queries)


def test_triplet_tokens_hold_query_response_reward_and_a_mark_after_the_bare_query():
    context = random_context(0, (2,))
    tokens = np.asarray(features(TripletTokens, context))
    assert tokens.shape == (2, N + 1, 2 * D + 2)
    np.testing.assert_array_equal(tokens[..., :D], np.repeat(context.query[:, None], N + 1, axis=1))
    np.testing.assert_array_equal(tokens[:, 0, D:], 0)
    np.testing.assert_array_equal(tokens[:, 1:, D : 2 * D], context.responses)
    np.testing.assert_array_equal(tokens[:, 1:, 2 * D], context.rewards)
    np.testing.assert_array_equal(tokens[:, 1:, -1], 1)


def test_triplet_norm_tokens_are_triplets_with_the_squared_norm_before_the_reward():
    context = random_context(0, (2,))
    tokens = np.asarray(features(TripletNormTokens, context))
    plain = np.asarray(features(TripletTokens, context))
    np.testing.assert_array_equal(np.delete(tokens, 2 * D, axis=-1), plain)
    np.testing.assert_array_equal(tokens[:, 0, 2 * D], 0)
    squares = np.sum(np.asarray(context.responses, np.float64) ** 2, axis=-1)
    np.testing.assert_allclose(tokens[:, 1:, 2 * D], squares, rtol=1e-6)


def test_interleaved_tokens_are_query_response_reward_in_turn_and_a_last_query():
    context = random_context(0, (2,))
    tokens = np.asarray(features(InterleavedTokens, context))
    assert tokens.shape == (2, 3 * N + 1, D)
    np.testing.assert_array_equal(tokens[:, ::3], np.repeat(context.query[:, None], N + 1, axis=1))
    np.testing.assert_array_equal(tokens[:, 1::3], context.responses)
    np.testing.assert_array_equal(tokens[:, 2::3, 0], context.rewards)
    np.testing.assert_array_equal(tokens[:, 2::3, 1:], 0)
