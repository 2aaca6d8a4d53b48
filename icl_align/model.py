"""The transformer: a front that makes tokens of a context, a trunk of blocks, and a read-out.

The trunk knows nothing of what a token means. Every ablation is a field of `ModelConfig`.

Array names end in their axes: B any leading axes, T tokens, H heads, K width of a head, D width of
the residual stream, F features of a token.
"""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from icl_align.config import ModelConfig, TaskConfig
from icl_align.contexts import Context

# ---------------------------------------------------------------------------------- token layouts


class TripletTokens:
    """One token an attempt: [x, y_i, r_i, 1], after a first token [x, 0, 0, 0] for the bare query.

    The prediction after n attempts is read at token n.
    """

    tokens_per_attempt = 1

    def __init__(self, task: TaskConfig):
        self.num_features = 2 * task.dim + 2

    def features(
        self, context: Context, attempt_queries: Float[Array, "*batch n d"]
    ) -> Float[Array, "*batch t f"]:
        """Feature vectors of the N + 1 tokens."""
        r_BN1 = context.rewards[..., None]
        attempts = [attempt_queries, context.responses, r_BN1, jnp.ones_like(r_BN1)]
        return _after_the_bare_query(context.query, jnp.concatenate(attempts, axis=-1))


class TripletNormTokens:
    """Triplet tokens that also hold the squared norm: [x, y_i, ||y_i||^2, r_i, 1].

    -||y_hat - y_i||^2 is then linear in the token, up to a shift that no softmax sees.
    """

    tokens_per_attempt = 1

    def __init__(self, task: TaskConfig):
        self.num_features = 2 * task.dim + 3

    def features(
        self, context: Context, attempt_queries: Float[Array, "*batch n d"]
    ) -> Float[Array, "*batch t f"]:
        """Feature vectors of the N + 1 tokens."""
        r_BN1 = context.rewards[..., None]
        norms_BN1 = jnp.sum(context.responses**2, axis=-1, keepdims=True)
        attempts = [attempt_queries, context.responses, norms_BN1, r_BN1, jnp.ones_like(r_BN1)]
        return _after_the_bare_query(context.query, jnp.concatenate(attempts, axis=-1))


def _after_the_bare_query(
    query: Float[Array, "*batch d"], attempts: Float[Array, "*batch n f"]
) -> Float[Array, "*batch t f"]:
    """The attempts' tokens, after [x, 0, ...]."""
    d, num_features = query.shape[-1], attempts.shape[-1]
    start = jnp.pad(query, [(0, 0)] * (query.ndim - 1) + [(0, num_features - d)])
    return jnp.concatenate([start[..., None, :], attempts], axis=-2)


class InterleavedTokens:
    """Three tokens an attempt, x, y_i, [r_i, 0, ...], through one embedding, as published.

    The prediction after n attempts is read at the (n + 1)-th x, so a last x follows the attempts.
    """

    tokens_per_attempt = 3

    def __init__(self, task: TaskConfig):
        self.num_features = task.dim

    def features(
        self, context: Context, attempt_queries: Float[Array, "*batch n d"]
    ) -> Float[Array, "*batch t f"]:
        """Feature vectors of the 3 N + 1 tokens."""
        padding = [(0, 0)] * context.rewards.ndim + [(0, self.num_features - 1)]
        rewards = jnp.pad(context.rewards[..., None], padding)
        triplets = jnp.stack([attempt_queries, context.responses, rewards], axis=-2)
        *batch, n, _, d = triplets.shape
        return jnp.concatenate(
            [triplets.reshape(*batch, 3 * n, d), context.query[..., None, :]], axis=-2
        )


TOKEN_LAYOUTS = {
    "triplet": TripletTokens,
    "triplet_norm": TripletNormTokens,
    "interleaved": InterleavedTokens,
}


def num_tokens(config: ModelConfig, task: TaskConfig) -> int:
    """Tokens of a whole context."""
    return TOKEN_LAYOUTS[config.tokens].tokens_per_attempt * task.num_responses + 1


# ------------------------------------------------------------------------------------------ trunk


def attention_weights(
    kind: str,
    q_BHTK: Float[Array, "*batch t k"],
    k_BHTK: Float[Array, "*batch t k"],
    visible_TT: Bool[Array, "t t"],
) -> Float[Array, "*batch t t"]:
    """How much of token j's value token i takes: entry [i, j].

        softmax            w_ij = exp(q_i.k_j / sqrt K) / sum_j exp(q_i.k_j / sqrt K)
        linear             w_ij = q_i.k_j / sqrt K, not normalised (von Oswald et al. 2023)
        linear_normalized  w_ij = phi(q_i).phi(k_j) / sum_j phi(q_i).phi(k_j), phi = elu + 1
                           (Katharopoulos et al. 2020)

    Args:
      kind: one of the three.
      q_BHTK, k_BHTK: queries and keys.
      visible_TT: entry [i, j] says whether token i may see token j; each sees at least one.
    """
    if kind == "linear_normalized":
        q_BHTK, k_BHTK = jax.nn.elu(q_BHTK) + 1, jax.nn.elu(k_BHTK) + 1
    else:
        q_BHTK = q_BHTK / math.sqrt(q_BHTK.shape[-1])
    logits_BHTT = q_BHTK @ jnp.swapaxes(k_BHTK, -1, -2)
    if kind == "softmax":
        weights_BHTT = jax.nn.softmax(jnp.where(visible_TT, logits_BHTT, -jnp.inf), axis=-1)
    else:
        weights_BHTT = jnp.where(visible_TT, logits_BHTT, 0)
    if kind == "linear_normalized":
        weights_BHTT = weights_BHTT / jnp.sum(weights_BHTT, axis=-1, keepdims=True)
    return weights_BHTT


