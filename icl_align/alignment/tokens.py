"""Token layouts: what the transformer reads of a context.

Array names end in their axes: B any leading axes, N attempts.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from icl_align.alignment.contexts import Context
from icl_align.alignment.options import TOKENS, ModelConfig, TaskConfig
from icl_align.config import implemented

# What stands where a reward stands, of an attempt that is not judged yet: no reward, and this mark.
UNJUDGED = -1.0


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

    def unjudged(self, context: Context) -> Float[Array, "*batch n f"]:
        """[x, y_i, 0, -1]: each attempt without its reward."""
        return _without_rewards(self, context)


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

    def unjudged(self, context: Context) -> Float[Array, "*batch n f"]:
        """[x, y_i, ||y_i||^2, 0, -1]: each attempt without its reward."""
        return _without_rewards(self, context)


def _without_rewards(
    layout: TripletTokens | TripletNormTokens, context: Context
) -> Float[Array, "*batch n f"]:
    unrewarded = context._replace(rewards=jnp.zeros_like(context.rewards))
    queries = jnp.broadcast_to(context.query[..., None, :], context.responses.shape)
    return layout.features(unrewarded, queries)[..., 1:, :].at[..., -1].set(UNJUDGED)


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

    def unjudged(self, context: Context) -> Float[Array, "*batch n f"]:
        """y_i: the token of each response."""
        return context.responses


TOKEN_LAYOUTS = implemented(
    TOKENS,
    {
        "triplet": TripletTokens,
        "triplet_norm": TripletNormTokens,
        "interleaved": InterleavedTokens,
    },
)


def num_tokens(config: ModelConfig, attempts: int) -> int:
    """Tokens of a context of so many attempts."""
    return num_tokens_of(config.tokens, attempts)


def num_tokens_of(layout: str, attempts: int) -> int:
    """The same of a layout by its name."""
    return TOKEN_LAYOUTS[layout].tokens_per_attempt * attempts + 1
