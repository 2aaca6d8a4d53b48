"""Contexts, and the tasks that sample them.

A context holds one query x, N attempts at it (a response y_i with its reward r_i) and the target.
In Wang et al. (NeurIPS 2024, arXiv 2405.18634, synthetic study)

    x ~ N(0, I),  W ~ N(0, I),  W- ~ N(0, I),  r_i ~ U(0, 1),
    y_i = r_i W x + (1 - r_i) W- x,          target = W x,

with one corrupt policy W- for the whole context (`shared_corruption`), so that all responses lie on
a line. In `independent_corruption` every response has its own W-_i.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from icl_align.config import TaskConfig

# Every random draw of a context has its own stream: none depends on whether another is made.
STREAMS = ("query", "policy", "corrupt_policy", "reward", "noise", "shown_rewards", "learner")
# Numbers folded into a seed's key beside the training steps 0, 1, ... < 2^31.
EVALUATION, INITIALISATION = 2**31, 2**31 + 1
# Added to a training seed below 2^31 that is folded in beside context numbers below 2^31.
OWN_CONTEXTS = 2**31


def stream(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """The key of one of a context's `STREAMS`."""
    return jax.random.fold_in(key, STREAMS.index(name))


class Context(NamedTuple):
    """One query with N attempts at it; any leading axes."""

    query: Float[Array, "*batch d"]
    responses: Float[Array, "*batch n d"]
    rewards: Float[Array, "*batch n"]
    target: Float[Array, "*batch d"]


def rank_of(rewards: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
    """Mid-ranks in (0, 1): (number below + half the number equal) / N; uniform in the mean."""
    above = rewards[..., :, None] > rewards[..., None, :]
    equal = rewards[..., :, None] == rewards[..., None, :]
    return jnp.mean(above + 0.5 * equal, axis=-1, dtype=rewards.dtype)


def transform_rewards(
    task: TaskConfig, rewards: Float[Array, "*batch n"]
) -> Float[Array, "*batch n"]:
    """The task's monotone map of rewards in [0, 1] to [0, 1].

    A ranking does not change under it; whatever reads the reward's value does. `rank` is taken over
    the whole context, so it tells an early attempt where it stands among the later ones.
    """
    match task.reward_transform:
        case "power":
            return rewards**task.reward_power
        case "rank":
            return rank_of(rewards)
    return rewards


def add_reward_noise(
    key: Key[Array, ""], rewards: Float[Array, "*batch n"], p: Float[Array, ""] | float
) -> Float[Array, "*batch n"]:
    """Replaces each reward by a fresh U(0, 1) draw with probability p; the responses stay.

    With one key, the rewards replaced at a small p are among those replaced at a larger p.
    """
    which, fresh = jax.random.split(key)
    replaced = jax.random.uniform(which, rewards.shape) < p
    return jnp.where(replaced, jax.random.uniform(fresh, rewards.shape), rewards)


def sample_context(
    task: TaskConfig, key: Key[Array, ""], reward_noise: Float[Array, ""] | float | None = None
) -> Context:
    """One context, a pure function of the key.

    Args:
      task: the data process.
      key: one key.
      reward_noise: overrides `task.reward_noise`; may be traced. The query, the responses and the
        clean rewards do not depend on it.
    """
    d, n = task.dim, task.num_responses
    query = jax.random.normal(stream(key, "query"), (d,))
    if task.unit_norm_queries:
        query = query / jnp.linalg.norm(query)
    target = jax.random.normal(stream(key, "policy"), (d, d)) @ query
    num_corrupt = n if task.name == "independent_corruption" else 1
    corrupt_policies = jax.random.normal(stream(key, "corrupt_policy"), (num_corrupt, d, d))
    rewards = jax.random.uniform(stream(key, "reward"), (n,))
    responses = rewards[:, None] * target + (1 - rewards[:, None]) * (corrupt_policies @ query)
    noise = task.reward_noise if reward_noise is None else reward_noise
    rewards = transform_rewards(task, add_reward_noise(stream(key, "noise"), rewards, noise))
    return Context(query, responses, rewards, target)


def sample_contexts(
    task: TaskConfig,
    keys: Key[Array, " batch"],
    reward_noise: Float[Array, ""] | float | None = None,
) -> Context:
    """A batch of contexts, one for each key."""
    return jax.vmap(lambda key: sample_context(task, key, reward_noise))(keys)


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


def shown_to_transformer(
    task: TaskConfig, contexts: Context, keys: Key[Array, " batch"]
) -> Context:
    """What the transformer is shown: the contexts, their rewards hidden or shuffled in a control.

    With `task.shown_rewards` "none" every reward is 0; with "shuffled" the rewards of a context are
    permuted among its attempts. Learners and losses keep the given rewards.
    """
    match task.shown_rewards:
        case "none":
            return contexts._replace(rewards=jnp.zeros_like(contexts.rewards))
        case "shuffled":
            shuffle = jax.vmap(
                lambda key, r: jax.random.permutation(stream(key, "shown_rewards"), r)
            )
            return contexts._replace(rewards=shuffle(keys, contexts.rewards))
    return contexts
