"""The trunk of every network: blocks of attention and MLP, from token vectors to token vectors.

It knows neither what a token means nor in which world it stands. Every ablation is a field of
`TrunkConfig`.

Array names end in their axes: B any leading axes, T tokens, H heads, K width of a head, D width of
the residual stream, F features of a token.
"""

import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from icl_align.attention import attend, attention_weights
from icl_align.config import ACTIVATIONS, NORMS, TrunkConfig, implemented
from icl_align.initialisation import trunk_linear

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


def _narrowing(linear: nnx.Linear, x_NF: Float[Array, "n f"]) -> Float[Array, "n d"]:
    """linear(x) to fewer features.

    Through the transposed kernel, so that its gradient is the product [d, n] @ [n, f]: on CPU 1.7
    times as fast as [f, n] @ [n, d], into which XLA would turn it back without the barrier.
    """
    kernel_DF = jax.lax.optimization_barrier(linear.kernel[...].T)
    return jax.lax.dot_general(x_NF, kernel_DF, (((1,), (1,)), ((), ()))) + linear.bias[...]


def _norm(config: TrunkConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(config.width, epsilon=1e-5, rngs=rngs)


class Memory(NamedTuple):
    """Keys and values of the tokens that were read, of one block; S places, in their order."""

    keys: Float[Array, "*batch s k"]
    values: Float[Array, "*batch s k"]


def _put(
    old_BSK: Float[Array, "*batch s k"],
    new_BTK: Float[Array, "*batch t k"],
    start: Int[Array, ""] | int,
) -> Float[Array, "*batch s k"]:
    return jax.lax.dynamic_update_slice_in_dim(old_BSK, new_BTK, start, axis=-2)


class Attention(nnx.Module):
    """Multi-head attention."""

    def __init__(self, config: TrunkConfig, *, rngs: nnx.Rngs):
        self.kind, self.num_heads = config.attention, config.num_heads
        self.query = trunk_linear(config, config.width, config.width, rngs)
        self.key = trunk_linear(config, config.width, config.width, rngs)
        self.value = trunk_linear(config, config.width, config.width, rngs)
        self.out = trunk_linear(config, config.width, config.width, rngs, to_residual=True)

    def __call__(
        self, x_BTD: Float[Array, "*batch t d"], visible_TT: Bool[Array, "t t"]
    ) -> Float[Array, "*batch t d"]:
        """What each token gathers from the tokens it may see."""
        q, k, v = self._queries_keys_values(x_BTD)
        return self._gathered(attend(self.kind, q, k, v, visible_TT), x_BTD)

    def recall(
        self, x_BTD: Float[Array, "*batch t d"], memory: Memory, start: Int[Array, ""] | int
    ) -> tuple[Float[Array, "*batch t d"], Memory]:
        """What tokens from place `start` on gather from those before and, causally, from each
        other; and the memory with them in it.
        """
        q, k, v = self._queries_keys_values(x_BTD)
        memory = Memory(*(_put(old, new, start) for old, new in zip(memory, (k, v), strict=True)))
        places_T = start + jnp.arange(x_BTD.shape[-2])
        visible_TS = jnp.arange(memory.keys.shape[-2]) <= places_T[:, None]
        return self._gathered(attend(self.kind, q, *memory, visible_TS), x_BTD), memory

    def weights(
        self, x_BTD: Float[Array, "*batch t d"], visible_TT: Bool[Array, "t t"]
    ) -> Float[Array, "*batch h t t"]:
        """The attention map of each head."""
        q, k = map(self._split_heads, (self.query(x_BTD), self.key(x_BTD)))
        return attention_weights(self.kind, q, k, visible_TT)

    def _queries_keys_values(
        self, x_BTD: Float[Array, "*batch t d"]
    ) -> Iterator[Float[Array, "*batch h t k"]]:
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])  # on CPU products of plain matrices are fastest
        return (
            self._split_heads(linear(x_ND).reshape(x_BTD.shape))
            for linear in (self.query, self.key, self.value)
        )

    def _gathered(
        self, o_BHTK: Float[Array, "*batch h t k"], x_BTD: Float[Array, "*batch t d"]
    ) -> Float[Array, "*batch t d"]:
        o_ND = jnp.swapaxes(o_BHTK, -2, -3).reshape(-1, x_BTD.shape[-1])
        return self.out(o_ND).reshape(x_BTD.shape)

    def _split_heads(self, x_BTD: Float[Array, "*batch t d"]) -> Float[Array, "*batch h t k"]:
        x_BTHK = x_BTD.reshape(*x_BTD.shape[:-1], self.num_heads, -1)
        return jnp.swapaxes(x_BTHK, -2, -3)


