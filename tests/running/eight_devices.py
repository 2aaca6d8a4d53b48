"""Run by test_devices.py in a process of its own with eight devices; prints what it finds as JSON."""

import functools
import json
import sys

import jax
import numpy as np

from icl_align.config import ConfigError
from icl_align.running.compose import compose_config
from icl_align.running.crew import Crew
from icl_align.running.evaluation import by_configuration, compute_curves_together
from icl_align.running.measuring import Measuring
from icl_align.running.mesh import make_mesh
from icl_align.running.packing import pack
from icl_align.running.training import init_state, make_chunk, members_of
from runs import tiny

STEPS = 3
MOVING = ["train.learning_rate=1e-3", "train.warmup_fraction=0"]
TOGETHER = ["num_seeds=4", "train.batch_size=16", "task.num_responses=2"]
BIDIRECTIONAL = ["num_seeds=2", "model.causal=false", "task.num_responses=2"]
# Name -> (options, those of them that only several devices get, how many there are).
CASES = {
    "by themselves": (TOGETHER, [], 8),
    "seeds": (TOGETHER, ["devices.batch=1"], 8),
    "batch": (TOGETHER, ["devices.seeds=1"], 8),
    "one is idle": (TOGETHER, [], 5),
    "asked for": (TOGETHER, ["devices.seeds=2", "devices.batch=2", "devices.slice=2"], 8),
    "bidirectional": ([*BIDIRECTIONAL, "train.batch_size=8"], [], 8),
}
WRONG = {
    "seeds": ["num_seeds=3", "devices.seeds=2"],
    "batch": ["train.batch_size=9", "devices.batch=2"],
    "too many": ["num_seeds=16", "devices.seeds=16"],
    "too many together": ["num_seeds=4", "devices.seeds=4", "devices.batch=4"],
}


def trained(config, devices):
    mesh = make_mesh(config, config.num_seeds, devices)
    crew = Crew()
    crew.begin([config], mesh)
    metrics = crew.steps(STEPS)
    leaf = jax.tree.leaves(crew._state.params)[0]
    shares = sorted((s.index[0].start or 0, s.data.shape[0]) for s in leaf.addressable_shards)
    operations = crew.compiled().cost_analysis()["flops"]
    return crew.host_state(), metrics, dict(mesh.shape), shares, operations


def difference(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.max(np.abs(x - y))) for x, y in pairs)


@functools.cache
def on_one_device(*options):
    return trained(tiny(*MOVING, *options), jax.devices()[:1])


def compared(options, of_many, number):
    config = tiny(*MOVING, *options)
    alone, metrics_alone, _, _, operations_alone = on_one_device(*options)
    several = tiny(*MOVING, *options, *of_many)
    together, metrics, mesh, shares, operations = trained(several, jax.devices()[:number])
    return {
        "mesh": mesh,
        "shares": shares,
        "operations": operations / operations_alone,
        "params": difference(alone.params, together.params),
        "moved": difference(alone.params, init_state(config).params),
        "loss": difference(metrics_alone["train/loss"], metrics["train/loss"]),
        "grad_norm": difference(metrics_alone["train/grad_norm"], metrics["train/grad_norm"]),
        "steps": together.step.tolist(),
    }


def members_together():
    """Two members on each of 2 x 4 devices: one by one, and under a vmap, as accelerators do."""
    config = tiny(*MOVING, *TOGETHER)
    on_two = tiny("devices.seeds=2", *TOGETHER)
    mesh = make_mesh(on_two, 4, jax.devices())
    ends = []
    for one_by_one in (True, False):
        state = pack(init_state(config), leading=1)
        chunk = make_chunk(config, STEPS, mesh, one_by_one)
        state, metrics = chunk(members_of(config), state, STEPS)
        ends.append((jax.device_get(state.params), jax.device_get(metrics["train/loss"])))
    (params, losses), (params_together, losses_together) = ends
    return {
        "mesh": dict(mesh.shape),
        "params": difference(params, params_together),
        "loss": difference(losses, losses_together),
    }


def evaluated():
    """Curves on one device and on eight, of twenty contexts: fewer than what eight divide."""
    options = ["evaluation.num_contexts=20", "evaluation.batch_size=20", "num_seeds=2"]
    config = compose_config(["world=toy", *options])
    params = by_configuration([config], init_state(config).params)
    found = []
    for devices in (jax.devices()[:1], jax.devices()):
        measuring = Measuring(config, params, devices)
        found.append(compute_curves_together([config], 0, measuring)[0])
    one, eight = (curves["learners"] for curves in found)
    return {"size": measuring.fitting_size("trained"), "difference": difference(one, eight)}


def error_of(options):
    config = tiny(*options)
    try:
        make_mesh(config, config.num_seeds)
    except ConfigError as error:
        return str(error)


if __name__ == "__main__":
    found = {
        "devices": len(jax.devices()),
        "cases": {name: compared(*case) for name, case in CASES.items()},
        "evaluated": evaluated(),
        "members together": members_together(),
        "wrong": {name: error_of(options) for name, options in WRONG.items()},
    }
    json.dump(found, sys.stdout)
