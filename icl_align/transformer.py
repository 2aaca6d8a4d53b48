"""The trunk of every network: blocks of attention and MLP, from token vectors to token vectors.

It knows neither what a token means nor in which world it stands. Every ablation is a field of
`TrunkConfig`.

Array names end in their axes: B any leading axes, T tokens, H heads, K width of a head, D width of
the residual stream, F features of a token.
"""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from icl_align.config import (
    ACTIVATIONS,
    ATTENTIONS,
    INITIALISATIONS,
    NORMS,
    TrunkConfig,
    implemented,
)


class AttentionKind(NamedTuple):
    """How tokens attend: its map, and the values gathered by it."""

    weights: Callable[..., Float[Array, "*batch t t"]]
    attend: Callable[..., Float[Array, "*batch t k"]]


def softmax_weights(
    q_BHTK: Float[Array, "*batch t k"],
    k_BHTK: Float[Array, "*batch t k"],
    visible_TT: Bool[Array, "t t"],
) -> Float[Array, "*batch t t"]:
    """w_ij = exp(q_i.k_j / sqrt K) / sum_j exp(q_i.k_j / sqrt K), as `attention_weights`."""
    return jax.nn.softmax(jnp.where(visible_TT, _logits(q_BHTK, k_BHTK), -jnp.inf), axis=-1)


def linear_weights(
    q_BHTK: Float[Array, "*batch t k"],
    k_BHTK: Float[Array, "*batch t k"],
    visible_TT: Bool[Array, "t t"],
) -> Float[Array, "*batch t t"]:
    """w_ij = q_i.k_j / sqrt K, not normalised (von Oswald et al. 2023)."""
    return jnp.where(visible_TT, _logits(q_BHTK, k_BHTK), 0)


def linear_normalized_weights(
    q_BHTK: Float[Array, "*batch t k"],
    k_BHTK: Float[Array, "*batch t k"],
    visible_TT: Bool[Array, "t t"],
) -> Float[Array, "*batch t t"]:
    """w_ij = phi(q_i).phi(k_j) / sum_j phi(q_i).phi(k_j), phi = elu + 1 (Katharopoulos et al.
    2020).
    """
    q_BHTK, k_BHTK = jax.nn.elu(q_BHTK) + 1, jax.nn.elu(k_BHTK) + 1
    weights_BHTT = jnp.where(visible_TT, q_BHTK @ jnp.swapaxes(k_BHTK, -1, -2), 0)
    return weights_BHTT / jnp.sum(weights_BHTT, axis=-1, keepdims=True)


def _logits(
    q_BHTK: Float[Array, "*batch t k"], k_BHTK: Float[Array, "*batch t k"]
) -> Float[Array, "*batch t t"]:
    return (q_BHTK / math.sqrt(q_BHTK.shape[-1])) @ jnp.swapaxes(k_BHTK, -1, -2)


def _attend_by_softmax(
    q_BHTK: Float[Array, "*batch t k"],
    k_BHTK: Float[Array, "*batch t k"],
    v_BHTK: Float[Array, "*batch t k"],
    visible_TT: Bool[Array, "t t"],
) -> Float[Array, "*batch t k"]:
    # Normalised after the product: the gradient then needs no sum over pairs of tokens.
    logits_BHTT = _logits(q_BHTK, k_BHTK)
    logits_BHTT += jnp.where(visible_TT, 0.0, -jnp.inf).astype(logits_BHTT.dtype)
    largest_BHT1 = jax.lax.stop_gradient(jnp.max(logits_BHTT, axis=-1, keepdims=True))
    exp_BHTT = jnp.exp(logits_BHTT - largest_BHT1)
    return (exp_BHTT @ v_BHTK) / jnp.sum(exp_BHTT, axis=-1, keepdims=True)


def _by_its_map(weights: Callable[..., Float[Array, "*batch t t"]]) -> AttentionKind:
    return AttentionKind(weights, lambda q, k, v, visible: weights(q, k, visible) @ v)


ATTENTION_KINDS = implemented(
    ATTENTIONS,
    {
        "softmax": AttentionKind(softmax_weights, _attend_by_softmax),
        "linear": _by_its_map(linear_weights),
        "linear_normalized": _by_its_map(linear_normalized_weights),
    },
)


