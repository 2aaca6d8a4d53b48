"""Training that starts at the construction, and whether it stays there."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icl_align.alignment.contexts import shown_to_transformer
from icl_align.alignment.losses import cosine_similarity, training_loss
from icl_align.alignment.optimum import plackett_luce_optimum
from icl_align.alignment.options import Options
from icl_align.alignment.theory.assembly import Network, as_module
from icl_align.alignment.theory.construction import DULL, SHARP, plackett_luce_network
from icl_align.alignment.theory.descent import held_out, last_answer, plain_descent
from icl_align.alignment.theory.inside import attention_by_rank, picks_by_rank
from icl_align.running.mesh import make_mesh
from icl_align.running.packing import pack, unpack
from icl_align.running.training import (
    TrainState,
    abstract_network,
    init_state,
    make_chunk,
    make_optimizer,
    members_of,
)

SLOW = 1 / 30  # of the run's learning rate


def training_from_the_construction(
    config: Options,
    num_responses: int,
    num_steps: int,
    progress: Callable[[float], None] = lambda fraction: None,
) -> dict[str, Any]:
    """Trains the constructed network with the run's loss and optimiser, and watches where it goes.

    Starts: the sharp network and the dull one, each with the run's learning rate and with `SLOW`
    times that, and the same architecture initialised as usual. Queries have norm 1, and the target
    of "agreement" is the gradient step that the construction takes. Each start is trained with
    every seed of the run: what differs are the contexts, and the initial network.

    Returns:
      "optimum", the least loss that any answers reach (None where the loss has none to find), and
      "starts": start -> for each seed "rows" of step, loss, agreement (cosine with the gradient
      step) and picks (`picks_by_rank`, mean over the ranks 1 to N - 1), and "diverged_by": None, or
      the step at which its numbers were first seen to be no longer finite; there the rows end.
    """
    rate = 0.1
    task = dataclasses.replace(config.task, num_responses=num_responses, unit_norm_queries=True)
    loss = dataclasses.replace(config.loss, min_attempts=2, max_attempts=None)
    train = dataclasses.replace(config.train, steps=num_steps)
    zero = np.zeros((task.dim, task.dim))

    def build(sharpness):
        return plackett_luce_network(zero, rate, num_responses, sharpness=sharpness)

    model = build(SHARP).config.model
    seeds = {"seed": config.seed, "num_seeds": config.num_seeds}
    own = Options(task=task, model=model, loss=loss, train=train, **seeds)
    contexts, keys = held_out(own, 512)
    shown = shown_to_transformer(task, contexts, keys)
    step = last_answer(contexts, plain_descent(1, rate), keys, "negative_squared_distance")

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None, None, None))
    def judge(params, contexts, shown, step):
        network = Network(own, params)
        predictions = as_module(network)(shown)
        maps = attention_by_rank(network, shown, contexts.rewards)
        return {
            "loss": training_loss(loss, predictions, contexts),
            "agreement": jnp.mean(cosine_similarity(predictions[:, -1], step)),
            "picks": jnp.mean(picks_by_rank(maps)[:-1]),
        }

    looks = sorted({0, *np.geomspace(1, num_steps, 9).astype(int).tolist()})
    starts = {
        "constructed": (build(SHARP), 1.0),
        "constructed, slow": (build(SHARP), SLOW),
        "dull": (build(DULL), 1.0),
        "dull, slow": (build(DULL), SLOW),
        "initialised": (None, 1.0),
    }
    mesh = make_mesh(own, own.num_seeds, jax.local_devices()[:1])
    chunk = make_chunk(own, num_steps, mesh)
    like = abstract_network(own)[1]
    found: dict[str, Any] = {}
    for place, (name, (network, pace)) in enumerate(starts.items()):
        paced = dataclasses.replace(train, learning_rate=pace * train.learning_rate)
        members, state = members_of(dataclasses.replace(own, train=paced)), init_state(own)
        if network is not None:
            params = jax.tree.map(
                lambda leaf: jnp.broadcast_to(leaf, (own.num_seeds, *leaf.shape)), network.params
            )
            opt_state = jax.vmap(make_optimizer(train).init)(params)
            state = TrainState(params, opt_state, state.step)
        state = pack(state, leading=1)
        found[name] = [{"rows": [], "diverged_by": None} for _ in range(own.num_seeds)]
        for before, after in zip([0, *looks], looks, strict=False):
            if after > before:
                state, _ = chunk(members, state, after - before)
            params = jax.vmap(lambda packed: unpack(packed, like=like))(state.params)
            values = jax.device_get(judge(params, contexts, shown, step))
            for seed, of_seed in enumerate(found[name]):
                row = {key: float(of[seed]) for key, of in values.items()}
                if of_seed["diverged_by"] is None and all(map(math.isfinite, row.values())):
                    of_seed["rows"].append({"step": after} | row)
                elif of_seed["diverged_by"] is None:
                    of_seed["diverged_by"] = after
            progress((place + after / num_steps) / len(starts))
    best = None
    if loss.name == "plackett_luce":
        optimum = plackett_luce_optimum(contexts, loss.score)
        best = float(training_loss(loss, optimum, contexts))
    return {"optimum": best, "starts": found}
