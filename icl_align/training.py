"""Training as pure functions: a state, one step, and many steps as one compiled program.

Every array of a state has a leading axis of seeds, which train together under one `vmap`. Each step
draws its own batch on the device from (seed, step), so a run goes on from any state.
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


class TrainState(NamedTuple):
    """All that a run needs to go on; leading axis s for seeds."""

    params: Any
    opt_state: Any
    step: Int[Array, " s"]


def seeds_of(config: Config) -> Int[Array, " s"]:
    """The seeds trained together: seed, seed + 1, ..."""
    return config.seed + jnp.arange(config.num_seeds)


def build_transformer(config: Config, seed: Int[Array, ""] | int) -> Transformer:
    """A freshly initialised transformer, a pure function of the seed."""
    key = jax.random.fold_in(jax.random.key(seed), jnp.uint32(INITIALISATION))
    return Transformer(config.model, config.task, rngs=nnx.Rngs(key))


def transformer_learner(config: Config) -> Callable[[Any, Context], Float[Array, "*batch n d"]]:
    """(params of one seed, context) -> predictions."""
    graph = nnx.graphdef(nnx.eval_shape(lambda: build_transformer(config, 0)))
    return lambda params, context: nnx.merge(graph, nnx.State(params))(context)


def learning_rate_schedule(train: TrainConfig) -> optax.Schedule:
    """Linear warm-up from 0 to the peak, then a cosine to 0 or a constant."""
    warmup = round(train.warmup_fraction * train.steps)
    ramp = optax.linear_schedule(0.0, train.learning_rate, warmup) if warmup else None
    if train.schedule == "cosine":
        rest = optax.cosine_decay_schedule(train.learning_rate, max(train.steps - warmup, 1))
    else:
        rest = optax.constant_schedule(train.learning_rate)
    return optax.join_schedules([ramp, rest], [warmup]) if ramp else rest


def make_optimizer(train: TrainConfig) -> optax.GradientTransformation:
    """Adam on gradients clipped to a global norm."""
    clip = optax.clip_by_global_norm(train.clip_norm) if train.clip_norm else optax.identity()
    return optax.chain(clip, optax.adam(learning_rate_schedule(train)))


def init_state(config: Config) -> TrainState:
    """The state before the first step, for all seeds."""

    def one_seed(seed):
        params = nnx.to_pure_dict(nnx.state(build_transformer(config, seed), nnx.Param))
        return TrainState(params, make_optimizer(config.train).init(params), jnp.array(0))

    return jax.jit(jax.vmap(one_seed))(seeds_of(config))


def loss_of(config: Config, params: Any, keys: Any) -> Float[Array, ""]:
    """Training loss of one seed's parameters on the contexts of `keys`."""
    contexts = sample_contexts(config.task, keys)
    shown = shown_to_transformer(config.task, contexts, keys)
    predictions = transformer_learner(config)(params, shown)
    return training_loss(config.loss, predictions, contexts)


def train_step(
    config: Config, seed: Int[Array, ""], state: TrainState
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One optimiser step of one seed, and its metrics."""
    keys = training_keys(seed, state.step, config.train.batch_size)
    loss, grads = jax.value_and_grad(lambda params: loss_of(config, params, keys))(state.params)
    updates, opt_state = make_optimizer(config.train).update(grads, state.opt_state)
    params = optax.apply_updates(state.params, updates)
    learning_rate = jnp.asarray(learning_rate_schedule(config.train)(state.step), loss.dtype)
    values = (loss, optax.tree.norm(grads), optax.tree.norm(params), learning_rate)
    metrics = dict(zip(METRICS, values, strict=True))
    return TrainState(params, opt_state, state.step + 1), metrics


def make_chunk(
    config: Config, most: int
) -> Callable[[TrainState, int], tuple[TrainState, dict[str, Float[Array, "most s"]]]]:
    """A compiled function that makes up to `most` steps of all seeds without touching the host.

    The number of steps is an argument, not a shape: one program serves every length, so a run that
    was cut anywhere takes bit for bit the same steps. The state is donated.

    Returns:
      (state, num_steps) -> (state, metrics); rows of the metrics from num_steps on are zero.
    """
    seeds = seeds_of(config)

    def step(index, carry):
        state, metrics = carry
        state, row = jax.vmap(lambda seed, one: train_step(config, seed, one))(seeds, state)
        return state, {name: metrics[name].at[index].set(row[name]) for name in METRICS}

    def chunk(state, num_steps):
        metrics = {name: jnp.zeros((most, len(seeds))) for name in METRICS}
        return jax.lax.fori_loop(0, num_steps, step, (state, metrics))

    return jax.jit(chunk, donate_argnums=0)