def attention_weights(
    kind: str,
    q_BHTK: Float[Array, "*batch t k"],
    k_BHTK: Float[Array, "*batch t k"],
    visible_TT: Bool[Array, "t t"],
) -> Float[Array, "*batch t t"]:
    """How much of token j's value token i takes: entry [i, j].

    Args:
      kind: one of `config.ATTENTIONS`; the formula is that of its function above.
      q_BHTK, k_BHTK: queries and keys.
      visible_TT: entry [i, j] says whether token i may see token j; each sees at least one.
    """
    return ATTENTION_KINDS[kind].weights(q_BHTK, k_BHTK, visible_TT)


def attend(
    kind: str,
    q_BHTK: Float[Array, "*batch t k"],
    k_BHTK: Float[Array, "*batch t k"],
    v_BHTK: Float[Array, "*batch t k"],
    visible_TT: Bool[Array, "t t"],
) -> Float[Array, "*batch t k"]:
    """Attention: each token's mean (or sum) of the values it may see, by `attention_weights`."""
    return ATTENTION_KINDS[kind].attend(q_BHTK, k_BHTK, v_BHTK, visible_TT)


ACTIVATION_FUNCTIONS = implemented(
    ACTIVATIONS,
    {
        "gelu": jax.nn.gelu,
        "gelu_exact": functools.partial(jax.nn.gelu, approximate=False),
        "relu": jax.nn.relu,
    },
)


class NormPlaces(NamedTuple):
    """Where a block has layer norms."""

    before: bool  # each sublayer, and the end of the trunk
    after_attention: bool  # on the residual stream


NORM_PLACES = implemented(
    NORMS,
    {
        "pre": NormPlaces(before=True, after_attention=False),
        "pre_post": NormPlaces(before=True, after_attention=True),
        "none": NormPlaces(before=False, after_attention=False),
    },
)


