"""Training that starts at the construction, and whether it stays there."""

import dataclasses
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
    of "agreement" is the gradient step that the construction takes.

    Returns:
      "optimum", the least loss that any answers reach (None where the loss has none to find), and
      "starts": start -> rows of step, loss, agreement (cosine with the gradient step) and picks
      (`picks_by_rank`, mean over the ranks 1 to N - 1). Rows end where training diverges.
    """
    rate = 0.1
    task = dataclasses.replace(config.task, num_responses=num_responses, unit_norm_queries=True)
    loss = dataclasses.replace(config.loss, min_attempts=2, max_attempts=None)
    train = dataclasses.replace(config.train, steps=num_steps)
    zero = np.zeros((task.dim, task.dim))

    def build(sharpness):
        return plackett_luce_network(zero, rate, num_responses, sharpness=sharpness)

    model = build(SHARP).config.model
    own = Options(task=task, model=model, loss=loss, train=train, seed=config.seed)
    contexts, keys = held_out(own, 512)
    shown = shown_to_transformer(task, contexts, keys)
    step = last_answer(contexts, plain_descent(1, rate), keys, "negative_squared_distance")

    @jax.jit
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
    chunk = make_chunk(own, num_steps, make_mesh(own, 1, jax.local_devices()[:1]))
    rows: dict[str, Any] = {}
    for place, (name, (network, pace)) in enumerate(starts.items()):
        paced = dataclasses.replace(train, learning_rate=pace * train.learning_rate)
        members, state = members_of(dataclasses.replace(own, train=paced)), init_state(own)
        if network is not None:
            params = jax.tree.map(lambda leaf: leaf[None], network.params)
            opt_state = jax.vmap(make_optimizer(train).init)(params)
            state = TrainState(params, opt_state, state.step)
        state = pack(state, leading=1)
        rows[name] = []
        for before, after in zip([0, *looks], looks, strict=False):
            if after > before:
                state, _ = chunk(members, state, after - before)
            packed = jax.tree.map(lambda leaf: leaf[0], state.params)
            params = unpack(packed, like=abstract_network(own)[1])
            values = judge(params, contexts, shown, step)
            if not all(map(np.isfinite, values.values())):
                break  # diverged: the rows end here
            rows[name].append({"step": after} | {key: float(v) for key, v in values.items()})
            progress((place + after / num_steps) / len(starts))
    best = None
    if loss.name == "plackett_luce":
        optimum = plackett_luce_optimum(contexts, loss.score)
        best = float(training_loss(loss, optimum, contexts))
    return {"optimum": best, "starts": rows}