class MLP(nnx.Module):
    """Two linear maps with an activation between them, on each token alone."""

    def __init__(self, config: TrunkConfig, *, rngs: nnx.Rngs):
        hidden = config.mlp_width or 4 * config.width
        self.activation = config.activation
        self.up = trunk_linear(config, config.width, hidden, rngs)
        self.down = trunk_linear(config, hidden, config.width, rngs, to_residual=True)

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
            x_BTD = self._add(x_BTD, self.attention(self.attention_input(x_BTD), visible_TT))
        return self._add_mlp(x_BTD)

    def recall(
        self, x_BTD: Float[Array, "*batch t d"], memory: Memory, start: Int[Array, ""] | int
    ) -> tuple[Float[Array, "*batch t d"], Memory]:
        """The residual stream after the block, and the memory; as `Attention.recall`."""
        with jax.named_scope("attention"):
            gathered, memory = self.attention.recall(self.attention_input(x_BTD), memory, start)
            x_BTD = self._add(x_BTD, gathered)
        return self._add_mlp(x_BTD), memory

    def _add(
        self, x_BTD: Float[Array, "*batch t d"], gathered_BTD: Float[Array, "*batch t d"]
    ) -> Float[Array, "*batch t d"]:
        x_BTD = x_BTD + gathered_BTD
        return self.residual_norm(x_BTD) if self.residual_norm else x_BTD

    def _add_mlp(self, x_BTD: Float[Array, "*batch t d"]) -> Float[Array, "*batch t d"]:
        if not self.mlp:
            return x_BTD
        with jax.named_scope("mlp"):
            h_BTD = self.mlp_norm(x_BTD) if self.mlp_norm else x_BTD
            return x_BTD + self.mlp(h_BTD)

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


@functools.partial(jax.jit, static_argnums=0)
def _recall(
    graph: nnx.GraphDef,
    params: Any,
    x_BTD: Float[Array, "*batch t d"],
    memory: Memory,
    start: Int[Array, ""] | int,
) -> tuple[Float[Array, "*batch t d"], Memory]:
    """`Block.recall`, traced once for all that are alike."""
    return nnx.merge(graph, params).recall(x_BTD, memory, start)


# A vector for each place of the residual stream, before the first block and after each; see
# `Trunk.residual_stream`.
Added = Float[Array, "layers #t d"]


