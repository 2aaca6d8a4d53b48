"""The descent that trained and constructed networks are compared with, on contexts held out."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from icl_align.alignment.contexts import Context, sample_contexts
from icl_align.alignment.learners import gradient_descent, gradient_descent_steps
from icl_align.alignment.losses import cosine_similarity
from icl_align.alignment.options import GradientDescentConfig, Options
from icl_align.running.keys import evaluation_keys


def first_attempts(contexts: Context, n: int) -> Context:
    """The contexts cut after n attempts."""
    return contexts._replace(
        responses=contexts.responses[..., :n, :], rewards=contexts.rewards[..., :n]
    )


def plain_descent(num_steps: int, learning_rate: float) -> GradientDescentConfig:
    """The theory's descent: from W = 0, without momentum."""
    return GradientDescentConfig("sgd", learning_rate, num_steps, num_steps, "zero")


def last_answer(
    contexts: Context, options: GradientDescentConfig, keys: Any, score: str
) -> Float[Array, "b d"]:
    """Gradient descent's answer after all attempts."""
    last = jnp.array([contexts.rewards.shape[-1]])
    return gradient_descent(contexts, options, keys, score=score, attempts=last)[..., 0, :]


def published_descent(config: Options) -> GradientDescentConfig:
    """The run's `gradient_descent`, with the steps that its reward noise asks for."""
    steps = int(gradient_descent_steps(config.gradient_descent, config.task.reward_noise))
    return dataclasses.replace(config.gradient_descent, steps=steps)


def tuned_learning_rate(config: Options, num_steps: int) -> float:
    """The step size with which k plain steps come closest to the published descent, by cosine.

    Out of 16 between 0.001 and 1, on contexts apart from those of the comparison.
    """
    contexts, keys = held_out(config, 256, start=10**6)
    target = last_answer(contexts, published_descent(config), keys, config.loss.score)

    @jax.jit  # the contexts are arguments, as constants they would be folded for seconds
    def agreement(rate, contexts, keys, target):
        descent = dataclasses.replace(plain_descent(num_steps, 1.0), learning_rate=rate)
        answer = last_answer(contexts, descent, keys, "negative_squared_distance")
        # A rate at which descent diverges is no candidate.
        cosines = cosine_similarity(answer, target)
        return jnp.mean(jnp.where(jnp.isfinite(cosines), cosines, -1.0))

    rates = np.geomspace(1e-3, 1.0, 16)
    return float(rates[np.argmax([agreement(rate, contexts, keys, target) for rate in rates])])


def held_out(config: Options, count: int, start: int = 0) -> tuple[Context, Any]:
    """Evaluation contexts number `start` on, and their keys."""
    keys = evaluation_keys(config.evaluation.seed, start + jnp.arange(count, dtype=jnp.int32))
    return jax.jit(lambda keys: sample_contexts(config.task, keys))(keys), keys
