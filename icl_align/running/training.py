"""Training as pure functions: a state, one step, and many steps as one compiled program.

Every array of a state has a leading axis of members, which train together as one program (under a
`vmap`; on a CPU one by one, which is faster there): the seeds of a configuration, and of all
configurations that differ only in traced numbers (`config.traced_values`).
Each step draws its own batch on the device from (seed, step), so a run goes on from any state.

Over a mesh (`mesh`) every device steps its own members on its own share of their batches, and
the devices of one member average their gradients. A device goes through its share in slices, whose
activations stay in the cache of a CPU.
"""

import functools
import pickle
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Key

from icl_align.config import (
    PRECISIONS,
    SCHEDULES,
    Config,
    TrainConfig,
    implemented,
    traced_values,
    with_values,
)
from icl_align.running.keys import initialisation_key, training_keys
from icl_align.running.mesh import BATCH, SEEDS, everywhere
from icl_align.running.packing import unpack
from icl_align.running.slices import slice_size
from icl_align.world import ProvokingWorld, world_of

METRICS = ("train/loss", "train/grad_norm", "train/param_norm", "train/learning_rate")


class Member(NamedTuple):
    """What tells the networks apart that train as one program; leading axis s, or one of them.

    Attributes:
      seed: of its initial parameters and contexts.
      values: dotted key -> number, of all options in `config.traced_values`.
    """

    seed: Int[Array, "*s"]
    values: dict[str, Float[Array, "*s"]]


class TrainState(NamedTuple):
    """All that a run needs to go on; leading axis s for members."""

    params: Any
    opt_state: Any
    step: Int[Array, " s"]


def members_of(*configs: Config) -> Member:
    """The seeds of the first configuration, then those of the second, ...

    Args:
      configs: equal but for traced numbers and seeds; a number is null in all or in none.
    """

    def each(numbers):
        numbers = [
            np.full(c.num_seeds, x, np.float32) for c, x in zip(configs, numbers, strict=True)
        ]
        return jnp.asarray(np.concatenate(numbers))  # on the host: nothing to compile

    values = [traced_values(config) for config in configs]
    seeds = np.concatenate([c.seed + np.arange(c.num_seeds) for c in configs])
    return Member(
        seed=jnp.asarray(seeds.astype(np.int32)),
        values={key: each([one[key] for one in values]) for key in values[0]},
    )


# --------------------------------------------------------------------------------------- networks


def build_network(config: Config, seed: Int[Array, ""] | int) -> nnx.Module:
    """A freshly initialised network, a pure function of the seed."""
    return world_of(config).network(config, nnx.Rngs(initialisation_key(seed)))


def abstract_network(config: Config) -> tuple[nnx.GraphDef, Any]:
    """A network's graph, and the shapes and types of its parameters; nothing is drawn."""
    return _abstract_network(pickle.dumps(config))


@functools.cache  # tracing takes a tenth of a second, and a start needs it three times
def _abstract_network(pickled: bytes) -> tuple[nnx.GraphDef, Any]:
    network = nnx.eval_shape(lambda: build_network(pickle.loads(pickled), 0))
    return nnx.graphdef(network), nnx.to_pure_dict(nnx.state(network, nnx.Param))


def network_of(config: Config) -> Callable[[Any], nnx.Module]:
    """Params of one member -> its network, which maps what it is shown to its answers."""
    graph, _ = abstract_network(config)
    return lambda params: nnx.merge(graph, nnx.State(params))


# -------------------------------------------------------------------------------------- optimiser

# What follows the warm-up: (peak, steps) -> schedule.
AFTER_WARMUP: dict[str, Callable[[Any, int], optax.Schedule]] = implemented(
    SCHEDULES,
    {
        "cosine": lambda peak, steps: optax.cosine_decay_schedule(peak, max(steps, 1)),
        "constant": lambda peak, steps: optax.constant_schedule(peak),
    },
)


def learning_rate_schedule(train: TrainConfig) -> optax.Schedule:
    """Linear warm-up from 0 to `train.learning_rate`, then a cosine to 0 or a constant."""
    peak = train.learning_rate
    warmup = round(train.warmup_fraction * train.steps)
    rest = AFTER_WARMUP[train.schedule](peak, train.steps - warmup)
    if not warmup:
        return rest
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), rest], [warmup])


def make_optimizer(train: TrainConfig) -> optax.GradientTransformation:
    """Adam on gradients clipped to a global norm."""
    unclipped = train.clip_norm is None
    clip = optax.identity() if unclipped else optax.clip_by_global_norm(train.clip_norm)
    return optax.chain(clip, optax.adam(learning_rate_schedule(train)))


# ------------------------------------------------------------------------------------------ state