class Trunk(nnx.Module):
    """A stack of blocks and a last layer norm, from token vectors to token vectors."""

    def __init__(self, config: TrunkConfig, *, rngs: nnx.Rngs):
        self.blocks = nnx.List(
            _alike(config.num_layers, lambda rngs: Block(config, rngs=rngs), rngs)
        )
        self.norm = _norm(config, rngs) if NORM_PLACES[config.norm].before else None

    def __call__(
        self,
        x_BTD: Float[Array, "*batch t d"],
        visible_TT: Bool[Array, "t t"],
        added_LTD: Added | None = None,
    ) -> Float[Array, "*batch t d"]:
        """The tokens after the last block.

        Args:
          x_BTD: token vectors.
          visible_TT: entry [i, j] says whether token i may see token j.
          added_LTD: as in `residual_stream`.
        """
        last_BTD = self.residual_stream(x_BTD, visible_TT, added_LTD)[-1]
        return self.norm(last_BTD) if self.norm else last_BTD

    def of_prefixes(
        self,
        x_BTD: Float[Array, "*batch t d"],
        read_at: Int[Array, " n"],
        added_LTD: Added | None = None,
    ) -> Float[Array, "*batch n d"]:
        """The last token of some prefixes in which all tokens see each other.

        One pass for each prefix, in turn and recomputed in the gradient, to spare memory.

        Args:
          x_BTD: token vectors.
          read_at: places of the last tokens of the prefixes.
          added_LTD: as in `residual_stream`.
        """

        @jax.checkpoint
        def last_token(read):
            num_tokens = x_BTD.shape[-2]
            visible_T = jnp.arange(num_tokens) <= read
            visible_TT = jnp.tile(visible_T, (num_tokens, 1))
            return self(x_BTD, visible_TT, added_LTD)[..., read, :]

        return jnp.moveaxis(jax.lax.map(last_token, read_at), 0, -2)

    def residual_stream(
        self,
        x_BTD: Float[Array, "*batch t d"],
        visible_TT: Bool[Array, "t t"],
        added_LTD: Added | None = None,
    ) -> list[Float[Array, "*batch t d"]]:
        """The tokens before the first block and after each block, without the last norm.

        Args:
          x_BTD: token vectors.
          visible_TT: entry [i, j] says whether token i may see token j.
          added_LTD: what is added to the stream there, such as a direction to steer by.
        """
        stream = [_plus(x_BTD, added_LTD, 0)]
        for number, block in enumerate(self.blocks, 1):
            x_BTD = _apply(*nnx.split(block), stream[-1], visible_TT)
            stream.append(_plus(x_BTD, added_LTD, number))
        return stream

    def blank_memory(self, batch: tuple[int, ...], length: int) -> list[Memory]:
        """The memory of each block before any of `length` tokens is read."""
        heads = self.blocks[0].attention.num_heads
        width = self.blocks[0].attention.query.kernel.shape[0]
        zeros = jnp.zeros((*batch, heads, length, width // heads), jnp.float32)
        return [Memory(zeros, zeros) for _ in self.blocks]

    def recall(
        self,
        x_BTD: Float[Array, "*batch t d"],
        memories: list[Memory],
        start: Int[Array, ""] | int,
        added_LTD: Added | None = None,
    ) -> tuple[Float[Array, "*batch t d"], list[Memory]]:
        """Some tokens after the last block, under a causal mask, and the memories with them.

        What a whole pass makes of them, without the tokens before being computed anew.

        Args:
          x_BTD: token vectors.
          memories: of the tokens before them; see `blank_memory`.
          start: place of the first of them.
          added_LTD: as in `residual_stream`.
        """
        x_BTD, after = _plus(x_BTD, added_LTD, 0), []
        for number, (block, memory) in enumerate(zip(self.blocks, memories, strict=True), 1):
            x_BTD, memory = _recall(*nnx.split(block), x_BTD, memory, start)
            x_BTD = _plus(x_BTD, added_LTD, number)
            after.append(memory)
        return (self.norm(x_BTD) if self.norm else x_BTD), after


def _plus(
    x_BTD: Float[Array, "*batch t d"], added_LTD: Added | None, layer: int
) -> Float[Array, "*batch t d"]:
    return x_BTD if added_LTD is None else x_BTD + added_LTD[layer]


def frozen(model: nnx.Module) -> nnx.Module:
    """The same module, through whose parameters no gradient goes."""
    graph, state = nnx.split(model)
    return nnx.merge(graph, jax.lax.stop_gradient(state))


def num_parameters(model: nnx.Module) -> int:
    """Number of trainable scalars."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
