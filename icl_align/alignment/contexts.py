"""Contexts, and the tasks that sample them.

A context holds one query x, N attempts at it (a response y_i with its reward r_i) and the target.
In Wang et al. (NeurIPS 2024, arXiv 2405.18634, synthetic study)

    x ~ N(0, I),  W ~ N(0, I),  W- ~ N(0, I),  r_i ~ U(0, 1),
    y_i = r_i W x + (1 - r_i) W- x,          target = W x,

with one corrupt policy W- for the whole context (`shared_corruption`), so that all responses lie on
a line. In `independent_corruption` every response has its own W-_i.
"""

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from icl_align.alignment.options import REWARD_TRANSFORMS, SHOWN_REWARDS, TASKS, TaskConfig
from icl_align.config import implemented


@enum.unique
class Stream(enum.IntEnum):
    """A random draw of a context; each has a stream of its own, whether others are made or not.

    A new draw gets a new number, at the end: another number would be another sample.
    """

    QUERY = 0
    POLICY = 1
    CORRUPT_POLICY = 2
    REWARD = 3
    NOISE = 4
    SHOWN_REWARDS = 5
    LEARNER = 6
    CRITIC = 7
    OWN_ROUNDS = 8

    def of(self, key: Key[Array, ""]) -> Key[Array, ""]:
        """Its key for the context of `key`."""
        return jax.random.fold_in(key, int(self))


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


Rewards = Float[Array, "*batch n"]

TRANSFORMS: dict[str, Callable[[TaskConfig, Rewards], Rewards]] = implemented(
    REWARD_TRANSFORMS,
    {
        "identity": lambda task, rewards: rewards,
        "power": lambda task, rewards: rewards**task.reward_power,
        "rank": lambda task, rewards: rank_of(rewards),
    },
)


def transform_rewards(
    task: TaskConfig, rewards: Float[Array, "*batch n"]
) -> Float[Array, "*batch n"]:
    """The task's monotone map of rewards in [0, 1] to [0, 1].

    A ranking does not change under it; whatever reads the reward's value does. `rank` is taken over
    the whole context, so it tells an early attempt where it stands among the later ones.
    """
    return TRANSFORMS[task.reward_transform](task, rewards)


def add_reward_noise(
    key: Key[Array, ""], rewards: Float[Array, "*batch n"], p: Float[Array, ""] | float
) -> Float[Array, "*batch n"]:
    """Replaces each reward by a fresh U(0, 1) draw with probability p; the responses stay.

    With one key, the rewards replaced at a small p are among those replaced at a larger p.
    """
    which, fresh = jax.random.split(key)
    replaced = jax.random.uniform(which, rewards.shape) < p
    return jnp.where(replaced, jax.random.uniform(fresh, rewards.shape), rewards)


def shared_corruption(task: TaskConfig, key: Key[Array, ""]) -> Context:
    """A context whose responses share one corrupt policy W-, so that they lie on a line."""
    return _corrupted(task, key, 1)


def independent_corruption(task: TaskConfig, key: Key[Array, ""]) -> Context:
    """A context whose every response has a corrupt policy W-_i of its own."""
    return _corrupted(task, key, task.num_responses)


def _corrupted(task: TaskConfig, key: Key[Array, ""], num_policies: int) -> Context:
    d, n = task.dim, task.num_responses
    query = jax.random.normal(Stream.QUERY.of(key), (d,))
    if task.unit_norm_queries:
        query = query / jnp.linalg.norm(query)
    target = jax.random.normal(Stream.POLICY.of(key), (d, d)) @ query
    policies = jax.random.normal(Stream.CORRUPT_POLICY.of(key), (num_policies, d, d))
    rewards = jax.random.uniform(Stream.REWARD.of(key), (n,))
    responses = rewards[:, None] * target + (1 - rewards[:, None]) * (policies @ query)
    return Context(query, responses, rewards, target)


# Task -> (its options, key) -> a context with clean rewards.
SAMPLERS: dict[str, Callable[[TaskConfig, Key[Array, ""]], Context]] = implemented(
    TASKS,
    {
        "shared_corruption": shared_corruption,
        "independent_corruption": independent_corruption,
    },
)


