"""Training as pure functions: a state, one step, and many steps as one compiled program.

Every array of a state has a leading axis of members, which train together as one program (under a
`vmap`; on a CPU one by one, which is faster there): the seeds of a configuration, and of all
configurations that differ only in `config.TRACED` numbers.
Each step draws its own batch on the device from (seed, step), so a run goes on from any state.

Over a mesh (`devices`) every device steps its own members on its own share of their batches, and
the devices of one member average their gradients. A device goes through its share in slices, whose
activations stay in the cache of a CPU.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Key

from icl_align.config import Config, ModelConfig, TaskConfig, TrainConfig
from icl_align.contexts import (
    INITIALISATION,
    Context,
    sample_contexts,
    shown_to_transformer,
    training_keys,
)
from icl_align.devices import BATCH, SEEDS, everywhere
from icl_align.losses import training_loss
from icl_align.model import Transformer, num_tokens
from icl_align.packing import unpack

# Tokens of a slice on a CPU; see benchmarks/NOTES.md.
CPU_TOKENS = 1024
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
        numbers = [np.full(c.num_seeds, value(c), np.float32) for c in configs]
        return jnp.asarray(np.concatenate(numbers))  # on the host: nothing to compile

    clips = None if configs[0].train.clip_norm is None else each(lambda c: c.train.clip_norm)
    seeds = np.concatenate([c.seed + np.arange(c.num_seeds) for c in configs])
    return Member(
        seed=jnp.asarray(seeds.astype(np.int32)),
        learning_rate=each(lambda c: c.train.learning_rate),
        clip_norm=clips,
        reward_noise=each(lambda c: c.task.reward_noise),
    )


def build_transformer(config: Config, seed: Int[Array, ""] | int) -> Transformer:
    """A freshly initialised transformer, a pure function of the seed."""
    key = jax.random.fold_in(jax.random.key(seed), jnp.uint32(INITIALISATION))
    return Transformer(config.model, config.task, rngs=nnx.Rngs(key))


def abstract_transformer(config: Config) -> tuple[nnx.GraphDef, Any]:
    """A transformer's graph, and the shapes and types of its parameters; nothing is drawn."""
    return _abstract_transformer(
        dataclasses.astuple(config.model), dataclasses.astuple(config.task)
    )


@functools.cache  # tracing takes a tenth of a second, and a start needs it three times
def _abstract_transformer(model: tuple, task: tuple) -> tuple[nnx.GraphDef, Any]:
    config = Config(model=ModelConfig(*model), task=TaskConfig(*task))
    transformer = nnx.eval_shape(lambda: build_transformer(config, 0))
    return nnx.graphdef(transformer), nnx.to_pure_dict(nnx.state(transformer, nnx.Param))


def transformer_learner(config: Config) -> Callable[[Any, Context], Float[Array, "*batch n d"]]:
    """(params of one seed, context) -> predictions."""
    graph, _ = abstract_transformer(config)
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
        return _untrained(config, member, params)

    return jax.jit(jax.vmap(one))(members_of(config) if members is None else members)


def state_shapes(config: Config, members: Member | None = None) -> TrainState:
    """Shapes and types of `init_state`."""
    members = members_of(config) if members is None else members
    _, params = abstract_transformer(config)
    each = jax.vmap(functools.partial(_untrained, config), (0, None))
    return jax.eval_shape(each, members, params)


def _untrained(config: Config, member: Member, params: Any) -> TrainState:
    return TrainState(params, make_optimizer(config.train, member).init(params), jnp.array(0))


def loss_of(
    config: Config, params: Any, keys: Any, reward_noise: Float[Array, ""] | float | None = None
) -> Float[Array, ""]:
    """Training loss of one member's parameters on the contexts of `keys`."""
    with jax.named_scope("tokens"):
        contexts = sample_contexts(config.task, keys, reward_noise)
        shown = shown_to_transformer(config.task, contexts, keys)
        most = config.loss.max_attempts
        if most is not None and not config.model.sees_future:  # nothing later is trained on
            first = {
                "responses": shown.responses[..., :most, :],
                "rewards": shown.rewards[..., :most],
            }
            shown = shown._replace(**first)
    precision = config.train.precision
    if precision == "bfloat16":  # parameters stay float32, and so does the loss
        params, shown = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (params, shown))
    with jax.default_matmul_precision(None if precision == "default" else precision):
        predictions = transformer_learner(config)(params, shown).astype(jnp.float32)
        with jax.named_scope("loss"):
            return training_loss(config.loss, predictions, contexts)


