"""Whether the constructed network is what training finds.

Compares the transformers of a finished run with the gradient step, on contexts that no training
has seen: what they answer, how their answers depend on the responses, what their layers hold, what
their heads attend to, and whether training stays with the construction when it starts there.

Only directions are compared, as the cosine loss leaves the norm of an answer free. The constructed
network starts at the policy W = 0, where the direction of one step depends neither on the step size
nor on the norm of the query.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from icl_align.alignment.contexts import Context, shown_to_transformer
from icl_align.alignment.learners import (
    best_attempt,
    least_squares,
    weighted_average,
)
from icl_align.alignment.losses import cosine_similarity, normalize
from icl_align.alignment.optimum import plackett_luce_optimum
from icl_align.alignment.options import Options
from icl_align.alignment.theory.assembly import Network, run_last_row
from icl_align.alignment.theory.construction import constructed_step
from icl_align.alignment.theory.continued import training_from_the_construction
from icl_align.alignment.theory.descent import (
    first_attempts,
    held_out,
    last_answer,
    plain_descent,
    published_descent,
    tuned_learning_rate,
)
from icl_align.alignment.theory.inside import attention_maps, picks_by_rank, probes
from icl_align.running.training import TrainState, init_state

# A learner here: contexts [b] and their keys -> the answers after all of their attempts [b, d].
Answer = Callable[[Context, Any], Float[Array, "b d"]]

ATTEMPTS = (2, 5, 10, 20)  # numbers of attempts at which answers are compared
TRANSFORMS: dict[str, Callable[[Array], Array]] = {
    "r^3": lambda r: r**3,
    "sqrt r": jnp.sqrt,
    "1 - (1 - r)^3": lambda r: 1 - (1 - r) ** 3,
    "1 - r": lambda r: 1 - r,  # the control: it turns the ranking round, and must move a ranker
}


def learners(config: Options, params: Any, untrained: Any) -> dict[str, Answer]:
    """Name -> learner; one transformer for each seed of the run.

    Args:
      config: the run's.
      params: trained parameters, leading axis of seeds.
      untrained: the same before training.
    """
    step = constructed_step(config)
    rate, published = tuned_learning_rate(config, 32), published_descent(config)

    def transformer(params, contexts, keys):
        network = Network(config, params)
        return run_last_row(network, shown_to_transformer(config.task, contexts, keys))

    def of_seed(params, seed):
        one = jax.tree.map(lambda leaf: leaf[seed], params)
        return lambda contexts, keys: transformer(one, contexts, keys)

    def after_all(learner):
        return lambda contexts, keys: learner(contexts)[..., -1, :]

    def descent(contexts, keys):
        return last_answer(contexts, published, keys, config.loss.score)

    def plain(contexts, keys):
        return last_answer(contexts, plain_descent(32, rate), keys, "negative_squared_distance")

    number = len(jax.tree.leaves(params)[0])
    return {
        **{f"transformer, seed {config.seed + s}": of_seed(params, s) for s in range(number)},
        "untrained": of_seed(untrained, 0),
        "constructed, 1 step": lambda contexts, keys: run_last_row(step, contexts),
        "plain descent, 32 steps": plain,
        "gradient_descent": descent,
        "plackett_luce_optimum": after_all(
            functools.partial(plackett_luce_optimum, score=config.loss.score)
        ),
        "best_attempt": after_all(best_attempt),
        "weighted_average": after_all(weighted_average),
        "least_squares": after_all(least_squares),
    }


def mean_with_interval(values: Float[Array | np.ndarray, " b"]) -> dict[str, float]:
    """Mean over contexts, and half the width of its 95% interval."""
    values = np.asarray(values, np.float64)
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    return {"mean": float(values.mean()), "half_width": float(half)}


def agreement_of_answers(
    answers: dict[str, Answer], config: Options, num_contexts: int
) -> dict[int, dict[str, dict[str, dict[str, float]]]]:
    """Attempts -> learner -> learner -> mean cosine of their answers, in [-1, 1]."""
    contexts, keys = held_out(config, num_contexts)
    table = {}
    for n in sorted({min(n, config.task.num_responses) for n in ATTEMPTS}):
        cut = first_attempts(contexts, n)
        given = {name: jax.jit(answer)(cut, keys) for name, answer in answers.items()}
        table[n] = {
            one: {
                other: mean_with_interval(cosine_similarity(given[one], given[other]))
                for other in given
            }
            for one in given
        }
    return table


def sensitivity(answer: Answer, contexts: Context, keys: Any) -> Float[Array, "b d n d"]:
    """The Jacobian of the answer's direction with respect to the responses."""

    def direction(responses):
        return normalize(answer(contexts._replace(responses=responses), keys))

    directions, pull_back = jax.vjp(direction, contexts.responses)
    d = directions.shape[-1]
    # Contexts do not mix, so one pull-back serves the same entry of all of them.
    rows = [pull_back(jnp.zeros_like(directions).at[:, entry].set(1.0))[0] for entry in range(d)]
    return jnp.stack(rows, axis=1)


