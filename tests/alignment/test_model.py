"""Facts of the transformer: what may be seen, attention's algebra, and its initialisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from icl_align.alignment.contexts import Context
from icl_align.alignment.model import Transformer
from icl_align.alignment.options import TOKENS, ModelConfig, TaskConfig
from icl_align.alignment.tokens import InterleavedTokens, TripletNormTokens, TripletTokens
from icl_align.config import ATTENTIONS
from icl_align.transformer import (
    MLP,
    Attention,
    Block,
    Trunk,
    _narrowing,
    attend,
    attention_weights,
    num_parameters,
)

D, N = 3, 4  # dimension and attempts of most tests
quick_attend = jax.jit(attend, static_argnums=0)


def build(dim=D, num_responses=N, seed=0, **options):
    """A tiny transformer. PyTorch's initialisation makes all its parts count from the start."""
    options = {"num_layers": 1, "num_heads": 2, "width": 16, "init": "torch"} | options
    task = TaskConfig(dim=dim, num_responses=num_responses)
    return Transformer(ModelConfig(**options), task, rngs=nnx.Rngs(seed))


def random_context(seed=0, batch=(), n=N, d=D):
    """Independent normal vectors and uniform rewards."""
    rng = np.random.default_rng(seed)
    query, target = rng.normal(size=(2, *batch, d))
    arrays = query, rng.normal(size=(*batch, n, d)), rng.random((*batch, n)), target
    return Context(*(jnp.asarray(array, jnp.float32) for array in arrays))


def first_attempts(context, n):
    """The context cut after its first n attempts."""
    return context._replace(
        responses=context.responses[..., :n, :], rewards=context.rewards[..., :n]
    )


def run(model, *contexts):
    """Predictions for each context, by one compiled program a shape."""
    forward = jax.jit(lambda context: model(context))
    answers = [np.asarray(forward(context)) for context in contexts]
    return answers[0] if len(answers) == 1 else answers


