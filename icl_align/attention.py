"""How tokens attend to others: the map of each kind of attention, and the values gathered by it.

Array names end in their axes: B any leading axes, H heads, T tokens that attend, S those that they
attend to, K width of a head.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from icl_align.config import ATTENTIONS, implemented


class AttentionKind(NamedTuple):
    """How tokens attend: its map, and the values gathered by it."""

    weights: Callable[..., Float[Array, "*batch t s"]]
    attend: Callable[..., Float[Array, "*batch t k"]]


def softmax_weights(
    q_BHTK: Float[Array, "*batch t k"],
    k_BHSK: Float[Array, "*batch s k"],
    visible_TS: Bool[Array, "t s"],
) -> Float[Array, "*batch t s"]:
    """w_ij = exp(q_i.k_j / sqrt K) / sum_j exp(q_i.k_j / sqrt K), as `attention_weights`."""
    return jax.nn.softmax(jnp.where(visible_TS, _logits(q_BHTK, k_BHSK), -jnp.inf), axis=-1)


def linear_weights(
    q_BHTK: Float[Array, "*batch t k"],
    k_BHSK: Float[Array, "*batch s k"],
    visible_TS: Bool[Array, "t s"],
) -> Float[Array, "*batch t s"]:
    """w_ij = q_i.k_j / sqrt K, not normalised (von Oswald et al. 2023)."""
    return jnp.where(visible_TS, _logits(q_BHTK, k_BHSK), 0)


def linear_normalized_weights(
    q_BHTK: Float[Array, "*batch t k"],
    k_BHSK: Float[Array, "*batch s k"],
    visible_TS: Bool[Array, "t s"],
) -> Float[Array, "*batch t s"]:
    """w_ij = phi(q_i).phi(k_j) / sum_j phi(q_i).phi(k_j), phi = elu + 1 (Katharopoulos et al.
    2020).
    """
    q_BHTK, k_BHSK = jax.nn.elu(q_BHTK) + 1, jax.nn.elu(k_BHSK) + 1
    weights_BHTS = jnp.where(visible_TS, q_BHTK @ jnp.swapaxes(k_BHSK, -1, -2), 0)
    return weights_BHTS / jnp.sum(weights_BHTS, axis=-1, keepdims=True)


def _logits(
    q_BHTK: Float[Array, "*batch t k"], k_BHSK: Float[Array, "*batch s k"]
) -> Float[Array, "*batch t s"]:
    return (q_BHTK / math.sqrt(q_BHTK.shape[-1])) @ jnp.swapaxes(k_BHSK, -1, -2)


def _attend_by_softmax(
    q_BHTK: Float[Array, "*batch t k"],
    k_BHSK: Float[Array, "*batch s k"],
    v_BHSK: Float[Array, "*batch s k"],
    visible_TS: Bool[Array, "t s"],
) -> Float[Array, "*batch t k"]:
    # Normalised after the product: the gradient then needs no sum over pairs of tokens.
    logits_BHTS = _logits(q_BHTK, k_BHSK)
    logits_BHTS += jnp.where(visible_TS, 0.0, -jnp.inf).astype(logits_BHTS.dtype)
    largest_BHT1 = jax.lax.stop_gradient(jnp.max(logits_BHTS, axis=-1, keepdims=True))
    exp_BHTS = jnp.exp(logits_BHTS - largest_BHT1)
    return (exp_BHTS @ v_BHSK) / jnp.sum(exp_BHTS, axis=-1, keepdims=True)


def _by_its_map(weights: Callable[..., Float[Array, "*batch t s"]]) -> AttentionKind:
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
    k_BHSK: Float[Array, "*batch s k"],
    visible_TS: Bool[Array, "t s"],
) -> Float[Array, "*batch t s"]:
    """How much of token j's value token i takes: entry [i, j].

    Args:
      kind: one of `config.ATTENTIONS`; the formula is that of its function above.
      q_BHTK, k_BHSK: queries and keys.
      visible_TS: entry [i, j] says whether token i may see token j; each sees at least one.
    """
    return ATTENTION_KINDS[kind].weights(q_BHTK, k_BHSK, visible_TS)


def attend(
    kind: str,
    q_BHTK: Float[Array, "*batch t k"],
    k_BHSK: Float[Array, "*batch s k"],
    v_BHSK: Float[Array, "*batch s k"],
    visible_TS: Bool[Array, "t s"],
) -> Float[Array, "*batch t k"]:
    """Attention: each token's mean (or sum) of the values it may see, by `attention_weights`."""
    return ATTENTION_KINDS[kind].attend(q_BHTK, k_BHSK, v_BHSK, visible_TS)
