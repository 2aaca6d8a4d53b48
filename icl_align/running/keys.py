"""Which random key belongs to what: initial parameters, training contexts, evaluation contexts.

None of them coincide, whatever the seeds: training steps, the two numbers below and the numbers of
evaluation contexts are folded into different keys, or are different numbers.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

# Numbers folded into a seed's key beside the training steps 0, 1, ... < 2^31.
EVALUATION, INITIALISATION = 2**31, 2**31 + 1
# Added to a training seed below 2^31 that is folded in beside context numbers below 2^31.
OWN_CONTEXTS = 2**31


def initialisation_key(seed: Int[Array, ""] | int) -> Key[Array, ""]:
    """The key of a network's initial parameters."""
    return jax.random.fold_in(jax.random.key(seed), jnp.uint32(INITIALISATION))


def training_keys(
    seed: Int[Array, ""] | int, step: Int[Array, ""] | int, batch_size: int
) -> Key[Array, " batch"]:
    """The keys of the contexts of step k: a pure function of (seed, k); a run goes on anywhere."""
    return jax.random.split(jax.random.fold_in(jax.random.key(seed), step), batch_size)


def evaluation_key(seed: int, training_seed: int | None = None) -> Key[Array, ""]:
    """The key of all evaluation contexts; disjoint from every training key.

    Args:
      seed: the evaluation's own seed.
      training_seed: for contexts that no other training seed is evaluated on.
    """
    key = jax.random.fold_in(jax.random.key(seed), jnp.uint32(EVALUATION))
    return (
        key
        if training_seed is None
        else jax.random.fold_in(key, jnp.uint32(OWN_CONTEXTS + training_seed))
    )


def numbered_keys(key: Key[Array, ""], indices: Int[Array, " batch"]) -> Key[Array, " batch"]:
    """The keys of evaluation contexts number `indices`.

    Context i is the same however the sample is split into batches, and a larger sample extends a
    smaller one.
    """
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


def evaluation_keys(seed: int, indices: Int[Array, " batch"]) -> Key[Array, " batch"]:
    """The keys of evaluation contexts number `indices` that all training seeds share."""
    return numbered_keys(evaluation_key(seed), indices)