def sample_context(
    task: TaskConfig, key: Key[Array, ""], reward_noise: Float[Array, ""] | float | None = None
) -> Context:
    """One context of `task.name`, with its reward noise and transform; a pure function of the key.

    Args:
      task: the data process.
      key: one key.
      reward_noise: overrides `task.reward_noise`; may be traced. The query, the responses and the
        clean rewards do not depend on it.
    """
    context = SAMPLERS[task.name](task, key)
    noise = task.reward_noise if reward_noise is None else reward_noise
    rewards = add_reward_noise(Stream.NOISE.of(key), context.rewards, noise)
    return context._replace(rewards=transform_rewards(task, rewards))


def sample_contexts(
    task: TaskConfig,
    keys: Key[Array, " batch"],
    reward_noise: Float[Array, ""] | float | None = None,
) -> Context:
    """A batch of contexts, one for each key."""
    return jax.vmap(lambda key: sample_context(task, key, reward_noise))(keys)


def contexts_of(task: TaskConfig, arrays: Any) -> Context:
    """Contexts from arrays of one's own, with a leading axis b.

    Args:
      task: gives the dimension d and the most attempts N.
      arrays: a Context, or (query [b, d], responses [b, n, d], rewards [b, n]), n at most N, and
        perhaps a target [b, d]; where none is given it is unknown, and filled with NaN.

    Raises:
      ValueError: an array is missing, or does not fit; says which, and the shape it should have.
    """
    names = Context._fields
    if not isinstance(arrays, tuple | list):
        raise ValueError(
            f"{type(arrays).__name__}: must be a Context or (query, responses, rewards)"
        )
    arrays = [jnp.asarray(array, jnp.float32) for array in arrays if array is not None]
    if len(arrays) not in (3, 4):
        raise ValueError(
            f"{len(arrays)} arrays: must be query, responses, rewards and maybe target"
        )
    b, n = arrays[1].shape[:2] if arrays[1].ndim == 3 else ("b", "n")
    d = task.dim
    shapes = (b, d), (b, n, d), (b, n), (b, d)
    for name, array, shape in zip(names, arrays, shapes, strict=False):
        if array.shape != shape:
            raise ValueError(
                f"{name} has shape {_text(array.shape)}: must be {_text(shape)}, for {b} contexts "
                f"of {n} attempts in task.dim={d} dimensions, as responses {_text((b, n, d))}"
            )
    if b == 0:
        raise ValueError("query has no contexts: must be one at least")
    if n > task.num_responses:
        raise ValueError(
            f"responses has {n} attempts: at most task.num_responses={task.num_responses}"
        )
    if not bool(jnp.all((arrays[2] >= 0) & (arrays[2] <= 1))):
        raise ValueError("rewards: must be in [0, 1]")
    return Context(*arrays, *([jnp.full_like(arrays[0], jnp.nan)] if len(arrays) == 3 else []))


def _text(shape: tuple[int | str, ...]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _shuffled(
    rewards: Float[Array, "batch n"], keys: Key[Array, " batch"]
) -> Float[Array, "batch n"]:
    def shuffle(key, r):
        return jax.random.permutation(Stream.SHOWN_REWARDS.of(key), r)

    return jax.vmap(shuffle)(keys, rewards)


SHOWN = implemented(
    SHOWN_REWARDS,
    {
        "given": lambda rewards, keys: rewards,
        "none": lambda rewards, keys: jnp.zeros_like(rewards),
        "shuffled": _shuffled,
    },
)


def shown_to_transformer(
    task: TaskConfig, contexts: Context, keys: Key[Array, " batch"]
) -> Context:
    """What the transformer is shown: the contexts, their rewards hidden or shuffled in a control.

    With `task.shown_rewards` "none" every reward is 0; with "shuffled" the rewards of a context are
    permuted among its attempts. Learners and losses keep the given rewards.
    """
    return contexts._replace(rewards=SHOWN[task.shown_rewards](contexts.rewards, keys))
