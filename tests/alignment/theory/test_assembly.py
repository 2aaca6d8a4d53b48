"""Facts of networks described by names: what heads, units, positions and channels do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_align.alignment.contexts import Context
from icl_align.alignment.model import Transformer
from icl_align.alignment.options import ModelConfig, Options, TaskConfig
from icl_align.alignment.theory.assembly import (
    BlockPlan,
    Head,
    Logit,
    Unit,
    as_module,
    assemble,
    channels,
    head_width,
    mlp_width,
    run,
    run_last_row,
)
from icl_align.config import ConfigError

D, N = 2, 4  # dimension and attempts
# Beside the features of a token, a place that positions fill and one that the network writes.
STREAM = channels(query=D, response=D, norm=1, reward=1, one=1, place=1, result=D)
EMBED = {(name, name): 1.0 for name in ("query", "response", "norm", "reward", "one")}


def config_for(num_heads=1, num_layers=1, width=12, **options):
    """An architecture of the family that a network by hand is written into."""
    options = {"activation": "relu", "norm": "none", "causal": False} | options
    model = ModelConfig(
        num_layers=num_layers, num_heads=num_heads, width=width, tokens="triplet_norm", **options
    )
    return Options(task=TaskConfig(dim=D, num_responses=N), model=model)


def network_of(plans, config=None, *, embed=None, positions=None, read_out=None):
    """The plans on `STREAM`; what is read is the result."""
    return assemble(
        config or config_for(num_layers=len(plans)),
        STREAM,
        embed=EMBED if embed is None else embed,
        positions=positions or {},
        plans=plans,
        read_out=read_out or {"result": 1.0},
        dtype=jnp.float32,
    )


def random_context(seed=0):
    rng = np.random.default_rng(seed)
    arrays = rng.normal(size=D), rng.normal(size=(N, D)), rng.random(N), rng.normal(size=D)
    return Context(*(jnp.asarray(array, jnp.float32) for array in arrays))


def rows(network, context=None, attempt_queries=None):
    """Rows 0..N of the network's prediction."""
    context = random_context() if context is None else context
    program = jax.jit(lambda c, q: run(network, c, q))
    return np.asarray(program(context, attempt_queries), np.float64)


def tokens_of(context, places=None):
    """The channels of each token, as the documentation of the tokens has them."""
    query, responses, rewards = (np.asarray(array, np.float64) for array in context[:3])
    bare_first = [(1, 0), (0, 0)]
    return {
        "query": np.tile(query, (N + 1, 1)),
        "response": np.pad(responses, bare_first),
        "norm": np.pad(np.sum(responses**2, axis=1, keepdims=True), bare_first),
        "reward": np.pad(rewards[:, None], bare_first),
        "one": np.pad(np.ones((N, 1)), bare_first),
        "place": np.zeros((N + 1, 1)) if places is None else np.asarray(places)[:, None],
        "result": np.zeros((N + 1, D)),
    }


def softmax_rows(logits):
    """Attention weights of token n over the tokens 0..n, by which row n is predicted."""
    weights = [np.exp(row[: n + 1]) for n, row in enumerate(logits)]
    return [w / w.sum() for w in weights]


# ----------------------------------------------------------------------------------------- channels


def test_channels_follow_one_another_in_the_order_of_their_names():
    assert channels(a=2, b=1, c=3) == {"a": slice(0, 2), "b": slice(2, 3), "c": slice(3, 6)}


def test_nothing_is_predicted_by_a_network_that_does_nothing():
    np.testing.assert_array_equal(rows(network_of([BlockPlan(())])), 0)


def test_features_reach_their_channels_by_factors_and_matrices_and_the_channels_are_summed():
    matrix = np.array([[1.0, 2.0], [-3.0, 0.5]])
    embed = {("query", "result"): matrix, ("response", "response"): -2.0}
    read_out = {"result": 1.0, "response": 0.5}
    network = network_of([BlockPlan(())], embed=embed, read_out=read_out)
    tokens = tokens_of(random_context())
    expected = tokens["query"] @ matrix - tokens["response"]
    np.testing.assert_allclose(rows(network), expected, atol=1e-6)


def test_two_features_of_one_channel_add_up():
    embed = {("query", "result"): 1.0, ("response", "result"): 3.0}
    tokens = tokens_of(random_context())
    expected = tokens["query"] + 3 * tokens["response"]
    np.testing.assert_allclose(rows(network_of([BlockPlan(())], embed=embed)), expected, atol=1e-6)


