"""How exactly the networks built by hand take the gradient step, and where that ends.

The reference is `jax.grad` of the project's loss with respect to the policy W, in float64
throughout. The error is ||y_network - y_reference|| / ||y_reference|| of the updated prediction.

Inside its limits a network for one query is exact to rounding (largest error 2e-15 in float64 and
6e-7 in float32), one for several queries to 1e-12 and 2e-5. The limits, as `limits` measures them
for d = 5 and N = 6:

    rewards     exact from a gap of 7e-7 on, wrong from 3e-7 down (half of `smallest_gap`, 1e-6,
                decides); exact in [0, 2], wrong in [0, 3]; a tie is picked as one, which is not
                what the loss does with it
    scores      exact while those of two attempts differ by less than 1e6 (`score_range`): normal
                responses scaled by 500 are exact, by 1000 wrong
    query norm  one query: only the norm the network was built for (1.1 instead of 1: an error of
                0.1). Several: norms from 0.03 to 1 times the bound; 0.01 times and 1.5 times give
                2e-4 in float32
    step sizes  none found: 10 steps of size 1, far too large to settle, give 2e-12 and 7e-6
    cancelling  several queries in float32 exceed 1e-4 where the prediction is much smaller than its
                terms: up to 1e-3 in 200 problems with d = 1, N = 2, Q = 4 and 6 steps
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from icl_align.alignment.contexts import Context
from icl_align.alignment.losses import plackett_luce, response_scores
from icl_align.alignment.theory.assembly import Network, compile_quickly, run_last_row
from icl_align.alignment.theory.construction import (
    SHARP,
    Sharpness,
    bradley_terry_network,
    plackett_luce_network,
    several_queries_network,
)
from icl_align.alignment.theory.parallel import in_parallel

DTYPES = ("float64", "float32")


class Problem(NamedTuple):
    """A policy to start from, the attempts at Q queries, a fresh query, and how to descend."""

    policy: Float[np.ndarray, "d d"]
    queries: Float[np.ndarray, "q d"]
    responses: Float[np.ndarray, "q n d"]
    rewards: Float[np.ndarray, "q n"]
    fresh: Float[np.ndarray, " d"]
    learning_rate: float
    num_steps: int


def random_problem(
    rng: np.random.Generator,
    dim: int,
    num_responses: int,
    num_steps: int = 1,
    num_queries: int | None = None,
) -> Problem:
    """A generic problem: normal policies and responses, uniform rewards, a random step size.

    Without `num_queries` there is one query, of norm 1, and it is the fresh one too; with it,
    queries are N(0, I). Rewards differ by at least 1e-4 within a query. The step size is
    log-uniform between 0.001 and 0.1, over N^(1/2) and the number of queries.
    """
    shape = (num_queries or 1, num_responses)
    queries = rng.normal(size=(shape[0], dim))
    fresh = rng.normal(size=dim)
    if num_queries is None:
        queries /= np.linalg.norm(queries)
        fresh = queries[0]
    spacing = 1e-4
    room = 1 - spacing * (num_responses - 1)
    sorted_rewards = np.sort(room * rng.random(shape), axis=-1)
    rewards = rng.permuted(sorted_rewards + spacing * np.arange(num_responses), axis=-1)
    learning_rate = 10 ** rng.uniform(-3, -1) / np.sqrt(num_responses) / shape[0]
    return Problem(
        policy=rng.normal(size=(dim, dim)) / np.sqrt(dim),
        queries=queries,
        responses=rng.normal(size=(*shape, dim)),
        rewards=rewards,
        fresh=fresh,
        learning_rate=float(learning_rate),
        num_steps=num_steps,
    )


def policy_descent(
    policy: Float[Array, "d d"],
    queries: Float[Array, "q d"],
    responses: Float[Array, "q n d"],
    rewards: Float[Array, "q n"],
    learning_rate: Float[Array, ""] | float,
    num_steps: Int[Array, ""] | int,
) -> Float[Array, "d d"]:
    """The policy after k steps of descent on the summed Plackett-Luce losses of Q queries."""

    def loss(policy):
        predictions = (queries @ policy.T)[:, None]
        scores = response_scores("negative_squared_distance", predictions, responses)[:, 0]
        return jnp.sum(plackett_luce(scores, rewards))

    def step(_, policy):
        return policy - learning_rate * jax.grad(loss)(policy)

    return jax.lax.fori_loop(0, num_steps, step, policy)


_descent = jax.jit(policy_descent)


def reference(problem: Problem) -> Float[np.ndarray, " d"]:
    """The updated prediction at the fresh query by `jax.grad`, in float64."""
    with jax.enable_x64(True):
        policy = _descent(*problem[:4], problem.learning_rate, problem.num_steps)
        return np.asarray(policy) @ problem.fresh


def network_for(problem: Problem, dtype: Any, sharpness: Sharpness = SHARP) -> Network:
    """The smallest network of the family that solves the problem."""
    num_queries, num_responses, _ = problem.responses.shape
    options = dict(num_steps=problem.num_steps, sharpness=sharpness, dtype=dtype)
    policy, rate = problem.policy, problem.learning_rate
    if num_queries > 1 or not np.array_equal(problem.queries[0], problem.fresh):
        largest = np.linalg.norm([*problem.queries, problem.fresh], axis=-1).max()
        return several_queries_network(
            policy, rate, num_queries, num_responses, largest_query_norm=float(largest), **options
        )
    options["query_norm"] = float(np.linalg.norm(problem.fresh))
    if num_responses == 2:
        return bradley_terry_network(policy, rate, **options)
    return plackett_luce_network(policy, rate, num_responses, **options)


def as_context(problem: Problem, dtype: Any) -> tuple[Context, Float[Array, "n d"]]:
    """The problem as the transformer reads it: a context, and the query of each attempt."""
    num_responses, d = problem.responses.shape[1:]
    arrays = problem.fresh, problem.responses.reshape(-1, d), problem.rewards.reshape(-1)
    context = Context(*(jnp.asarray(array, dtype) for array in (*arrays, problem.fresh)))
    return context, jnp.asarray(np.repeat(problem.queries, num_responses, axis=0), dtype)


def relative_errors(
    problems: list[Problem],
    dtype: str,
    build: Callable[[Problem, Any], Network] = network_for,
) -> Float[np.ndarray, " p"]:
    """Error of the network of each problem; the problems have one shape and make one program."""
    with jax.enable_x64(dtype == "float64"):
        networks = [build(problem, dtype) for problem in problems]
        params = jax.tree.map(lambda *leaves: np.stack(leaves), *(n.params for n in networks))
        contexts = jax.tree.map(
            lambda *leaves: jnp.stack(leaves), *(as_context(p, dtype) for p in problems)
        )

        def answer(params, context_and_queries):
            return run_last_row(Network(networks[0].config, params), *context_and_queries)

        answers = compile_quickly(jax.vmap(answer))(params, contexts)
    truth = np.stack([reference(problem) for problem in problems])
    error = np.linalg.norm(np.asarray(answers, np.float64) - truth, axis=-1)
    return error / np.linalg.norm(truth, axis=-1)


# ----------------------------------------------------------------------------------- the table

# Dimension, attempts, steps, queries (None: one query of norm 1, which is also the fresh one).
CASES = (
    (1, 2, 1, None),
    (16, 2, 10, None),
    (1, 20, 1, None),
    (5, 20, 1, None),
    (16, 20, 1, None),
    (5, 8, 3, None),
    (16, 3, 10, None),
    (5, 6, 1, 1),
    (5, 4, 1, 3),
    (16, 6, 2, 2),
    (5, 2, 10, 4),
)


def exactness_table(
    seed: int, num_problems: int, progress: Callable[[float], None] = lambda fraction: None
) -> list[dict[str, Any]]:
    """One row for each of `CASES`: the network's size, and its largest and median errors.

    Args:
      seed: of the problems.
      num_problems: random problems for each case, each with a policy and a step size of its own.
      progress: called with the share that is done, in [0, 1].
    """

    def row_of(number):
        dim, num_responses, num_steps, num_queries = CASES[number]
        rng = np.random.default_rng([seed, number])
        problems = [
            random_problem(rng, dim, num_responses, num_steps, num_queries)
            for _ in range(num_problems)
        ]
        model = network_for(problems[0], "float32").config.model
        bradley_terry = num_responses == 2 and num_queries is None
        row = {
            "loss": "Bradley-Terry" if bradley_terry else "Plackett-Luce",
            "queries": num_queries or 1,
            "any_norm": num_queries is not None,
            "attempts": num_responses,
            "dim": dim,
            "steps": num_steps,
            "blocks": model.num_layers,
            "heads": model.num_heads,
            "mlp_width": (model.mlp_width or 0) if model.mlp else 0,
            "width": model.width,
            "paper_blocks": None if num_queries else num_steps * (num_responses - 1),
            "paper_heads": None if num_queries else 2 if bradley_terry else 3,
        }
        for dtype in DTYPES:
            errors = relative_errors(problems, dtype)
            row[dtype] = {"largest": float(errors.max()), "median": float(np.median(errors))}
        return row

    return in_parallel(row_of, range(len(CASES)), progress)


# ---------------------------------------------------------------------------------- the limits

REWARD_GAPS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 3e-6, 1e-6, 7e-7, 3e-7, 1e-7, 0.0)
REWARD_RANGES = (0.5, 1.0, 1.5, 2.0, 3.0, 10.0)
RESPONSE_SCALES = (1.0, 10.0, 30.0, 100.0, 200.0, 500.0, 1e3, 1e4)
QUERY_NORMS = (0.01, 0.03, 0.1, 0.3, 0.5, 0.9, 1.0, 1.1, 1.5, 2.0)
STEP_SIZES = (1e-3, 1e-2, 3e-2, 0.1, 0.2, 0.3, 0.5, 1.0)


def limits(
    seed: int, num_problems: int, progress: Callable[[float], None] = lambda fraction: None
) -> dict[str, dict[str, list[float]]]:
    """Where exactness ends: quantity -> "values" and, for each dtype, the largest errors there.

    All for d = 5 and N = 6. The reward gap is that of the two best attempts; responses are scaled
    together; queries of another norm than 1 go into the network built for 1, and (as "query norm,
    several queries") into that for several queries of norms up to 1; step sizes are of 10 steps, at
    the end of which descent itself no longer settles.
    """

    def problems(num_steps=1):
        rng = np.random.default_rng([seed, 10**6])
        return [random_problem(rng, 5, 6, num_steps) for _ in range(num_problems)]

    def with_gap(problem, gap):
        best, second = np.argsort(-problem.rewards[0])[:2]
        rewards = np.array(problem.rewards) / 2
        # Rewards that float32 holds exactly, so that the gap is the same in both.
        rewards[0, second] = 0.75
        rewards[0, best] = 0.75 + gap
        return problem._replace(rewards=rewards.astype(np.float32).astype(np.float64))

    def with_range(problem, largest):
        return problem._replace(rewards=largest * problem.rewards)

    def with_scale(problem, scale):
        return problem._replace(responses=scale * problem.responses, learning_rate=0.01)

    def with_norm(problem, norm):
        return problem._replace(queries=norm * problem.queries, fresh=norm * problem.fresh)

    def with_step(problem, size):
        return problem._replace(learning_rate=size)

    def for_norm_one(problem, dtype):
        unit = with_norm(problem, 1 / np.linalg.norm(problem.fresh))
        return network_for(unit, dtype)

    def for_norms_up_to_one(problem, dtype):
        return several_queries_network(
            problem.policy, problem.learning_rate, 1, 6, largest_query_norm=1.0, dtype=dtype
        )

    single, ten_steps = problems(), problems(num_steps=10)
    sweeps = {
        "reward gap": (REWARD_GAPS, single, with_gap, network_for),
        "range of the rewards": (REWARD_RANGES, single, with_range, network_for),
        "scale of the responses": (RESPONSE_SCALES, single, with_scale, network_for),
        "query norm": (QUERY_NORMS, single, with_norm, for_norm_one),
        "query norm, several queries": (QUERY_NORMS, single, with_norm, for_norms_up_to_one),
        "step size, 10 steps": (STEP_SIZES, ten_steps, with_step, network_for),
    }

    def errors_of(sweep):
        values, base, change, build = sweep
        result = {"values": list(values)}
        for dtype in DTYPES:
            changed = [change(problem, value) for value in values for problem in base]
            errors = relative_errors(changed, dtype, build).reshape(len(values), -1)
            result[dtype] = errors.max(axis=1).tolist()
        return result

    return dict(zip(sweeps, in_parallel(errors_of, list(sweeps.values()), progress), strict=True))
