"""The learners that need no training, attempt by attempt."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from icl_align.alignment.learners import (
    best_attempt,
    descent_of,
    least_squares,
    weighted_average,
)
from icl_align.alignment.optimum import plackett_luce_optimum
from icl_align.alignment.options import LEARNERS, Options
from icl_align.alignment.rounds.roll_out import InSteps, in_steps, transformer_in_steps
from icl_align.alignment.theory.assembly import as_module
from icl_align.alignment.theory.construction import plackett_luce_network
from icl_align.config import implemented

CONSTRUCTED = {"constructed_1": 1, "constructed_4": 4}  # name -> its steps of gradient descent
CONSTRUCTED_RATE = 0.1  # for a query of norm 1; the networks do not know the norm
MEASURED = (*LEARNERS, *CONSTRUCTED)

Keys = Key[Array, " b"]


def _descent(config: Options, keys: Keys) -> InSteps:
    noise = config.task.reward_noise
    return in_steps(
        lambda contexts, n: descent_of(config, contexts, keys, noise, jnp.asarray(n)[None])[:, 0]
    )


def _optimum(config: Options, keys: Keys) -> InSteps:
    return in_steps(
        lambda contexts, n: plackett_luce_optimum(
            contexts, config.loss.score, attempts=jnp.asarray(n)[None]
        )[:, 0]
    )


def _of_rows(learner: Callable) -> Callable[[Options, Keys], InSteps]:
    return lambda config, keys: in_steps(lambda contexts, n: learner(contexts)[:, n])


def _constructed(steps: int) -> Callable[[Options, Keys], InSteps]:
    def made(config, keys):
        zero = np.zeros((config.task.dim, config.task.dim))
        attempts = config.own_rounds.given_attempts + config.evaluation.own_rounds
        network = plackett_luce_network(zero, CONSTRUCTED_RATE, max(attempts, 2), steps)
        return transformer_in_steps(as_module(network))

    return made


# Learner -> (options, keys of its contexts) -> itself, attempt by attempt.
WITHOUT_TRAINING: dict[str, Callable[[Options, Keys], InSteps]] = implemented(
    MEASURED[1:],
    {
        "gradient_descent": _descent,
        "plackett_luce_optimum": _optimum,
        "best_attempt": _of_rows(best_attempt),
        "weighted_average": _of_rows(weighted_average),
        "least_squares": _of_rows(least_squares),
        **{name: _constructed(steps) for name, steps in CONSTRUCTED.items()},
    },
)
