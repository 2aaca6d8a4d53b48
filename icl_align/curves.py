"""Curves: learners x attempts x reward noise, with 95% intervals."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from jaxtyping import Array, Float, Int, Key

from icl_align.config import LEARNERS, Config
from icl_align.contexts import (
    evaluation_key,
    numbered_keys,
    sample_contexts,
    shown_to_transformer,
)
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


def make_evaluate_batch(
    config: Config,
) -> Callable[[Any, Key[Array, ""], Int[Array, " b"], Float[Array, ""]], Any]:
    """A function (params, key, context numbers, reward noise) -> sums over that batch of contexts.

    The parameters have leading axes [c, s], configurations and seeds. The result holds, for each
    learner and quantity, the mean over the batch for each network [c, s, n_plus_1] and the squared
    deviations of the seeds' mean [c, n_plus_1] (c = s = 1 for a learner that is not trained), and
    the number of contexts whose optimum has not converged.
    """
    transformer = transformer_learner(config)
    ranking = config.loss.name if config.loss.name == "bradley_terry" else "plackett_luce"
    score = config.loss.score

    def evaluate_batch(params, key, indices, reward_noise):
        keys = numbered_keys(key, indices)
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
        trained = jax.vmap(jax.vmap(lambda one: transformer(one, shown)))(params)
        predictions = {"transformer": trained} | {  # leading axes: configurations, seeds
            name: answers[None, None]
            for name, answers in {
                "gradient_descent": descent,
                "plackett_luce_optimum": optimum,
                "best_attempt": best_attempt(contexts),
                "weighted_average": weighted_average(contexts),
                "least_squares": least_squares(contexts),
            }.items()
        }

        def judge(answers):  # of one network
            return {
                "refinement_error": refinement_error(answers, contexts),
                "regret": regret(answers, optimum, contexts, score),
                "agreement": agreement(answers, descent),
            }

        sums = {
            name: jax.tree.map(_batch_moments, jax.vmap(jax.vmap(judge))(predictions[name]))
            for name in LEARNERS
        }
        gap = jnp.max(optimality_gap(optimum, contexts, score), axis=-1)
        not_converged = jnp.sum(gap > CONVERGED_GAP)
        return sums, not_converged

    return evaluate_batch


def _batch_moments(
    values: Float[Array, "c s b n_plus_1"],
) -> tuple[Float[Array, "c s n_plus_1"], Float[Array, "c n_plus_1"]]:
    over_seeds = jnp.mean(values, axis=1)
    centred = over_seeds - jnp.mean(over_seeds, axis=1, keepdims=True)
    return jnp.mean(values, axis=2), jnp.sum(centred**2, axis=1)


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
        self._example = params, evaluation_key(config.evaluation.seed)
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
                lowered = self._function.lower(*self._example, indices, noise)
            self._programs[size] = lowered.compile()
        return self._programs[size]

    def __call__(self, params: Any, key: Any, start: int, size: int, reward_noise: float):
        indices = start + jnp.arange(size, dtype=jnp.int32)
        noise = jnp.asarray(reward_noise, jnp.float32)
        return jax.device_get(self._program(size)(params, key, indices, noise))


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
      the transformer's quantities also hold "by_seed", one list for each of "seeds", and so do
      those of all learners if every seed has contexts of its own.
    """
    return compute_curves_together([config], state, progress)[0]


def compute_curves_together(
    configs: list[Config],
    state: TrainState,
    progress: Callable[[float], None] = lambda fraction: None,
) -> list[dict[str, Any]]:
    """`compute_curves` of several configurations, whose untrained learners are run only once.

    Args:
      configs: equal but for the numbers in `config.TRACED`.
      state: training state of all of them: the seeds of the first, of the second, ...
      progress: called with the share that is done, in [0, 1].
    """
    config = configs[0]
    total, levels = config.evaluation.num_contexts, config.evaluation.reward_noise
    seeds = [config.seed + index for index in range(config.num_seeds)]
    shape = (len(configs), len(seeds))
    params = jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), state.params)
    if config.evaluation.own_contexts:
        keys = [evaluation_key(config.evaluation.seed, seed) for seed in seeds]
        samples = [
            (jax.tree.map(lambda leaf, i=i: leaf[:, i : i + 1], params), key)
            for i, key in enumerate(keys)
        ]
    else:
        samples = [(params, evaluation_key(config.evaluation.seed))]
    compiled = _Compiled(config, samples[0][0])
    found = [
        {
            "attempts": list(range(config.task.num_responses + 1)),
            "learners": {name: {} for name in LEARNERS},
            "step": int(np.asarray(state.step)[0]),
            "seeds": seeds,
            "num_contexts": total,
            "confidence": 0.95,
            "options": _options(one),
            "optimum_not_converged": {},
        }
        for one in configs
    ]
    work, done = len(levels) * len(samples) * total, 0
    for noise in levels:
        label, not_converged = str(float(noise)), 0
        parts: list[dict[tuple[str, str], list[Moments]]] = []
        for own_params, key in samples:
            moments: dict[tuple[str, str], list[Moments]] = {}
            start = 0
            while start < total:
                size = min(compiled.size, total - start)
                try:
                    results, gaps = compiled(own_params, key, start, size, noise)
                except jax.errors.JaxRuntimeError as error:
                    if "RESOURCE_EXHAUSTED" not in str(error) or compiled.size == 1:
                        raise
                    compiled.size = compiled.size // 2
                    continue
                not_converged += int(gaps)
                for name in LEARNERS:
                    for quantity in QUANTITIES:
                        new = _moments(size, *results[name][quantity])
                        old = moments.get((name, quantity))
                        if old:
                            new = [merge(a, b) for a, b in zip(old, new, strict=True)]
                        moments[name, quantity] = new
                start, done = start + size, done + size
                progress(done / work)
            parts.append(moments)
        for place, curves in enumerate(found):
            curves["optimum_not_converged"][label] = not_converged / (total * len(samples))
            for name in LEARNERS:
                by_seed = name == "transformer" or len(samples) > 1
                curves["learners"][name][label] = {
                    quantity: _interval(
                        [part[name, quantity][place % len(part[name, quantity])] for part in parts],
                        by_seed,
                    )
                    for quantity in QUANTITIES
                }
    return found


def _options(config: Config) -> dict[str, Any]:
    sections = ("task", "evaluation", "gradient_descent")
    return {name: dataclasses.asdict(getattr(config, name)) for name in sections}


def is_final(config: Config, curves: dict[str, Any]) -> bool:
    """Whether curves are of the finished run, with this configuration's evaluation options."""
    return curves["step"] == config.train.steps and curves["options"] == _options(config)


def _moments(
    size: int, means: Float[np.ndarray, "c s n"], squares: Float[np.ndarray, "c n"]
) -> list[Moments]:
    """The moments of each configuration."""
    return [
        Moments(float(size), np.float64(mean), np.float64(square))
        for mean, square in zip(means, squares, strict=True)
    ]


def _interval(samples: list[Moments], by_seed: bool) -> dict[str, Any]:
    """A curve from the samples of contexts: one of all seeds, or one of each seed."""
    moments = samples[0]
    if len(samples) > 1:  # contexts nested in seeds: the seeds' spread holds both
        means = np.concatenate([sample.seed_means for sample in samples])
        moments = Moments(moments.count, means, np.zeros_like(moments.context_squares))
    mean, low, high = mean_interval(moments)
    curve = {"mean": mean.tolist(), "low": low.tolist(), "high": high.tolist()}
    return curve | ({"by_seed": moments.seed_means.tolist()} if by_seed else {})