def init_state(config: Config, members: Member | None = None) -> TrainState:
    """The state before the first step, for all members; by default the seeds of `config`."""
    members = members_of(config) if members is None else members
    return _initialisation(pickle.dumps(config))(members)


@functools.cache  # one program, however often it is asked for
def _initialisation(pickled: bytes) -> Callable[[Member], TrainState]:
    config = pickle.loads(pickled)

    def one(member):
        params = nnx.to_pure_dict(nnx.state(build_network(config, member.seed), nnx.Param))
        return _untrained(config, member, params)

    return jax.jit(jax.vmap(one))


def state_shapes(config: Config, members: Member | None = None) -> TrainState:
    """Shapes and types of `init_state`."""
    members = members_of(config) if members is None else members
    _, params = abstract_network(config)
    each = jax.vmap(functools.partial(_untrained, config), (0, None))
    return jax.eval_shape(each, members, params)


def _untrained(config: Config, member: Member, params: Any) -> TrainState:
    optimizer = make_optimizer(with_values(config, member.values).train)
    return TrainState(params, optimizer.init(params), jnp.array(0))


# ------------------------------------------------------------------------------------------- step


class Precision(NamedTuple):
    """Of a training step: of its matrix products, and of parameters and activations in them."""

    products: str | None
    values: Any


PRECISION_RULES = implemented(
    PRECISIONS,
    {
        "default": Precision(None, jnp.float32),
        "float32": Precision("float32", jnp.float32),
        "tensorfloat32": Precision("tensorfloat32", jnp.float32),
        "bfloat16": Precision("bfloat16", jnp.bfloat16),
    },
)


def loss_of(
    config: Config, params: Any, keys: Any, values: Mapping[str, Any] | None = None
) -> Float[Array, ""]:
    """Training loss of one member's parameters on the contexts of `keys`.

    Args:
      config: options.
      params: of one member; they stay float32, and so does the loss.
      keys: one key a context.
      values: a member's own, over those of `config`; may be traced.
    """
    network, world = network_of(config), world_of(config)
    config = with_values(config, values or {})
    precision = PRECISION_RULES[config.train.precision]

    def cast(tree, dtype):
        is_float = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)  # noqa: E731
        return jax.tree.map(lambda leaf: leaf.astype(dtype) if is_float(leaf) else leaf, tree)

    with jax.named_scope("tokens"), jax.default_matmul_precision(precision.products):
        sample = world.sample(config, keys)
        if isinstance(world, ProvokingWorld):
            sample = world.provoked(config, network(params), sample, keys)
    shown = sample.shown
    if precision.values != jnp.float32:
        params, shown = cast((params, shown), precision.values)
    with jax.default_matmul_precision(precision.products):
        answers = cast(world.answers(config, network(params), shown), jnp.float32)
        with jax.named_scope("loss"):
            return world.loss(config, answers, sample.given)


def loss_and_gradient(
    config: Config,
    params: Any,
    keys: Key[Array, " batch"],
    values: Mapping[str, Any] | None = None,
    slice_size: int | None = None,
    unpacked: Callable[[Any], Any] = lambda params: params,
) -> tuple[Float[Array, ""], Any]:
    """Training loss of one member on the contexts of `keys`, and its gradient.

    Args:
      config: options.
      params: of one member.
      keys: one key a context.
      values: as in `loss_of`.
      slice_size: contexts computed at once, by default all; a divisor of their number.
      unpacked: makes parameters of `params`, where they are in another form; the gradient has it.
    """

    def loss(params, some):
        return loss_of(config, unpacked(params), some, values)

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
        loss_and_gradient(config, state.params, keys, member.values, slice_size, unpacked)
    )
    with jax.named_scope("optimizer"):
        train = with_values(config, member.values).train
        optimizer = make_optimizer(train)
        updates, opt_state = optimizer.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        learning_rate = learning_rate_schedule(train)(state.step)
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
      mesh: the devices, from `mesh.make_mesh`.
      one_by_one: whether a device steps its members in turn, not under a `vmap`; by default on a
        CPU, where their products are too small to gain from company.

    Returns:
      (members, state, num_steps) -> (state, metrics). The state is packed: `packing.pack(state,
      leading=1)`; rows of the metrics from num_steps on are zero. Members and state are divided
      along the mesh's seeds.
    """
    unpacked = functools.partial(unpack, like=abstract_network(config)[1])
    share = config.train.batch_size // mesh.shape[BATCH]
    platform = mesh.devices.flat[0].platform
    one_by_one = platform == "cpu" if one_by_one is None else one_by_one

    def on_a_device(members, state, num_steps):
        together = 1 if one_by_one else len(members.seed)
        tokens = world_of(config).num_tokens(config)
        size = slice_size(config, tokens, together, share, platform)
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
