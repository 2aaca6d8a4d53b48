"""Facts of the trunk: attention's algebra, the MLP, the norms, and how blocks are drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from icl_align.attention import attend, attention_weights
from icl_align.config import ATTENTIONS, TrunkConfig
from icl_align.transformer import MLP, Attention, Block, Trunk, _narrowing
from networks import parameters

quick_attend = jax.jit(attend, static_argnums=0)


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
    config = TrunkConfig(width=12, num_heads=3, num_layers=1, attention=kind, init="torch")
    attention = Attention(config, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 12)), jnp.float32)
    q, k, v = attention.query(x), attention.key(x), attention.value(x)
    heads = [slice(0, 4), slice(4, 8), slice(8, 12)]
    gathered = [quick_attend(kind, q[..., h], k[..., h], v[..., h], CAUSAL) for h in heads]
    expected = attention.out(jnp.concatenate(gathered, axis=-1))
    np.testing.assert_allclose(attention(x, CAUSAL), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_attention_is_its_map_times_its_values(kind):
    attention = Attention(TrunkConfig(width=8, num_heads=2, attention=kind), rngs=nnx.Rngs(0))
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


@pytest.mark.parametrize(
    "activation, formula",
    [
        ("relu", lambda x: np.maximum(x, 0)),
        ("gelu_exact", lambda x: x * stats.norm.cdf(x)),
        ("gelu", lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))),
    ],
)
def test_the_mlp_applies_its_activation_between_two_linear_maps(activation, formula):
    config = TrunkConfig(width=8, num_heads=1, mlp_width=8, activation=activation)
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
    config = TrunkConfig(width=8, num_heads=2, norm=norm)
    block = Block(config, rngs=nnx.Rngs(0))
    block.attention.out.kernel[...] = jnp.zeros((8, 8))
    block.mlp.down.kernel[...] = jnp.zeros((32, 8))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 8)), jnp.float32)
    np.testing.assert_array_equal(block(x, CAUSAL), x)


def test_pre_post_normalises_the_stream_after_attention():
    config = TrunkConfig(width=8, num_heads=2, norm="pre_post", mlp=False)
    x = jnp.asarray(np.random.default_rng(0).normal(3, 7, size=(5, 8)), jnp.float32)
    out = np.asarray(Block(config, rngs=nnx.Rngs(0))(x, CAUSAL))
    np.testing.assert_allclose(out.mean(axis=-1), 0, atol=1e-5)
    np.testing.assert_allclose(out.var(axis=-1), 1, rtol=1e-3)


def test_with_layer_norm_before_it_attention_does_not_notice_the_scale_of_the_stream():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 8)), jnp.float32)
    for norm, notices in (("pre", False), ("none", True)):
        block = Block(TrunkConfig(width=8, num_heads=2, norm=norm, mlp=False), rngs=nnx.Rngs(0))
        one, other = block(x, CAUSAL) - x, block(10 * x, CAUSAL) - 10 * x
        assert np.allclose(one, other, rtol=1e-2, atol=1e-5) != notices


@pytest.mark.parametrize("norm", ["pre", "pre_post", "none"])
def test_the_residual_stream_is_what_each_block_adds_to(norm):
    config = TrunkConfig(num_layers=3, num_heads=2, width=16, norm=norm, init="torch")
    trunk = Trunk(config, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 5, 16))
    stream = trunk.residual_stream(x, CAUSAL)
    assert len(stream) == 4
    for block, before, after in zip(trunk.blocks, stream, stream[1:], strict=False):
        np.testing.assert_allclose(block(before, CAUSAL), after, atol=1e-6)
    last = trunk.norm(stream[-1]) if trunk.norm else stream[-1]
    np.testing.assert_allclose(trunk(x, CAUSAL), last, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"norm": "none"}, {"norm": "pre_post"}, {"mlp": False}])
def test_blocks_drawn_together_are_those_drawn_in_turn(options):
    config = TrunkConfig(num_layers=3, num_heads=2, width=16, **options)
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
