"""Training as pure functions: a state, one step, and many steps as one compiled program.

Every array of a state has a leading axis of members, which train together under one `vmap`: the
seeds of a configuration, and of all configurations that differ only in `config.TRACED` numbers.
Each step draws its own batch on the device from (seed, step), so a run goes on from any state.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree

from icl_align.config import Config, TrainConfig
from icl_align.contexts import (
    INITIALISATION,
    Context,
    sample_contexts,
    shown_to_transformer,
    training_keys,
)
from icl_align.losses import training_loss
from icl_align.model import Transformer

Params = PyTree[Float[Array, "s ..."]]
METRICS = ("train/loss", "train/grad_norm", "train/param_norm", "train/learning_rate")


class Member(NamedTuple):
    """What tells the networks apart that train as one program; leading axis s, or one of them."""

    seed: Int[Array, "*s"]
    learning_rate: Float[Array, "*s"]
    clip_norm: Float[Array, "*s"] | None
    reward_noise: Float[Array, "*s"]


class TrainState(NamedTuple):
    """All that a run needs to go on; leading axis s for members."""

    params: Any
    opt_state: Any
    step: Int[Array, " s"]


def members_of(*configs: Config) -> Member:
    """The seeds of the first configuration, then those of the second, ...

    Args:
      configs: equal but for `config.TRACED` numbers and seeds; `clip_norm` is null in all or none.
    """

    def each(value):
        return jnp.concatenate([jnp.full(c.num_seeds, value(c), jnp.float32) for c in configs])

    clips = None if configs[0].train.clip_norm is None else each(lambda c: c.train.clip_norm)
    return Member(
        seed=jnp.concatenate([c.seed + jnp.arange(c.num_seeds) for c in configs]),
        learning_rate=each(lambda c: c.train.learning_rate),
        clip_norm=clips,
        reward_noise=each(lambda c: c.task.reward_noise),
    )


def build_transformer(config: Config, seed: Int[Array, ""] | int) -> Transformer:
    """A freshly initialised transformer, a pure function of the seed."""
    key = jax.random.fold_in(jax.random.key(seed), jnp.uint32(INITIALISATION))
    return Transformer(config.model, config.task, rngs=nnx.Rngs(key))


def transformer_learner(config: Config) -> Callable[[Any, Context], Float[Array, "*batch n d"]]:
    """(params of one seed, context) -> predictions."""
    graph = nnx.graphdef(nnx.eval_shape(lambda: build_transformer(config, 0)))
    return lambda params, context: nnx.merge(graph, nnx.State(params))(context)


def learning_rate_schedule(
    train: TrainConfig, peak: Float[Array, ""] | float | None = None
) -> optax.Schedule:
    """Linear warm-up from 0 to the peak, by default `train.learning_rate`, then a cosine to 0 or
    a constant.
    """
    peak = train.learning_rate if peak is None else peak
    warmup = round(train.warmup_fraction * train.steps)
    ramp = optax.linear_schedule(0.0, peak, warmup) if warmup else None
    if train.schedule == "cosine":
        rest = optax.cosine_decay_schedule(peak, max(train.steps - warmup, 1))
    else:
        rest = optax.constant_schedule(peak)
    return optax.join_schedules([ramp, rest], [warmup]) if ramp else rest


def make_optimizer(train: TrainConfig, member: Member) -> optax.GradientTransformation:
    """Adam on gradients clipped to a global norm, with one member's numbers."""
    unclipped = member.clip_norm is None
    clip = optax.identity() if unclipped else optax.clip_by_global_norm(member.clip_norm)
    return optax.chain(clip, optax.adam(learning_rate_schedule(train, member.learning_rate)))


def init_state(config: Config, members: Member | None = None) -> TrainState:
    """The state before the first step, for all members; by default the seeds of `config`."""

    def one(member):
        params = nnx.to_pure_dict(nnx.state(build_transformer(config, member.seed), nnx.Param))
        return TrainState(params, make_optimizer(config.train, member).init(params), jnp.array(0))

    return jax.jit(jax.vmap(one))(members_of(config) if members is None else members)


def loss_of(
    config: Config, params: Any, keys: Any, reward_noise: Float[Array, ""] | float | None = None
) -> Float[Array, ""]:
    """Training loss of one member's parameters on the contexts of `keys`."""
    contexts = sample_contexts(config.task, keys, reward_noise)
    shown = shown_to_transformer(config.task, contexts, keys)
    predictions = transformer_learner(config)(params, shown)
    return training_loss(config.loss, predictions, contexts)


def train_step(
    config: Config, member: Member, state: TrainState
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One optimiser step of one member, and its metrics."""
    keys = training_keys(member.seed, state.step, config.train.batch_size)
    loss, grads = jax.value_and_grad(
        lambda params: loss_of(config, params, keys, member.reward_noise)
    )(state.params)
    updates, opt_state = make_optimizer(config.train, member).update(grads, state.opt_state)
    params = optax.apply_updates(state.params, updates)
    learning_rate = learning_rate_schedule(config.train, member.learning_rate)(state.step)
    values = (loss, optax.tree.norm(grads), optax.tree.norm(params), learning_rate)
    metrics = {n: jnp.asarray(v, loss.dtype) for n, v in zip(METRICS, values, strict=True)}
    return TrainState(params, opt_state, state.step + 1), metrics


def make_chunk(
    config: Config, most: int, members: Member | None = None
) -> Callable[[TrainState, int], tuple[TrainState, dict[str, Float[Array, "most s"]]]]:
    """A compiled function that makes up to `most` steps of all members without touching the host.

    The number of steps is an argument, not a shape: one program serves every length, so a run that
    was cut anywhere takes bit for bit the same steps. The state is donated.

    Args:
      config: what the members share.
      most: steps in a chunk, at most.
      members: by default the seeds of `config`.

    Returns:
      (state, num_steps) -> (state, metrics); rows of the metrics from num_steps on are zero.
    """
    members = members_of(config) if members is None else members

    def step(index, carry):
        state, metrics = carry
        state, row = jax.vmap(lambda member, one: train_step(config, member, one))(members, state)
        return state, {name: metrics[name].at[index].set(row[name]) for name in METRICS}

    def chunk(state, num_steps):
        metrics = {name: jnp.zeros((most, len(members.seed))) for name in METRICS}
        return jax.lax.fori_loop(0, num_steps, step, (state, metrics))

    return jax.jit(chunk, donate_argnums=0)