def torch_linear(features_in: int, features_out: int, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear map with PyTorch's initialisation: kernel and bias U(-1, 1) / sqrt(features_in)."""
    bound = 1 / math.sqrt(features_in)

    def uniform(key, shape, dtype=jnp.float32, **_):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nnx.Linear(features_in, features_out, kernel_init=uniform, bias_init=uniform, rngs=rngs)


def _gpt2_linear(features_in: int, features_out: int, rngs: nnx.Rngs, scale: float) -> nnx.Linear:
    return nnx.Linear(
        features_in, features_out, kernel_init=nnx.initializers.normal(scale), rngs=rngs
    )


class Initialisation(NamedTuple):
    """How the trunk and the positions are drawn."""

    linear: Callable[[int, int, nnx.Rngs, float], nnx.Linear]
    positions: float  # standard deviation


INITIALISATION_RULES = implemented(
    INITIALISATIONS,
    {
        "gpt2": Initialisation(_gpt2_linear, 0.02),
        "torch": Initialisation(lambda f_in, f_out, rngs, _: torch_linear(f_in, f_out, rngs), 1.0),
    },
)


def _linear(
    config: TrunkConfig, features_in: int, features_out: int, rngs: nnx.Rngs, to_residual=False
) -> nnx.Linear:
    """A linear map of the trunk: GPT-2 draws N(0, 0.02), smaller where it feeds the residual."""
    scale = 0.02 / math.sqrt(2 * config.num_layers) if to_residual else 0.02
    return INITIALISATION_RULES[config.init].linear(features_in, features_out, rngs, scale)


def learned_positions(config: TrunkConfig, num_tokens: int, rngs: nnx.Rngs) -> nnx.Param | None:
    """A vector for each of `num_tokens` places, [t, width]; None if `config` has no positions."""
    if not config.positions:
        return None
    scale = INITIALISATION_RULES[config.init].positions
    shape = num_tokens, config.width
    # As the linear maps: float32, whatever jax_enable_x64 says.
    return nnx.Param(scale * jax.random.normal(rngs.params(), shape, jnp.float32))


def learned_tokens(config: TrunkConfig, num_tokens: int, rngs: nnx.Rngs) -> nnx.Param:
    """A vector for each of `num_tokens` tokens of a vocabulary, [v, width], drawn as positions."""
    shape = num_tokens, config.width
    scale = INITIALISATION_RULES[config.init].positions
    return nnx.Param(scale * jax.random.normal(rngs.params(), shape, jnp.float32))


def _narrowing(linear: nnx.Linear, x_NF: Float[Array, "n f"]) -> Float[Array, "n d"]:
    """linear(x) to fewer features.

    Through the transposed kernel, so that its gradient is the product [d, n] @ [n, f]: on CPU 1.7
    times as fast as [f, n] @ [n, d], into which XLA would turn it back without the barrier.
    """
    kernel_DF = jax.lax.optimization_barrier(linear.kernel[...].T)
    return jax.lax.dot_general(x_NF, kernel_DF, (((1,), (1,)), ((), ()))) + linear.bias[...]


def _norm(config: TrunkConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(config.width, epsilon=1e-5, rngs=rngs)


class Attention(nnx.Module):
    """Multi-head attention."""

    def __init__(self, config: TrunkConfig, *, rngs: nnx.Rngs):
        self.kind, self.num_heads = config.attention, config.num_heads
        self.query = _linear(config, config.width, config.width, rngs)
        self.key = _linear(config, config.width, config.width, rngs)
        self.value = _linear(config, config.width, config.width, rngs)
        self.out = _linear(config, config.width, config.width, rngs, to_residual=True)

    def __call__(
        self, x_BTD: Float[Array, "*batch t d"], visible_TT: Bool[Array, "t t"]
    ) -> Float[Array, "*batch t d"]:
        """What each token gathers from the tokens it may see."""
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])  # on CPU products of plain matrices are fastest
        q, k, v = (
            self._split_heads(linear(x_ND).reshape(x_BTD.shape))
            for linear in (self.query, self.key, self.value)
        )
        o_BTHK = jnp.swapaxes(attend(self.kind, q, k, v, visible_TT), -2, -3)
        return self.out(o_BTHK.reshape(x_ND.shape)).reshape(x_BTD.shape)

    def weights(
        self, x_BTD: Float[Array, "*batch t d"], visible_TT: Bool[Array, "t t"]
    ) -> Float[Array, "*batch h t t"]:
        """The attention map of each head."""
        q, k = map(self._split_heads, (self.query(x_BTD), self.key(x_BTD)))
        return attention_weights(self.kind, q, k, visible_TT)

    def _split_heads(self, x_BTD: Float[Array, "*batch t d"]) -> Float[Array, "*batch h t k"]:
        x_BTHK = x_BTD.reshape(*x_BTD.shape[:-1], self.num_heads, -1)
        return jnp.swapaxes(x_BTHK, -2, -3)


class MLP(nnx.Module):
    """Two linear maps with an activation between them, on each token alone."""

    def __init__(self, config: TrunkConfig, *, rngs: nnx.Rngs):
        hidden = config.mlp_width or 4 * config.width
        self.activation = config.activation
        self.up = _linear(config, config.width, hidden, rngs)
        self.down = _linear(config, hidden, config.width, rngs, to_residual=True)

    def __call__(self, x_BTD: Float[Array, "*batch t d"]) -> Float[Array, "*batch t d"]:
        """The update of each token."""
        # All tokens in one axis, activation included, as in attention.
        hidden = self.up(x_BTD.reshape(-1, x_BTD.shape[-1]))
        hidden = ACTIVATION_FUNCTIONS[self.activation](hidden)
        return _narrowing(self.down, hidden).reshape(x_BTD.shape)


class Block(nnx.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)); each part can be left out."""

    def __init__(self, config: TrunkConfig, *, rngs: nnx.Rngs):
        places = NORM_PLACES[config.norm]
        self.attention_norm = _norm(config, rngs) if places.before else None
        self.attention = Attention(config, rngs=rngs)
        self.residual_norm = _norm(config, rngs) if places.after_attention else None
        self.mlp_norm = _norm(config, rngs) if config.mlp and places.before else None
        self.mlp = MLP(config, rngs=rngs) if config.mlp else None

    def __call__(
        self, x_BTD: Float[Array, "*batch t d"], visible_TT: Bool[Array, "t t"]
    ) -> Float[Array, "*batch t d"]:
        """The residual stream after the block."""
        with jax.named_scope("attention"):
            x_BTD = x_BTD + self.attention(self.attention_input(x_BTD), visible_TT)
            if self.residual_norm:
                x_BTD = self.residual_norm(x_BTD)
        if self.mlp:
            with jax.named_scope("mlp"):
                h_BTD = self.mlp_norm(x_BTD) if self.mlp_norm else x_BTD
                x_BTD = x_BTD + self.mlp(h_BTD)
        return x_BTD

    def attention_input(self, x_BTD: Float[Array, "*batch t d"]) -> Float[Array, "*batch t d"]:
        """What the block's attention reads of the residual stream."""
        return self.attention_norm(x_BTD) if self.attention_norm else x_BTD


