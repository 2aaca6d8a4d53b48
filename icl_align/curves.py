"""Curves: learners x attempts x reward noise, with 95% intervals."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from jaxtyping import Array, Float, Int

from icl_align.config import LEARNERS, Config
from icl_align.contexts import evaluation_keys, sample_contexts, shown_to_transformer
from icl_align.learners import (
    best_attempt,
    gradient_descent,
    gradient_descent_steps,
    least_squares,
    optimality_gap,
    plackett_luce_optimum,
    weighted_average,
)
from icl_align.metrics import (
    QUANTITIES,
    Moments,
    agreement,
    mean_interval,
    merge,
    refinement_error,
    regret,
)
from icl_align.training import TrainState, transformer_learner

# An optimum whose loss still has a gradient above this norm counts as not converged.
CONVERGED_GAP = 1e-2
# Share of the free memory that one evaluation batch may take.
MEMORY_SHARE = 0.5


def make_evaluate_batch(config: Config) -> Callable[[Any, Int[Array, " b"], Float[Array, ""]], Any]:
    """A function (params, context numbers, reward noise) -> sums over that batch of contexts.

    The result holds, for each learner and quantity, the mean over the batch for each seed
    [s, n_plus_1] and the squared deviations of the seeds' mean [n_plus_1], and the number of
    contexts whose optimum has not converged.
    """
    transformer = transformer_learner(config)
    ranking = config.loss.name if config.loss.name == "bradley_terry" else "plackett_luce"
    score = config.loss.score

    def evaluate_batch(params, indices, reward_noise):
        keys = evaluation_keys(config.evaluation.seed, indices)
        contexts = sample_contexts(config.task, keys, reward_noise)
        shown = shown_to_transformer(config.task, contexts, keys)
        descent = gradient_descent(
            contexts,
            config.gradient_descent,
            keys,
            loss=ranking,
            score=score,
            steps=gradient_descent_steps(config.gradient_descent, reward_noise),
        )
        optimum = plackett_luce_optimum(contexts, score)
        predictions = {  # leading axis: seeds
            "transformer": jax.vmap(transformer, in_axes=(0, None))(params, shown),
            "gradient_descent": descent[None],
            "plackett_luce_optimum": optimum[None],
            "best_attempt": best_attempt(contexts)[None],
            "weighted_average": weighted_average(contexts)[None],
            "least_squares": least_squares(contexts)[None],
        }

        def judge(answers):  # of one seed
            return {
                "refinement_error": refinement_error(answers, contexts),
                "regret": regret(answers, optimum, contexts, score),
                "agreement": agreement(answers, descent),
            }

        sums = {
            name: jax.tree.map(_batch_moments, jax.vmap(judge)(predictions[name]))
            for name in LEARNERS
        }
        gap = jnp.max(optimality_gap(optimum, contexts, score), axis=-1)
        not_converged = jnp.sum(gap > CONVERGED_GAP)
        return sums, not_converged

    return evaluate_batch


def _batch_moments(
    values: Float[Array, "s b n_plus_1"],
) -> tuple[Float[Array, "s n_plus_1"], Float[Array, " n_plus_1"]]:
    over_seeds = jnp.mean(values, axis=0)
    centred = over_seeds - jnp.mean(over_seeds, axis=0)
    return jnp.mean(values, axis=1), jnp.sum(centred**2, axis=0)


def available_memory() -> int:
    """Bytes that the default device, or this machine for a CPU, can still give."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return psutil.virtual_memory().available