def parameters(model):
    """Dotted name -> numpy array, of every parameter."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {".".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in flat}


# ------------------------------------------------------------------------------- who may see what

ARCHITECTURES = [
    {},
    {"attention": "linear"},
    {"attention": "linear_normalized", "norm": "none", "mlp": False},
    {"tokens": "triplet_norm"},
    {"tokens": "interleaved", "num_layers": 2},
    {"tokens": "interleaved", "attention": "linear", "norm": "pre_post", "positions": False},
    {"norm": "none", "activation": "relu"},
    {"norm": "pre_post", "mlp": False},
    {"positions": False, "num_heads": 1, "init": "gpt2"},
    {"causal": False},
    {"causal": False, "attention": "linear", "num_layers": 2},
    {"causal": False, "attention": "linear_normalized", "norm": "pre_post"},
    {"causal": False, "tokens": "interleaved", "num_layers": 2, "positions": False},
]
LEAKS = [
    {"causal": False, "sees_future": True},
    {"causal": False, "sees_future": True, "tokens": "interleaved", "attention": "linear"},
]


def name_of(options):
    return "-".join(f"{key}={value}" for key, value in options.items()) or "default"


def moves_when_the_future_changes(model):
    """Entry [n, m]: how far row m moves when the attempts after the first n change."""
    context, other = random_context(1), random_context(2)
    past = np.arange(N) < np.arange(N)[:, None]  # [changed from, attempt]
    changed = Context(
        jnp.tile(context.query, (N, 1)),
        jnp.where(past[..., None], context.responses, other.responses),
        jnp.where(past, context.rewards, other.rewards),
        jnp.tile(context.target, (N, 1)),
    )
    same = jax.tree.map(lambda array: jnp.broadcast_to(array, (N, *array.shape)), context)
    before, after = run(model, same, changed)
    return np.abs(after - before).max(axis=-1)


@pytest.mark.parametrize("options", ARCHITECTURES, ids=name_of)
def test_row_n_reads_the_first_n_attempts_and_no_later_one(options):
    moves = moves_when_the_future_changes(build(**options))
    for n in range(N):
        assert np.all(moves[n, : n + 1] < 1e-6)
        assert np.all(moves[n, n + 1 :] > 1e-5)


@pytest.mark.parametrize("options", LEAKS, ids=name_of)
def test_without_a_mask_every_row_reads_later_attempts(options):
    assert np.all(moves_when_the_future_changes(build(**options)) > 1e-5)


@pytest.mark.parametrize("tokens", ["triplet", "interleaved"])
def test_a_row_reads_both_the_response_and_the_reward_of_its_last_attempt(tokens):
    context, other = random_context(1), random_context(2)
    before, reward, response = run(
        build(tokens=tokens),
        context,
        context._replace(rewards=other.rewards),
        context._replace(responses=other.responses),
    )
    for after in (reward, response):
        assert np.all(np.abs(after - before).max(axis=-1)[1:] > 1e-5)


def test_no_row_reads_the_target():
    context = random_context(1)
    before, after = run(build(), context, context._replace(target=-context.target))
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    "options",
    [{}, {"attention": "linear", "tokens": "interleaved"}, {"attention": "linear_normalized"}],
    ids=name_of,
)
def test_without_causality_row_n_is_the_unmasked_pass_over_the_first_n_attempts(options):
    prefixes = build(causal=False, num_layers=2, **options)
    unmasked = build(causal=False, sees_future=True, num_layers=2, **options)
    for name, value in parameters(prefixes).items():
        np.testing.assert_array_equal(value, parameters(unmasked)[name])
    context = random_context(3, (2,))
    rows = run(prefixes, context)
    for n in (0, 2, N):
        last = run(unmasked, first_attempts(context, n))[:, -1]
        np.testing.assert_allclose(rows[:, n], last, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_a_shorter_context_gives_the_first_rows_of_a_longer_one(causal):
    model, context = build(causal=causal), random_context(4, (2,))
    longer, shorter = run(model, context, first_attempts(context, 2))
    np.testing.assert_allclose(longer[:, :3], shorter, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "tokens, order, matters",
    [
        ("interleaved", [2, 0, 3, 1], False),
        ("triplet", [2, 0, 1, 3], False),
        ("triplet", [2, 0, 3, 1], True),  # the answer is read at the token of the last attempt
    ],
)
def test_without_mask_and_positions_the_order_of_the_attempts_does_not_matter(
    tokens, order, matters
):
    context = random_context(5)
    permuted = context._replace(
        responses=context.responses[np.array(order)], rewards=context.rewards[np.array(order)]
    )
    for positions in (False, True):  # with positions it always does
        model = build(causal=False, positions=positions, tokens=tokens, num_layers=2)
        one, other = (rows[-1] for rows in run(model, context, permuted))
        moved = np.abs(one - other).max()
        assert moved > 1e-3 if matters or positions else moved < 1e-5


def test_only_in_triplet_tokens_does_a_set_of_tokens_know_whose_a_reward_is():
    # Interleaved tokens without positions or mask are a bag of queries, responses and rewards.
    context = random_context(6)
    shuffled = context._replace(rewards=context.rewards[::-1])
    for tokens, knows in (("triplet", True), ("interleaved", False)):
        model = build(causal=False, positions=False, tokens=tokens)
        one, other = (rows[-1] for rows in run(model, context, shuffled))
        assert np.allclose(one, other, rtol=1e-4, atol=1e-5) != knows


# -------------------------------------------------------------------------------------- attention


def random_qkv(seed=0, batch=(2, 3), t=5, k=4):
    """Queries, keys and values."""
    draws = np.random.default_rng(seed).normal(size=(3, *batch, t, k))
    return tuple(jnp.asarray(draw, jnp.float32) for draw in draws)


CAUSAL = jnp.tril(jnp.ones((5, 5), bool))


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_attention_is_its_formula_token_by_token(kind):
    q, k, v = random_qkv()
    visible = np.tril(np.random.default_rng(1).random((5, 5)) < 0.6) | np.eye(5, dtype=bool)
    got = quick_attend(kind, q, k, v, jnp.asarray(visible))
    q, k, v = (np.asarray(array, np.float64) for array in (q, k, v))

    def phi(z):
        return np.where(z > 0, z + 1, np.exp(z))  # elu + 1

    for b in np.ndindex(2, 3):
        for i in range(5):
            weights = {}
            for j in np.flatnonzero(visible[i]):
                product = q[b][i] @ k[b][j] / 2  # sqrt K = 2
                weights[j] = {
                    "softmax": np.exp(product),
                    "linear": product,
                    "linear_normalized": phi(q[b][i]) @ phi(k[b][j]),
                }[kind]
            total = 1 if kind == "linear" else sum(weights.values())
            expected = sum(w / total * v[b][j] for j, w in weights.items())
            np.testing.assert_allclose(got[b][i], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["softmax", "linear_normalized"])
def test_attention_that_is_an_average_passes_equal_values_through(kind):
    q, k, v = random_qkv()
    v = jnp.broadcast_to(v[..., :1, :], v.shape)
    np.testing.assert_allclose(quick_attend(kind, q, k, v, CAUSAL), v, rtol=1e-5)


@pytest.mark.parametrize("kind", ["softmax", "linear_normalized"])
def test_attention_that_is_an_average_stays_between_the_values_seen(kind):
    q, k, v = random_qkv()
    out = quick_attend(kind, 10 * q, k, v, CAUSAL)
    low, high = np.minimum.accumulate(v, axis=-2), np.maximum.accumulate(v, axis=-2)
    assert np.all((out >= low - 1e-5) & (out <= high + 1e-5))


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_attention_is_linear_in_the_values(kind):
    q, k, v = random_qkv()
    other = random_qkv(7)[2]
    whole = quick_attend(kind, q, k, 2 * v - 3 * other, CAUSAL)
    parts = 2 * quick_attend(kind, q, k, v, CAUSAL) - 3 * quick_attend(kind, q, k, other, CAUSAL)
    np.testing.assert_allclose(whole, parts, rtol=1e-4, atol=1e-4)


def test_linear_attention_doubles_with_its_keys_and_with_its_queries():
    q, k, v = random_qkv()
    plain = quick_attend("linear", q, k, v, CAUSAL)
    np.testing.assert_allclose(quick_attend("linear", q, 2 * k, v, CAUSAL), 2 * plain, rtol=1e-5)
    np.testing.assert_allclose(quick_attend("linear", 2 * q, k, v, CAUSAL), 2 * plain, rtol=1e-5)


def test_softmax_attention_does_not_notice_a_common_shift_of_the_keys():
    q, k, v = random_qkv()
    plain, shifted = (quick_attend("softmax", q, k + shift, v, CAUSAL) for shift in (0.0, 3.0))
    np.testing.assert_allclose(plain, shifted, rtol=1e-4, atol=1e-5)


def test_sharp_softmax_attention_picks_the_best_key_and_stays_finite():
    q, k, v = random_qkv()
    everything = jnp.ones((5, 5), bool)
    out = quick_attend("softmax", 1e4 * q, k, v, everything)
    best = np.argmax(q @ jnp.swapaxes(k, -1, -2), axis=-1)
    np.testing.assert_allclose(
        out, np.take_along_axis(np.asarray(v), best[..., None], -2), atol=1e-4
    )


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_what_attention_may_not_see_does_not_matter(kind):
    q, k, v = random_qkv()
    hidden = jnp.arange(5)[:, None] >= 3
    visible = jnp.broadcast_to(jnp.arange(5) < 3, (5, 5))
    k_changed, v_changed = jnp.where(hidden, 50.0, k), jnp.where(hidden, -1e6, v)
    plain = quick_attend(kind, q, k, v, visible)
    np.testing.assert_array_equal(quick_attend(kind, q, k_changed, v_changed, visible), plain)


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_several_heads_are_single_heads_on_slices_of_the_projections(kind):
    config = ModelConfig(width=12, num_heads=3, num_layers=1, attention=kind, init="torch")
    attention = Attention(config, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 12)), jnp.float32)
    q, k, v = attention.query(x), attention.key(x), attention.value(x)
    heads = [slice(0, 4), slice(4, 8), slice(8, 12)]
    gathered = [quick_attend(kind, q[..., h], k[..., h], v[..., h], CAUSAL) for h in heads]
    expected = attention.out(jnp.concatenate(gathered, axis=-1))
    np.testing.assert_allclose(attention(x, CAUSAL), expected, rtol=1e-4, atol=1e-5)


# ----------------------------------------------------------------------------------- other parts


@pytest.mark.parametrize(
    "activation, formula",
    [
        ("relu", lambda x: np.maximum(x, 0)),
        ("gelu_exact", lambda x: x * stats.norm.cdf(x)),
        ("gelu", lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))),
    ],
)
def test_the_mlp_applies_its_activation_between_two_linear_maps(activation, formula):
    config = ModelConfig(width=8, num_heads=1, mlp_width=8, activation=activation)
    mlp = MLP(config, rngs=nnx.Rngs(0))
    mlp.up.kernel[...] = jnp.eye(8)
    mlp.down.kernel[...] = 2 * jnp.eye(8)
    mlp.down.bias[...] = jnp.ones(8)
    x = np.linspace(-4, 4, 80).reshape(10, 8)
    out = mlp(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(out, 2 * formula(x) + 1, rtol=1e-5, atol=2e-6)


def test_the_two_gelus_differ():
    x = jnp.linspace(-3, 3, 20)
    exact, tanh = (jax.nn.gelu(x, approximate=approximate) for approximate in (False, True))
    assert 1e-4 < np.abs(exact - tanh).max() < 1e-3  # so the test above tells them apart


@pytest.mark.parametrize("norm", ["pre", "none"])
def test_a_block_that_writes_nothing_passes_the_residual_stream_through(norm):
    config = ModelConfig(width=8, num_heads=2, norm=norm)
    block = Block(config, rngs=nnx.Rngs(0))
    block.attention.out.kernel[...] = jnp.zeros((8, 8))
    block.mlp.down.kernel[...] = jnp.zeros((32, 8))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 8)), jnp.float32)
    np.testing.assert_array_equal(block(x, CAUSAL), x)


def test_pre_post_normalises_the_stream_after_attention():
    config = ModelConfig(width=8, num_heads=2, norm="pre_post", mlp=False)
    x = jnp.asarray(np.random.default_rng(0).normal(3, 7, size=(5, 8)), jnp.float32)
    out = np.asarray(Block(config, rngs=nnx.Rngs(0))(x, CAUSAL))
    np.testing.assert_allclose(out.mean(axis=-1), 0, atol=1e-5)
    np.testing.assert_allclose(out.var(axis=-1), 1, rtol=1e-3)


def test_with_layer_norm_before_it_attention_does_not_notice_the_scale_of_the_stream():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 8)), jnp.float32)
    for norm, notices in (("pre", False), ("none", True)):
        block = Block(ModelConfig(width=8, num_heads=2, norm=norm, mlp=False), rngs=nnx.Rngs(0))
        one, other = block(x, CAUSAL) - x, block(10 * x, CAUSAL) - 10 * x
        assert np.allclose(one, other, rtol=1e-2, atol=1e-5) != notices


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


@pytest.mark.parametrize("tokens", TOKENS)
def test_attempts_that_answer_the_query_are_the_default_and_another_query_is_noticed(tokens):
    context, model = random_context(1), build(tokens=tokens)
    same = jnp.broadcast_to(context.query, context.responses.shape)
    default, named = model(context), model(context, same)
    np.testing.assert_array_equal(default, named)
    moved = np.abs(np.asarray(model(context, same.at[2].add(1.0)) - default)).max(axis=-1)
    first = 2 if tokens == "interleaved" else 3  # there row 2 is read at the third attempt's query
    assert np.all(moved[:first] < 1e-6) and np.all(moved[first:] > 1e-5)


@pytest.mark.parametrize("norm", ["pre", "pre_post", "none"])
def test_the_residual_stream_is_what_each_block_adds_to(norm):
    trunk = build(norm=norm, num_layers=3).trunk
    x = jax.random.normal(jax.random.key(0), (2, 5, 16))
    stream = trunk.residual_stream(x, CAUSAL)
    assert len(stream) == 4
    for block, before, after in zip(trunk.blocks, stream, stream[1:], strict=False):
        np.testing.assert_allclose(block(before, CAUSAL), after, atol=1e-6)
    last = trunk.norm(stream[-1]) if trunk.norm else stream[-1]
    np.testing.assert_allclose(trunk(x, CAUSAL), last, atol=1e-6)


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_attention_is_its_map_times_its_values(kind):
    attention = Attention(ModelConfig(width=8, num_heads=2, attention=kind), rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (3, 5, 8))
    maps = np.asarray(attention.weights(x, CAUSAL))
    assert maps.shape == (3, 2, 5, 5)
    assert np.all(maps[..., ~np.asarray(CAUSAL)] == 0)
    if kind != "linear":
        np.testing.assert_allclose(maps.sum(axis=-1), 1, rtol=1e-5)
    values = np.asarray(attention.value(x)).reshape(3, 5, 2, 4)
    gathered = np.einsum("bhij,bjhk->bihk", maps, values).reshape(3, 5, 8)
    np.testing.assert_allclose(
        attention(x, CAUSAL), attention.out(jnp.asarray(gathered)), atol=1e-5
    )


def test_interleaved_tokens_are_query_response_reward_in_turn_and_a_last_query():
    context = random_context(0, (2,))
    tokens = np.asarray(features(InterleavedTokens, context))
    assert tokens.shape == (2, 3 * N + 1, D)
    np.testing.assert_array_equal(tokens[:, ::3], np.repeat(context.query[:, None], N + 1, axis=1))
    np.testing.assert_array_equal(tokens[:, 1::3], context.responses)
    np.testing.assert_array_equal(tokens[:, 2::3, 0], context.rewards)
    np.testing.assert_array_equal(tokens[:, 2::3, 1:], 0)


# -------------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    "options, dim, attempts",
    [
        ({}, 5, 20),
        ({"tokens": "interleaved", "num_layers": 2, "width": 12, "num_heads": 3}, 4, 7),
        ({"mlp_width": 10, "norm": "pre_post", "num_layers": 1, "positions": False}, 2, 3),
    ],
    ids=["default", "interleaved", "pre_post"],
)
def test_the_number_of_parameters_has_a_closed_form(options, dim, attempts):
    config = ModelConfig(**options)
    task = TaskConfig(dim=dim, num_responses=attempts)
    width, features = config.width, 2 * dim + 2
    tokens = attempts + 1
    if config.tokens == "interleaved":
        features, tokens = dim, 3 * attempts + 1
    hidden = config.mlp_width or 4 * width
    norms = 3 if config.norm == "pre_post" else 2
    attention = 4 * (width * width + width)
    mlp = width * hidden + hidden + hidden * width + width
    block = attention + mlp + norms * 2 * width
    ends = features * width + width + width * dim + dim + 2 * width
    expected = ends + config.num_layers * block + config.positions * tokens * width
    model = nnx.eval_shape(lambda: Transformer(config, task, rngs=nnx.Rngs(0)))
    assert num_parameters(model) == expected


def test_what_is_left_out_has_no_parameters():
    names = " ".join(parameters(build()))
    assert all(part in names for part in ("mlp", "norm", "positions"))
    assert "mlp" not in " ".join(parameters(build(mlp=False)))
    assert "norm" not in " ".join(parameters(build(norm="none")))
    assert "positions" not in parameters(build(positions=False))


def test_the_trunk_starts_as_gpt_2_does():
    layers = 3
    model = build(init="gpt2", num_layers=layers, width=64, dim=5, num_responses=20)
    values = parameters(model)
    for name, value in values.items():
        if name == "positions":
            np.testing.assert_allclose(value.std(), 0.02, rtol=0.1)
        elif not name.startswith("trunk"):
            continue
        elif name.endswith("kernel"):
            to_residual = ".out." in name or ".down." in name
            std = 0.02 / np.sqrt(2 * layers) if to_residual else 0.02
            np.testing.assert_allclose(value.std(), std, rtol=0.06)  # 4096 entries and more
            assert stats.kstest(value.ravel() / std, "norm").pvalue > 1e-4
        else:
            np.testing.assert_array_equal(value, 1 if name.endswith("scale") else 0)


@pytest.mark.parametrize("init", ["gpt2", "torch"])
def test_linear_maps_outside_gpt_2_s_trunk_start_as_pytorch_s_do(init):
    # U(-1, 1) / sqrt(number of inputs), for the kernel and for the bias.
    values = parameters(build(init=init, width=64, dim=5))
    checked = 0
    for name, kernel in values.items():
        if not name.endswith("kernel") or (name.startswith("trunk") and init == "gpt2"):
            continue
        bound = 1 / np.sqrt(kernel.shape[0])
        bias = values[name.replace("kernel", "bias")]
        assert np.all(np.abs(kernel) <= bound) and np.all(np.abs(bias) <= bound)
        assert stats.kstest(kernel.ravel() / bound, "uniform", (-1, 2)).pvalue > 1e-4
        assert np.any(bias != 0)
        checked += 1
    assert checked == (2 if init == "gpt2" else 8)


def test_pytorch_s_positions_are_standard_normal():
    values = parameters(build(width=64, num_responses=20))["positions"]
    assert stats.kstest(values.ravel(), "norm").pvalue > 1e-4


def test_every_parameter_starts_from_its_own_draw_and_every_seed_differs():
    first, second = (parameters(build(seed=seed, num_layers=2)) for seed in (0, 1))
    kernels = [first[name] for name in first if name.endswith("kernel")]
    starts = {tuple(kernel.ravel()[:3].tolist()) for kernel in kernels}
    assert len(starts) == len(kernels)
    for name in first:
        if name.endswith("kernel"):
            assert not np.any(first[name] == second[name])


@pytest.mark.parametrize("options", [{}, {"norm": "none"}, {"norm": "pre_post"}, {"mlp": False}])
def test_blocks_drawn_together_are_those_drawn_in_turn(options):
    config = ModelConfig(num_layers=3, num_heads=2, width=16, **options)
    together, in_turn = nnx.Rngs(5), nnx.Rngs(5)
    together.params(), in_turn.params()  # something else is drawn before them
    blocks = Trunk(config, rngs=together).blocks
    for block in blocks:
        expected = parameters(Block(config, rngs=in_turn))
        assert parameters(block).keys() == expected.keys()
        for name, value in parameters(block).items():
            np.testing.assert_array_equal(value, expected[name], err_msg=name)
    if config.norm != "none":
        nnx.LayerNorm(config.width, rngs=in_turn)
    assert together.params() == in_turn.params()  # and so is what is drawn after them


def test_initialisation_is_a_pure_function_of_the_seed():
    for name, value in parameters(build(seed=3)).items():
        np.testing.assert_array_equal(value, parameters(build(seed=3))[name])


@pytest.mark.parametrize(
    "options", [{}, {"tokens": "interleaved", "norm": "pre_post"}], ids=name_of
)
def test_every_parameter_but_the_key_biases_matters(options):
    # A bias of the keys shifts all logits of a softmax alike.
    graph, state = nnx.split(build(**options))
    context = random_context(8, (4,))
    weights = jnp.asarray(np.random.default_rng(9).normal(size=(4, N + 1, D)), jnp.float32)
    gradient = jax.jit(jax.grad(lambda s: jnp.sum(weights * nnx.merge(graph, s)(context))))(state)
    largest = {
        name: np.abs(value).max() for name, value in parameters(nnx.merge(graph, gradient)).items()
    }
    idle = {name for name, value in largest.items() if value < 1e-5}
    assert idle == {name for name in largest if name.endswith("key.bias")}


# ---------------------------------------------------------------------------------- sizes and axes


@pytest.mark.parametrize("tokens", ["triplet", "interleaved"])
def test_more_attempts_than_learned_positions_are_refused(tokens):
    model = build(tokens=tokens)
    with pytest.raises(ValueError, match="5 attempts need"):
        model(random_context(n=N + 1))


@pytest.mark.parametrize("options", [{}, {"causal": False}], ids=name_of)
def test_without_positions_longer_contexts_work(options):
    model, context = build(positions=False, **options), random_context(n=N + 3)
    longer, shorter = run(model, context, first_attempts(context, N))
    assert longer.shape == (N + 4, D)
    np.testing.assert_allclose(longer[: N + 1], shorter, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens", ["triplet", "interleaved"])
def test_one_dimension_is_enough(tokens):
    context = random_context(1, (2,), d=1)
    rows = run(build(dim=1, tokens=tokens), context)
    assert rows.shape == (2, N + 1, 1) and np.all(np.isfinite(rows))
    changed = run(build(dim=1, tokens=tokens), context._replace(rewards=1 - context.rewards))
    assert np.all(np.abs(changed - rows)[:, 1:] > 1e-6)


@pytest.mark.parametrize("options", [{}, {"causal": False, "tokens": "interleaved"}], ids=name_of)
def test_any_leading_axes_agree(options):
    model, grid = build(**options), random_context(2, (2, 3))
    row, one = (jax.tree.map(lambda array, i=i: array[i], grid) for i in (1, (1, 2)))
    of_grid, of_row, of_one = run(model, grid, row, one)
    assert of_grid.shape == (2, 3, N + 1, D)
    np.testing.assert_allclose(of_grid[1], of_row, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(of_row[2], of_one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_normalising_after_the_product_changes_neither_attention_nor_its_gradient(causal):
    q, k, v, out = jax.random.normal(jax.random.key(5), (4, 2, 3, 7, 4))
    visible = jnp.tril(jnp.ones((7, 7), bool)) if causal else jnp.ones((7, 7), bool)

    def fast(q, k, v):
        return jnp.sum(out * attend("softmax", q, k, v, visible))

    def plain(q, k, v):
        return jnp.sum(out * (attention_weights("softmax", q, k, visible) @ v))

    for a, b in zip(
        jax.value_and_grad(fast, (0, 1, 2))(q, k, v),
        jax.value_and_grad(plain, (0, 1, 2))(q, k, v),
        strict=True,
    ):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), a, b)


def test_a_narrowing_map_is_its_linear_map_and_has_its_gradient():
    linear = nnx.Linear(12, 5, rngs=nnx.Rngs(0))
    x, out = jax.random.normal(jax.random.key(1), (6, 12)), jnp.arange(30.0).reshape(6, 5)
    graph, state = nnx.split(linear)

    def gradients(function):
        return jax.value_and_grad(
            lambda s, x: jnp.sum(out * function(nnx.merge(graph, s), x)), (0, 1)
        )(state, x)

    fast, plain = gradients(_narrowing), gradients(lambda one, x: one(x))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), fast, plain)