def test_positions_are_added_to_the_first_tokens_and_the_others_have_none():
    values = np.array([[1.0, 2.0], [3.0, -4.0], [0.5, 0.0]])  # three of five tokens
    network = network_of([BlockPlan(())], positions={"result": values})
    np.testing.assert_allclose(rows(network), np.pad(values, [(0, 2), (0, 0)]), atol=1e-6)


def test_every_attempt_s_token_holds_the_query_it_answers():
    context = random_context()
    queries = jnp.asarray(np.random.default_rng(1).normal(size=(N, D)), jnp.float32)
    network = network_of([BlockPlan(())], read_out={"query": 1.0})
    expected = np.concatenate([context.query[None], queries])
    np.testing.assert_allclose(rows(network, context, queries), expected, atol=1e-6)


# -------------------------------------------------------------------------------------------- heads


@pytest.mark.parametrize("num_heads", [1, 2])
def test_a_sharp_head_copies_the_response_of_the_largest_reward_so_far(num_heads):
    # The bare query's reward is 0, so it is held back by the mark of the attempts.
    head = Head((Logit({"reward": 1e4, "one": 1e5}),), (("response", "result", 3.0),))
    network = network_of([BlockPlan((head,))], config_for(num_heads))
    context = random_context()
    best = [int(np.argmax(context.rewards[:n])) for n in range(1, N + 1)]
    assert len(set(best)) > 1
    expected = 3 * np.asarray(context.responses)[best]
    np.testing.assert_allclose(rows(network)[1:], expected, rtol=1e-5)
    np.testing.assert_array_equal(rows(network)[0], 0)


@pytest.mark.parametrize("num_heads", [1, 2, 3])  # heads of width 12, 6, and 4: just enough
def test_a_head_s_logits_are_the_sum_of_its_terms_and_copies_are_added_with_their_factors(
    num_heads,
):
    head = Head(
        (
            Logit({"response": 0.7, "query": -0.4}, query="query", query_bias=0.3),
            Logit({"reward": 1.3, "place": -0.2}),
            Logit({"norm": -0.6}, query="place", query_bias=-0.5),
        ),
        (("response", "result", 2.0), ("query", "result", -0.5), ("response", "response", 4.0)),
    )
    places = np.array([0.3, -1.0, 2.0, 0.1, 0.8])
    read_out = {"result": 1.0, "response": 0.1}
    plans = [BlockPlan((head,))]
    assert head_width(STREAM, plans) == 4
    network = network_of(
        plans, config_for(num_heads), positions={"place": places}, read_out=read_out
    )
    context = random_context()
    token = tokens_of(context, places)
    logits = (
        (token["query"] + 0.3) @ (0.7 * token["response"] - 0.4 * token["query"]).T
        + (1.3 * token["reward"] - 0.2 * token["place"]).T
        + (token["place"] - 0.5) @ (-0.6 * token["norm"]).T
    )
    gathered = [
        weights @ (2.0 * token["response"] - 0.5 * token["query"] + 0.4 * token["response"])[:n]
        for n, weights in enumerate(softmax_rows(logits), start=1)
    ]
    expected = np.stack(gathered) + 0.1 * token["response"]
    np.testing.assert_allclose(rows(network, context), expected, rtol=1e-4, atol=1e-5)


def test_heads_of_a_block_add_up_and_see_the_stream_before_the_block():
    uniform = Head((), (("response", "result", 1.0),))
    best = Head((Logit({"reward": 2.0}),), (("query", "result", 0.5), ("result", "result", 9.0)))
    together = network_of([BlockPlan((uniform, best))], config_for(2))
    each = [network_of([BlockPlan((head,))], config_for(2)) for head in (uniform, best)]
    np.testing.assert_allclose(rows(together), sum(rows(one) for one in each), atol=1e-6)
    mean = np.cumsum(tokens_of(random_context())["response"], axis=0) / np.arange(1, N + 2)[:, None]
    np.testing.assert_allclose(rows(each[0]), mean, atol=1e-6)