class _Compiled:
    """`evaluate_batch`, compiled for the largest batch that fits in memory."""

    def __init__(self, config: Config, params: Any):
        self._function = jax.jit(make_evaluate_batch(config))
        self._params = params
        self._programs: dict[int, Any] = {}
        self.size = min(config.evaluation.batch_size, config.evaluation.num_contexts)
        while self.size > 1:
            analysis = self._program(self.size).memory_analysis()
            needed = analysis.temp_size_in_bytes if analysis else 0
            budget = MEMORY_SHARE * available_memory()
            if needed <= budget:
                break
            # Memory grows with the batch: go straight to the size that should fit.
            self.size = max(1, min(self.size // 2, int(self.size * budget / needed)))

    def _program(self, size: int):
        if size not in self._programs:
            indices, noise = jnp.zeros(size, jnp.int32), jnp.zeros(())
            # Accelerators round matrix products by default: too coarse for a regret.
            with jax.default_matmul_precision("highest"):
                lowered = self._function.lower(self._params, indices, noise)
            self._programs[size] = lowered.compile()
        return self._programs[size]

    def __call__(self, start: int, size: int, reward_noise: float):
        indices = start + jnp.arange(size, dtype=jnp.int32)
        return jax.device_get(
            self._program(size)(self._params, indices, jnp.asarray(reward_noise, jnp.float32))
        )


def compute_curves(
    config: Config, state: TrainState, progress: Callable[[float], None] = lambda fraction: None
) -> dict[str, Any]:
    """Curves of every learner at every reward-noise level, as `curves.json` holds them.

    The contexts are cut into batches of at most `evaluation.batch_size`, halved until one fits in
    memory; the numbers do not depend on the cut beyond rounding.

    Args:
      config: options; the task, loss and evaluation sections say what is evaluated.
      state: training state of all seeds, leading axis s.
      progress: called with the share that is done, in [0, 1].

    Returns:
      `{"attempts": [0..N], "learners": {NAME: {NOISE: {QUANTITY: {"mean", "low", "high"}}}}, ...}`;
      the transformer's quantities also hold "by_seed", one list for each of "seeds".
    """
    compiled = _Compiled(config, state.params)
    total, levels = config.evaluation.num_contexts, config.evaluation.reward_noise
    curves: dict[str, Any] = {
        "attempts": list(range(config.task.num_responses + 1)),
        "learners": {name: {} for name in LEARNERS},
        "step": int(np.asarray(state.step)[0]),
        "seeds": [config.seed + index for index in range(config.num_seeds)],
        "num_contexts": total,
        "confidence": 0.95,
        "options": _options(config),
        "optimum_not_converged": {},
    }
    for place, noise in enumerate(levels):
        moments: dict[tuple[str, str], Moments] = {}
        not_converged, start = 0, 0
        while start < total:
            size = min(compiled.size, total - start)
            try:
                results, gaps = compiled(start, size, noise)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error) or compiled.size == 1:
                    raise
                compiled.size = compiled.size // 2
                continue
            not_converged += int(gaps)
            for name in LEARNERS:
                for quantity in QUANTITIES:
                    means, squares = results[name][quantity]
                    new = Moments(size, means.astype(np.float64), squares.astype(np.float64))
                    old = moments.get((name, quantity))
                    moments[name, quantity] = merge(old, new) if old else new
            start += size
            progress((place + start / total) / len(levels))
        label = str(float(noise))
        curves["optimum_not_converged"][label] = not_converged / total
        for name in LEARNERS:
            curves["learners"][name][label] = {
                quantity: _interval(moments[name, quantity], name == "transformer")
                for quantity in QUANTITIES
            }
    return curves


def _options(config: Config) -> dict[str, Any]:
    sections = ("task", "evaluation", "gradient_descent")
    return {name: dataclasses.asdict(getattr(config, name)) for name in sections}


def is_final(config: Config, curves: dict[str, Any]) -> bool:
    """Whether curves are of the finished run, with this configuration's evaluation options."""
    return curves["step"] == config.train.steps and curves["options"] == _options(config)


def _interval(moments: Moments, by_seed: bool) -> dict[str, Any]:
    mean, low, high = mean_interval(moments)
    curve = {"mean": mean.tolist(), "low": low.tolist(), "high": high.tolist()}
    return curve | ({"by_seed": moments.seed_means.tolist()} if by_seed else {})