def attend(
    kind: str,
    q_BHTK: Float[Array, "*batch t k"],
    k_BHTK: Float[Array, "*batch t k"],
    v_BHTK: Float[Array, "*batch t k"],
    visible_TT: Bool[Array, "t t"],
) -> Float[Array, "*batch t k"]:
    """Attention: each token's mean (or sum) of the values it may see, by `attention_weights`."""
    if kind != "softmax":
        return attention_weights(kind, q_BHTK, k_BHTK, visible_TT) @ v_BHTK
    # The same, normalised after the product: the gradient then needs no sum over pairs of tokens.
    logits_BHTT = (q_BHTK / math.sqrt(q_BHTK.shape[-1])) @ jnp.swapaxes(k_BHTK, -1, -2)
    logits_BHTT += jnp.where(visible_TT, 0.0, -jnp.inf).astype(logits_BHTT.dtype)
    largest_BHT1 = jax.lax.stop_gradient(jnp.max(logits_BHTT, axis=-1, keepdims=True))
    exp_BHTT = jnp.exp(logits_BHTT - largest_BHT1)
    return (exp_BHTT @ v_BHTK) / jnp.sum(exp_BHTT, axis=-1, keepdims=True)


def _torch_linear(features_in: int, features_out: int, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear map with PyTorch's initialisation: kernel and bias U(-1, 1) / sqrt(features_in)."""
    bound = 1 / math.sqrt(features_in)

    def uniform(key, shape, dtype=jnp.float32, **_):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nnx.Linear(features_in, features_out, kernel_init=uniform, bias_init=uniform, rngs=rngs)


def _linear(
    config: ModelConfig, features_in: int, features_out: int, rngs: nnx.Rngs, to_residual=False
) -> nnx.Linear:
    """A linear map of the trunk: GPT-2 draws N(0, 0.02), smaller where it feeds the residual."""
    if config.init == "torch":
        return _torch_linear(features_in, features_out, rngs)
    scale = 0.02 / math.sqrt(2 * config.num_layers) if to_residual else 0.02
    return nnx.Linear(
        features_in, features_out, kernel_init=nnx.initializers.normal(scale), rngs=rngs
    )


def _narrowing(linear: nnx.Linear, x_NF: Float[Array, "n f"]) -> Float[Array, "n d"]:
    """linear(x) to fewer features.

    Through the transposed kernel, so that its gradient is the product [d, n] @ [n, f]: on CPU 1.7
    times as fast as [f, n] @ [n, d], into which XLA would turn it back without the barrier.
    """
    kernel_DF = jax.lax.optimization_barrier(linear.kernel[...].T)
    return jax.lax.dot_general(x_NF, kernel_DF, (((1,), (1,)), ((), ()))) + linear.bias[...]


def _norm(config: ModelConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(config.width, epsilon=1e-5, rngs=rngs)


class Attention(nnx.Module):
    """Multi-head attention."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
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

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        hidden = config.mlp_width or 4 * config.width
        self.activation = config.activation
        self.up = _linear(config, config.width, hidden, rngs)
        self.down = _linear(config, hidden, config.width, rngs, to_residual=True)

    def __call__(self, x_BTD: Float[Array, "*batch t d"]) -> Float[Array, "*batch t d"]:
        """The update of each token."""
        # All tokens in one axis, activation included, as in attention.
        hidden = self.up(x_BTD.reshape(-1, x_BTD.shape[-1]))
        match self.activation:
            case "relu":
                hidden = jax.nn.relu(hidden)
            case activation:
                hidden = jax.nn.gelu(hidden, approximate=activation == "gelu")
        return _narrowing(self.down, hidden).reshape(x_BTD.shape)


class Block(nnx.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)); each part can be left out."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.attention_norm = _norm(config, rngs) if config.norm != "none" else None
        self.attention = Attention(config, rngs=rngs)
        self.residual_norm = _norm(config, rngs) if config.norm == "pre_post" else None
        self.mlp_norm = _norm(config, rngs) if config.mlp and config.norm != "none" else None
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

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.blocks = nnx.List(
            _alike(config.num_layers, lambda rngs: Block(config, rngs=rngs), rngs)
        )
        self.norm = _norm(config, rngs) if config.norm != "none" else None

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

    def residual_stream(
        self, x_BTD: Float[Array, "*batch t d"], visible_TT: Bool[Array, "t t"]
    ) -> list[Float[Array, "*batch t d"]]:
        """The tokens before the first block and after each block, without the last norm."""
        stream = [x_BTD]
        for block in self.blocks:
            stream.append(_apply(*nnx.split(block), stream[-1], visible_TT))
        return stream


# ------------------------------------------------------------------------------------ transformer


class Transformer(nnx.Module):
    """Predicts a response after every number of attempts.

    Row n of its output reads the query and attempts 1..n, and nothing later, unless
    `config.sees_future` asks for the published variants' unmasked pass. With `config.causal` one
    masked pass makes all rows; without it each row is a pass of its own over its attempts.

    Args:
      config: the architecture.
      task: gives dimension and the largest number of attempts.
      rngs: the stream `params` initialises the weights: the trunk as in GPT-2 (Radford et al.
        2019), embedding and read-out as PyTorch's Linear, which Wang et al. (2024) trained.
    """

    def __init__(self, config: ModelConfig, task: TaskConfig, *, rngs: nnx.Rngs):
        self.causal, self.sees_future = config.causal, config.sees_future
        self.tokens, self.task = config.tokens, (task.dim, task.num_responses)
        layout = TOKEN_LAYOUTS[config.tokens](task)
        self.embed = _torch_linear(layout.num_features, config.width, rngs)
        scale = 1.0 if config.init == "torch" else 0.02
        shape = num_tokens(config, task), config.width
        # As the linear maps: float32, whatever jax_enable_x64 says.
        self.positions = (
            nnx.Param(scale * jax.random.normal(rngs.params(), shape, jnp.float32))
            if config.positions
            else None
        )
        self.trunk = Trunk(config, rngs=rngs)
        self.read_out = _torch_linear(config.width, task.dim, rngs)

    def __call__(
        self, context: Context, attempt_queries: Float[Array, "*batch n d"] | None = None
    ) -> Float[Array, "*batch n_plus_1 d"]:
        """Predictions after 0..N attempts.

        Args:
          context: any leading axes.
          attempt_queries: the query that each attempt answers; by default they all answer
            `context.query`. Interleaved tokens read row n < N at the query of attempt n + 1.

        Raises:
          ValueError: when learned positions do not reach as far as the context.
        """
        x_BTD = self.embedded(context, attempt_queries)
        num_tokens, num_responses = x_BTD.shape[-2], context.rewards.shape[-1]
        every = TOKEN_LAYOUTS[self.tokens].tokens_per_attempt
        if self.causal or self.sees_future:
            x_BND = self.trunk(x_BTD, self.visible(num_tokens))[..., ::every, :]
        else:
            x_BND = self._bidirectional(x_BTD, every * jnp.arange(num_responses + 1))
        return self.read_out(x_BND)

    def embedded(
        self, context: Context, attempt_queries: Float[Array, "*batch n d"] | None = None
    ) -> Float[Array, "*batch t d_model"]:
        """The tokens that enter the trunk; arguments and errors as in `__call__`."""
        d, num_responses = context.query.shape[-1], context.rewards.shape[-1]
        layout = TOKEN_LAYOUTS[self.tokens](TaskConfig(dim=d, num_responses=num_responses))
        if attempt_queries is None:
            attempt_queries = jnp.broadcast_to(context.query[..., None, :], context.responses.shape)
        with jax.named_scope("tokens"):
            x_BTD = self.embed(layout.features(context, attempt_queries))
        num_tokens = x_BTD.shape[-2]
        if self.positions is None:
            return x_BTD
        if num_tokens > self.positions.shape[0]:
            raise ValueError(
                f"{num_responses} attempts need {num_tokens} learned positions, "
                f"the transformer has {self.positions.shape[0]}"
            )
        return x_BTD + self.positions[:num_tokens]

    def visible(self, num_tokens: int) -> Bool[Array, "t t"]:
        """Entry [i, j] says whether token i may see token j in one pass over all tokens."""
        visible_TT = jnp.ones((num_tokens, num_tokens), bool)
        return jnp.tril(visible_TT) if self.causal else visible_TT

    def _bidirectional(
        self, x_BTD: Float[Array, "*batch t d"], read_at: Int[Array, " n_plus_1"]
    ) -> Float[Array, "*batch n_plus_1 d"]:
        """One pass for each prefix, in turn and recomputed in the gradient, to spare memory."""

        @jax.checkpoint
        def last_token(read):
            num_tokens = x_BTD.shape[-2]
            visible_T = jnp.arange(num_tokens) <= read
            return self.trunk(x_BTD, jnp.tile(visible_T, (num_tokens, 1)))[..., read, :]

        return jnp.moveaxis(jax.lax.map(last_token, read_at), 0, -2)


def num_parameters(model: nnx.Module) -> int:
    """Number of trainable scalars."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