def _alike(number: int, make: Callable[[nnx.Rngs], nnx.Module], rngs: nnx.Rngs) -> list[nnx.Module]:
    """`[make(rngs) for _ in range(number)]`, compiled once, whatever the number.

    Each module gets the keys, and so the parameters, that it would get in turn.

    Raises:
      TypeError: a module holds something else than parameters, which training would lose.
    """
    stream = rngs.params
    first = stream.count[...]
    graph, _, rest = nnx.split(make(rngs), nnx.Param, ...)
    if jax.tree.leaves(rest):
        raise TypeError(f"a block may hold nothing but parameters, this one also has {rest}")
    keys_each = stream.count[...] - first

    def drawn(count):
        own = nnx.Rngs(params=stream.key[...])
        own.params.count[...] = count
        return nnx.state(make(own))

    counts = first + keys_each * jnp.arange(number, dtype=first.dtype)
    states = jax.vmap(drawn)(counts)
    stream.count[...] = first + number * keys_each
    each = (jax.tree.map(operator.itemgetter(place), states) for place in range(number))
    return [nnx.merge(graph, state) for state in each]


@functools.partial(jax.jit, static_argnums=0)
def _apply(
    graph: nnx.GraphDef,
    params: Any,
    x_BTD: Float[Array, "*batch t d"],
    visible_TT: Bool[Array, "t t"],
) -> Float[Array, "*batch t d"]:
    """A block on the residual stream; traced and differentiated once for all that are alike."""
    return nnx.merge(graph, params)(x_BTD, visible_TT)


class Trunk(nnx.Module):
    """A stack of blocks and a last layer norm, from token vectors to token vectors."""

    def __init__(self, config: TrunkConfig, *, rngs: nnx.Rngs):
        self.blocks = nnx.List(
            _alike(config.num_layers, lambda rngs: Block(config, rngs=rngs), rngs)
        )
        self.norm = _norm(config, rngs) if NORM_PLACES[config.norm].before else None

    def __call__(
        self, x_BTD: Float[Array, "*batch t d"], visible_TT: Bool[Array, "t t"]
    ) -> Float[Array, "*batch t d"]:
        """The tokens after the last block.

        Args:
          x_BTD: token vectors.
          visible_TT: entry [i, j] says whether token i may see token j.
        """
        last_BTD = self.residual_stream(x_BTD, visible_TT)[-1]
        return self.norm(last_BTD) if self.norm else last_BTD

    def of_prefixes(
        self, x_BTD: Float[Array, "*batch t d"], read_at: Int[Array, " n"]
    ) -> Float[Array, "*batch n d"]:
        """The last token of some prefixes in which all tokens see each other.

        One pass for each prefix, in turn and recomputed in the gradient, to spare memory.

        Args:
          x_BTD: token vectors.
          read_at: places of the last tokens of the prefixes.
        """

        @jax.checkpoint
        def last_token(read):
            num_tokens = x_BTD.shape[-2]
            visible_T = jnp.arange(num_tokens) <= read
            return self(x_BTD, jnp.tile(visible_T, (num_tokens, 1)))[..., read, :]

        return jnp.moveaxis(jax.lax.map(last_token, read_at), 0, -2)

    def residual_stream(
        self, x_BTD: Float[Array, "*batch t d"], visible_TT: Bool[Array, "t t"]
    ) -> list[Float[Array, "*batch t d"]]:
        """The tokens before the first block and after each block, without the last norm."""
        stream = [x_BTD]
        for block in self.blocks:
            stream.append(_apply(*nnx.split(block), stream[-1], visible_TT))
        return stream


def num_parameters(model: nnx.Module) -> int:
    """Number of trainable scalars."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