def agreement_of_sensitivities(
    answers: dict[str, Answer], config: Options, num_contexts: int, num_attempts: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Learner -> learner -> mean cosine of their Jacobians d direction / d responses."""
    contexts, keys = held_out(config, num_contexts)
    contexts = first_attempts(contexts, num_attempts)
    flat = {
        name: jax.jit(lambda c, k, answer=answer: sensitivity(answer, c, k))(contexts, keys)
        for name, answer in answers.items()
        if name != "plackett_luce_optimum"  # its search is a loop without a reverse derivative
    }
    flat = {name: jacobian.reshape(len(jacobian), -1) for name, jacobian in flat.items()}
    return {
        one: {
            other: mean_with_interval(cosine_similarity(flat[one], flat[other])) for other in flat
        }
        for one in flat
    }


def reaction_to_transforms(
    answers: dict[str, Answer], config: Options, num_contexts: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Learner -> transform -> 1 - cosine of the answers to rewards r and f(r); 0 for a ranker."""
    contexts, keys = held_out(config, num_contexts)

    def moved(answer, transform):
        changed = contexts._replace(rewards=transform(contexts.rewards))
        given = jax.jit(answer)
        return 1 - cosine_similarity(given(contexts, keys), given(changed, keys))

    return {
        name: {
            label: mean_with_interval(moved(answer, transform))
            for label, transform in TRANSFORMS.items()
        }
        for name, answer in answers.items()
    }


def compare(
    config: Options,
    state: TrainState,
    num_contexts: int,
    progress: Callable[[float], None] = lambda fraction: None,
) -> dict[str, Any]:
    """Everything above, for a finished run; plain lists and numbers, as JSON holds them."""
    untrained = init_state(config).params
    answers = learners(config, state.params, untrained)
    n = config.task.num_responses
    results: dict[str, Any] = {"num_contexts": num_contexts, "seeds": config.num_seeds}
    results["agreement"] = agreement_of_answers(answers, config, num_contexts)
    progress(0.15)
    results["sensitivity"] = agreement_of_sensitivities(
        answers, config, min(num_contexts, 256), min(n, 10)
    )
    progress(0.3)
    results["transforms"] = reaction_to_transforms(answers, config, num_contexts)
    progress(0.35)
    results["probes"] = probes(config, state.params, untrained, 4 * num_contexts)
    progress(0.45)
    results["attention"] = attention_maps(config, state.params, untrained, num_contexts)
    results["picks"] = {
        name: np.mean(picks_by_rank(np.asarray(maps)), axis=0).tolist()
        for name, maps in results["attention"].items()
    }
    progress(0.5)
    results["training"] = training_from_the_construction(
        config, min(n, 6), config.train.steps, lambda share: progress(0.5 + share / 2)
    )
    return results