def slice_size(config: Config, num_members: int, num_contexts: int, platform: str) -> int:
    """How many of `num_contexts` contexts of each member a device computes the gradient of at once.

    It divides `num_contexts`. On a CPU a slice is as long as the cache likes: more pays for memory,
    fewer for starting many small products.

    Args:
      config: `devices.slice` bounds it from above; the model gives the tokens of a context.
      num_members: networks on the device.
      num_contexts: of each network, on the device.
      platform: "cpu", or any other for an accelerator.
    """
    divisors = [n for n in range(1, num_contexts + 1) if num_contexts % n == 0]
    if config.devices.slice is not None:
        return max(n for n in divisors if n <= config.devices.slice)
    if platform != "cpu":
        return num_contexts
    wanted = max(1, CPU_TOKENS // (num_members * num_tokens(config.model, config.task)))
    return min(divisors, key=lambda n: abs(math.log(n / wanted)))


def loss_and_gradient(
    config: Config,
    params: Any,
    keys: Key[Array, " batch"],
    reward_noise: Float[Array, ""] | float | None = None,
    slice_size: int | None = None,
    unpacked: Callable[[Any], Any] = lambda params: params,
) -> tuple[Float[Array, ""], Any]:
    """Training loss of one member on the contexts of `keys`, and its gradient.

    Args:
      config: options.
      params: of one member.
      keys: one key a context.
      reward_noise: overrides `task.reward_noise`.
      slice_size: contexts computed at once, by default all; a divisor of their number.
      unpacked: makes parameters of `params`, where they are in another form; the gradient has it.
    """

    def loss(params, some):
        return loss_of(config, unpacked(params), some, reward_noise)

    gradient = jax.value_and_grad(loss)
    slices = 1 if slice_size is None else len(keys) // slice_size
    if slices == 1:
        return gradient(params, keys)

    def add(total, some):
        return jax.tree.map(jnp.add, total, gradient(params, some)), None

    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    total, _ = jax.lax.scan(add, zero, keys.reshape(slices, -1))
    return jax.tree.map(lambda leaf: leaf / slices, total)


def train_step(
    config: Config,
    member: Member,
    state: TrainState,
    keys: Key[Array, " batch"],
    slice_size: int | None = None,
    mean: Callable[[Any], Any] = lambda tree: tree,
    unpacked: Callable[[Any], Any] = lambda params: params,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One optimiser step of one member, and its metrics.

    Args:
      config: options.
      member: its numbers.
      state: its state.
      keys: of its contexts, or of this device's share of them.
      slice_size: as in `loss_and_gradient`.
      mean: of loss and gradient over the devices that share the member.
      unpacked: as in `loss_and_gradient`.
    """
    loss, grads = mean(
        loss_and_gradient(config, state.params, keys, member.reward_noise, slice_size, unpacked)
    )
    with jax.named_scope("optimizer"):
        optimizer = make_optimizer(config.train, member)
        updates, opt_state = optimizer.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        learning_rate = learning_rate_schedule(config.train, member.learning_rate)(state.step)
        values = (loss, optax.tree.norm(grads), optax.tree.norm(params), learning_rate)
    metrics = {n: jnp.asarray(v, loss.dtype) for n, v in zip(METRICS, values, strict=True)}
    return TrainState(params, opt_state, state.step + 1), metrics


def make_chunk(
    config: Config, most: int, mesh: Mesh, one_by_one: bool | None = None
) -> Callable[[Member, TrainState, int], tuple[TrainState, dict[str, Float[Array, "most s"]]]]:
    """A compiled function that makes up to `most` steps of all members without touching the host.

    The number of steps is an argument, not a shape: one program serves every length, so a run that
    was cut anywhere takes bit for bit the same steps. The state is donated.

    Args:
      config: what the members share.
      most: steps in a chunk, at most.
      mesh: the devices, from `devices.make_mesh`.
      one_by_one: whether a device steps its members in turn, not under a `vmap`; by default on a
        CPU, where their products are too small to gain from company.

    Returns:
      (members, state, num_steps) -> (state, metrics). The state is packed: `packing.pack(state,
      leading=1)`; rows of the metrics from num_steps on are zero. Members and state are divided
      along the mesh's seeds.
    """
    unpacked = functools.partial(unpack, like=abstract_transformer(config)[1])
    share = config.train.batch_size // mesh.shape[BATCH]
    platform = mesh.devices.flat[0].platform
    one_by_one = platform == "cpu" if one_by_one is None else one_by_one

    def on_a_device(members, state, num_steps):
        together = 1 if one_by_one else len(members.seed)
        size = slice_size(config, together, share, platform)
        first = jax.lax.axis_index(BATCH) * share

        def step(index, carry):
            state, metrics = carry

            def one(member, state):
                keys = training_keys(member.seed, state.step, config.train.batch_size)
                own = jax.lax.dynamic_slice_in_dim(keys, first, share)
                mean = functools.partial(jax.lax.pmean, axis_name=BATCH)
                return train_step(config, member, state, own, size, mean, unpacked)

            if one_by_one:
                state, row = jax.lax.map(lambda pair: one(*pair), (members, state))
            else:
                state, row = jax.vmap(one)(members, state)
            return state, {name: metrics[name].at[index].set(row[name]) for name in METRICS}

        metrics = {name: jnp.zeros((most, len(members.seed))) for name in METRICS}
        return jax.lax.fori_loop(0, num_steps, step, (state, metrics))

    each = P(SEEDS)
    # Replication over the batch axis holds by the mean above; the checker cannot follow the loops.
    mapped = jax.shard_map(
        on_a_device,
        mesh=mesh,
        in_specs=(each, each, P()),
        out_specs=(each, P(None, SEEDS)),
        check_vma=False,
    )

    def chunk(members, state, num_steps):
        state, metrics = mapped(members, state, num_steps)
        return state, jax.lax.with_sharding_constraint(metrics, everywhere(mesh))

    return jax.jit(chunk, donate_argnums=1)
