"""How exactly the networks built by hand take the gradient step, and where that ends.

The reference is `jax.grad` of the project's loss with respect to the policy W, in float64 throughout.
The error is ||y_network - y_reference|| / ||y_reference|| of the updated prediction.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from icl_align.contexts import Context
from icl_align.losses import plackett_luce, response_scores
from icl_align.theory.assembly import Network, run
from icl_align.theory.construction import (
    SHARP,
    Sharpness,
    bradley_terry_network,
    plackett_luce_network,
    several_queries_network,
)

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

    Without `num_queries` there is one query, of norm 1, and it is the fresh one too; with it, queries
    are N(0, I). Rewards differ by at least 1e-4 within a query. The step size is log-uniform between
    0.001 and 0.1, over N^(1/2) and the number of queries, where k steps of descent are stable.
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
    num_steps: int,
) -> Float[Array, "d d"]:
    """The policy after k steps of gradient descent on the summed Plackett-Luce losses of Q queries."""

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
    """Error of the network of each problem; the problems have one shape and one compiled program."""
    with jax.enable_x64(dtype == "float64"):
        networks = [build(problem, dtype) for problem in problems]
        params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(n.params for n in networks))
        contexts = jax.tree.map(
            lambda *leaves: jnp.stack(leaves), *(as_context(p, dtype) for p in problems)
        )

        def answer(params, context_and_queries):
            return run(Network(networks[0].config, params), *context_and_queries)[-1]

        answers = _compile_quickly(jax.vmap(answer))(params, contexts)
    truth = np.stack([reference(problem) for problem in problems])
    error = np.linalg.norm(np.asarray(answers, np.float64) - truth, axis=-1)
    return error / np.linalg.norm(truth, axis=-1)


def _compile_quickly(function: Callable) -> Callable:
    """Compiled without optimisation: deep networks that run once."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})
