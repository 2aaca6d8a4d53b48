"""What each part of the constructed network is for: take one away, and see what training can mend.

A knock-out is the constructed network with one field of its `ModelConfig` changed, the same fields
that the ablations of a training run change. Its error is the share of the update it misses,

    sqrt( E ||y_network - y_step||^2 / E ||y_step - y_0||^2 ),

over generic contexts (queries of norm 1, normal responses, uniform rewards): 0 for the exact
step, 1 for a network that leaves the prediction y_0 = W x where it was.

Three repairs by gradient descent on the same target tell "this construction needs it" from "no
network of this size does it", as far as training of this length can: refitting what is left of
the constructed weights, training the same architecture from scratch, and training a wider one
(never a deeper one) that lacks the same part. Each is compared with the same repair of the intact
network. What is left is measured for the sharp network; the refit starts from what is left of the
dull one, as no gradient passes through the sharp one's attention.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Key

from icl_align.alignment.contexts import Context
from icl_align.alignment.losses import plackett_luce, response_scores
from icl_align.alignment.options import Options
from icl_align.alignment.theory.assembly import (
    Network,
    compile_quickly,
    parameter_shapes,
    run_last_row,
)
from icl_align.alignment.theory.construction import DULL, plackett_luce_network
from icl_align.alignment.theory.parallel import in_parallel
from icl_align.running.training import build_network

LEARNING_RATE = 0.2  # of the gradient step that is the target
REPAIRS = ("refit", "scratch", "wide")
BATCH_SIZE = 64
POOL, HELD_OUT = 2**16, 2**13  # contexts to train on; half of the held out choose, half judge
# Peak rates of Adam; of each repair the best by a validation sample counts.
REFIT_RATES, SCRATCH_RATES, WIDE_RATES = (1e-4, 1e-3, 1e-2), (1e-2, 3e-2), (3e-3, 1e-2)
WIDE_WIDTH = 32
# A repair mends when it ends below MENDED times the same repair of the intact network. Where that
# one misses more than ENOUGH, training was too short to tell.
MENDED, ENOUGH = 1.5, 0.25


def knock_outs(num_responses: int) -> dict[str, dict[str, Any]]:
    """Name -> what is changed in the constructed network's `ModelConfig`.

    Raises:
      ValueError: for fewer than three attempts, where there is no block to spare.
    """
    if num_responses < 3:
        raise ValueError(f"knock-outs need at least 3 attempts, not {num_responses}")
    return {
        "intact": {},
        "linear_attn": {"attention": "linear"},
        "linear_normalized_attn": {"attention": "linear_normalized"},
        "single_head": {"num_heads": 1},
        "no_mlp": {"mlp": False, "mlp_width": None},
        "one_block_fewer": {"num_layers": num_responses - 2},
        "causal_mask": {"causal": True},
        "layer_norm": {"norm": "pre"},
    }


def knock_out(network: Network, **changes: Any) -> Network:
    """The network with fields of its `ModelConfig` changed and every weight kept that still fits.

    Merging heads keeps all weights: the merged head's logits are the sum of the heads'
    logits, up to a constant factor. Layer norm is added with its initial scale 1 and bias 0.
    """
    model = dataclasses.replace(network.config.model, **changes)
    config = dataclasses.replace(network.config, model=model)
    dtype = jax.tree.leaves(network.params)[0].dtype
    return Network(config, _keep_what_fits(parameter_shapes(config), network.params, dtype))


def _keep_what_fits(shapes: Any, known: Any, dtype: Any, name: str | int = "") -> Any:
    if isinstance(shapes, dict):
        return {
            part: _keep_what_fits(shape, known.get(part, {}), dtype, part)
            for part, shape in shapes.items()
        }
    if isinstance(known, jax.Array) and known.shape == shapes.shape:
        return known
    return (jnp.ones if name == "scale" else jnp.zeros)(shapes.shape, dtype)


def initial_params(config: Options, seeds: Sequence[int]) -> Any:
    """Freshly initialised parameters, as in `TrainState.params`, with a leading axis of seeds."""
    each = [nnx.to_pure_dict(nnx.state(build_network(config, seed), nnx.Param)) for seed in seeds]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)


class Steps(NamedTuple):
    """Contexts whose target is the prediction after one gradient step, and the one before it."""

    contexts: Context
    before: Float[Array, "b d"]


@functools.partial(jax.jit, static_argnums=(2, 3))
def sample_steps(
    key: Key[Array, ""], policy: Float[Array, "d d"], num_responses: int, size: int
) -> Steps:
    """Generic contexts: queries of norm 1, normal responses, uniform rewards."""
    query_key, response_key, reward_key = jax.random.split(key, 3)
    d, dtype = len(policy), policy.dtype
    queries = jax.random.normal(query_key, (size, d), dtype)
    queries /= jnp.linalg.norm(queries, axis=-1, keepdims=True)
    responses = jax.random.normal(response_key, (size, num_responses, d), dtype)
    rewards = jax.random.uniform(reward_key, (size, num_responses), dtype)
    before = queries @ policy.T

    def loss(predictions):  # for a query of norm 1 a step on W is a step on the prediction
        scores = response_scores("negative_squared_distance", predictions[:, None], responses)
        return jnp.sum(plackett_luce(scores[:, 0], rewards))

    after = before - LEARNING_RATE * jax.grad(loss)(before)
    return Steps(Context(queries, responses, rewards, after), before)


def shares_missed(network: Network, held_out: Steps) -> Float[Array, "2"]:
    """The share of the update that the network misses, on each half of the sample."""
    contexts, before = held_out
    missed = jnp.sum((run_last_row(network, contexts) - contexts.target) ** 2, axis=-1)
    update = jnp.sum((contexts.target - before) ** 2, axis=-1)
    total = jnp.sum(jnp.stack([missed, update]).reshape(2, 2, -1), axis=-1)
    return jnp.sqrt(total[0] / total[1])


def make_repair(
    config: Options, num_steps: int
) -> Callable[[Any, Float[Array, " s"], Key[Array, " s"], Steps], Any]:
    """A compiled function that trains several starts at once towards the gradient step.

    Returns:
      (params, peak learning rates, keys, training contexts) -> params, all but the contexts with
      a leading axis of starts s.
    """
    warmup = max(num_steps // 10, 1)

    def loss(params, contexts):
        error = run_last_row(Network(config, params), contexts) - contexts.target
        return jnp.mean(jnp.sum(error**2, axis=-1))

    def repair(params, learning_rate, key, pool):
        schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup, num_steps)
        optimizer = optax.chain(
            optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.scale_by_schedule(schedule)
        )

        def step(index, carry):
            params, state = carry
            picked = jax.random.randint(
                jax.random.fold_in(key, index), (BATCH_SIZE,), 0, len(pool.before)
            )
            batch = jax.tree.map(lambda array: array[picked], pool.contexts)
            updates, state = optimizer.update(jax.grad(loss)(params, batch), state)
            updates = jax.tree.map(lambda update: -learning_rate * update, updates)
            return optax.apply_updates(params, updates), state

        return jax.lax.fori_loop(0, num_steps, step, (params, optimizer.init(params)))[0]

    # More optimisation makes these programs no faster, and compiling takes most of the time.
    return jax.jit(
        jax.vmap(repair, in_axes=(0, 0, 0, None)),
        compiler_options={"xla_backend_optimization_level": 1},
    )


def error_as_left(name: str, dim: int, num_responses: int, seed: int) -> float | None:
    """Share missed by a knock-out of the sharp network, in float64; None where it is not finite."""
    with jax.enable_x64(True):
        policy = _policy(dim, seed)
        held_out = sample_steps(jax.random.key(seed), policy, num_responses, HELD_OUT)
        sharp = plackett_luce_network(
            np.asarray(policy), LEARNING_RATE, num_responses, dtype=jnp.float64
        )
        config, params = knock_out(sharp, **knock_outs(num_responses)[name])
        missed = compile_quickly(lambda params: shares_missed(Network(config, params), held_out))
        return _finite(missed(params)[1])


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _policy(dim: int, seed: int) -> Float[Array, "d d"]:
    draw = np.random.default_rng(seed).normal(size=(dim, dim))
    return jnp.asarray(draw / np.sqrt(dim))


def repairs(
    name: str, dim: int, num_responses: int, num_steps: int, num_seeds: int, seed: int
) -> dict[str, Any]:
    """The three repairs of a knock-out: the best start's share missed, and those of all starts.

    "before_refit" is the share that the dull network misses, from which the refit starts.
    """
    policy = _policy(dim, seed)
    held_out_key, pool_key, start_key = jax.random.split(jax.random.key(seed), 3)
    held_out = sample_steps(held_out_key, policy, num_responses, HELD_OUT)
    pool = sample_steps(pool_key, policy, num_responses, POOL)
    dull = plackett_luce_network(np.asarray(policy), LEARNING_RATE, num_responses, sharpness=DULL)
    dull = knock_out(dull, **knock_outs(num_responses)[name])
    same = dull.config
    wider = dataclasses.replace(same.model, width=WIDE_WIDTH)
    wider.mlp_width = 4 * wider.width if wider.mlp else None
    wide = dataclasses.replace(same, model=wider)
    seeds = range(seed, seed + num_seeds)

    def train(config, starts, rates):  # both with a leading axis of starts
        keys = jax.random.split(start_key, len(rates))
        params = make_repair(config, num_steps)(starts, jnp.asarray(rates), keys, pool)
        missed = jax.vmap(lambda one: shares_missed(Network(config, one), held_out))
        return np.asarray(compile_quickly(missed)(params)).T

    def summary(validation, test):
        best = np.argmin(np.where(np.isfinite(validation), validation, np.inf))
        return {"best": _finite(test[best]), "all": [_finite(value) for value in test]}

    def each_with(params, rates):
        many = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * len(rates)), params)
        return many, [rate for rate in rates for _ in range(num_seeds)]

    refits = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(REFIT_RATES)), dull.params)
    scratch, rates = each_with(initial_params(same, seeds), SCRATCH_RATES)
    both = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), refits, scratch)
    validation, test = train(same, both, [*REFIT_RATES, *rates])
    cut = len(REFIT_RATES)
    before = compile_quickly(lambda one: shares_missed(Network(same, one), held_out))(dull.params)
    return {
        "before_refit": _finite(before[1]),
        "refit": summary(validation[:cut], test[:cut]),
        "scratch": summary(validation[cut:], test[cut:]),
        "wide": summary(*train(wide, *each_with(initial_params(wide, seeds), WIDE_RATES))),
    }


def mended_by(row: dict[str, Any], intact: dict[str, Any]) -> dict[str, str]:
    """Repair -> "yes", "no" or "undecided", for a row of the table and that of "intact"."""

    def verdict(name):
        reached, possible = row["repairs"][name]["best"], intact["repairs"][name]["best"]
        if possible is None or possible > ENOUGH:
            return "undecided"
        return "yes" if reached is not None and reached <= MENDED * possible else "no"

    return {name: verdict(name) for name in REPAIRS}


def knock_out_table(
    dim: int,
    num_responses: int,
    num_steps: int,
    num_seeds: int,
    seed: int,
    progress: Callable[[float], None] = lambda fraction: None,
) -> list[dict[str, Any]]:
    """One row for each knock-out: its error, the same at N = 6 and d = 5, and its repairs.

    Args:
      dim, num_responses: of the networks that are repaired.
      num_steps: Adam steps of each repair.
      num_seeds: starts from scratch for each learning rate.
      seed: of the policy, the data and the starts.
      progress: called with the share that is done, in [0, 1].
    """

    def row(name):
        return {
            "knock_out": name,
            "as_left": error_as_left(name, dim, num_responses, seed),
            "as_left_n6_d5": error_as_left(name, 5, 6, seed),
            "repairs": repairs(name, dim, num_responses, num_steps, num_seeds, seed),
        }

    rows = in_parallel(row, list(knock_outs(num_responses)), progress)
    return [row | {"mended": mended_by(row, rows[0])} for row in rows]