def test_blocks_act_one_after_the_other():
    write = BlockPlan((Head((), (("query", "result", 1.0),)),))
    double = BlockPlan((Head((), (("result", "result", 1.0),)),))
    query = np.asarray(random_context().query)
    for plans, factor in (([write, double, double], 4), ([double, double, write], 1)):
        np.testing.assert_allclose(rows(network_of(plans)), np.tile(factor * query, (N + 1, 1)))


# -------------------------------------------------------------------------------------------- units


def test_units_are_relus_of_a_sum_and_scalars_are_shared_by_all_entries():
    units = (
        Unit({"response": 1.5, "reward": -2.0}, {"result": 3.0}, bias=0.4),
        Unit({"query": -1.0, "response": 0.5}, {"result": -0.7, "response": 2.0}),
    )
    read_out = {"result": 1.0, "response": 0.1}
    network = network_of(
        [BlockPlan((), units)], config_for(mlp_width=mlp_width(STREAM, [BlockPlan((), units)])),
        read_out=read_out,
    )  # fmt: skip
    token = tokens_of(random_context())
    first = np.maximum(1.5 * token["response"] - 2.0 * token["reward"] + 0.4, 0)
    second = np.maximum(-token["query"] + 0.5 * token["response"], 0)
    assert np.any(first == 0) and np.any(first > 0) and np.any(second > 0)
    expected = 3 * first - 0.7 * second + 0.2 * second + 0.1 * token["response"]
    np.testing.assert_allclose(rows(network), expected, rtol=1e-5, atol=1e-6)


def test_units_see_what_the_heads_of_their_block_wrote():
    head = Head((), (("query", "result", 1.0),))
    unit = Unit({"result": 1.0}, {"result": -1.0})
    clipped = np.minimum(np.asarray(random_context().query), 0)
    assert np.any(clipped == 0)
    network = network_of([BlockPlan((head,), (unit,))], config_for(mlp_width=D))
    np.testing.assert_allclose(rows(network), np.tile(clipped, (N + 1, 1)), atol=1e-6)


# -------------------------------------------------------------------------------------------- sizes


def test_the_widths_needed_are_those_of_the_widest_head_and_of_all_units_of_the_busiest_block():
    wide_logits = Head((Logit({"response": 1.0}, query="query"), Logit({"norm": -1.0})), ())
    wide_values = Head((), (("response", "result", 1.0), ("query", "result", 1.0)))
    unit = Unit({"response": 1.0, "reward": 1.0}, {"result": 1.0})
    assert head_width(STREAM, [BlockPlan((wide_logits,))]) == D + 1
    assert head_width(STREAM, [BlockPlan((wide_logits,)), BlockPlan((wide_values,))]) == 2 * D
    twice = Head((), (("response", "result", 1.0), ("response", "query", 1.0)))
    assert head_width(STREAM, [BlockPlan((twice,))]) == D  # one value serves two copies
    assert head_width(STREAM, [BlockPlan(())]) == 1
    busy, idle = BlockPlan((), (unit, unit, Unit({"norm": 1.0}, {"norm": 1.0}))), BlockPlan(())
    assert mlp_width(STREAM, [idle, busy, idle]) == 2 * D + 1
    assert mlp_width(STREAM, [idle]) == 0


def test_as_many_plans_as_blocks_are_needed():
    with pytest.raises(ValueError):
        network_of([BlockPlan(())] * 2, config_for(num_layers=3))


def test_an_architecture_that_is_not_allowed_is_refused():
    with pytest.raises(ConfigError, match="num_heads"):
        network_of([BlockPlan(())], config_for(5))  # 12 is no multiple of 5


def test_the_network_is_the_project_s_transformer():
    assert isinstance(as_module(network_of([BlockPlan(())])), Transformer)


@pytest.mark.parametrize("causal", [False, True])
def test_the_last_row_alone_is_the_last_of_all_rows(causal):
    # With two blocks the mask shows: a token of the middle gathers what it may see.
    gather = BlockPlan((Head((Logit({"reward": 2.0}),), (("response", "result", 1.0),)),))
    pass_on = BlockPlan((Head((Logit({"norm": 0.3}),), (("result", "result", 1.0),)),))
    network = network_of([gather, pass_on], config_for(num_layers=2, causal=causal))
    last = jax.jit(lambda context: run_last_row(network, context))(random_context())
    np.testing.assert_allclose(last, rows(network)[-1], rtol=1e-5, atol=1e-6)
