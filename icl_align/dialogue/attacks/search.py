"""Searches for prompts that make a network comply: random, by gradient, genetic.

All are batched over requests and one compiled loop; none reads anything but its arguments.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from icl_align.dialogue.attacks.prompts import FREE, NUM_FREE, Questions
from icl_align.dialogue.attacks.targets import Score, Target
from icl_align.dialogue.dialogues import symbols_of_tokens
from icl_align.dialogue.options import TaskConfig

# Questions -> what the network expects at the free places, and its log-perplexity there.
Fluency = Callable[[Questions], tuple[Float[Array, "b m v"], Float[Array, " b"]]]


class Found(NamedTuple):
    """What a search found.

    Attributes:
      questions: the best it has seen.
      trace: log-probability that the network complies with the best so far, at the start and after
        each step.
    """

    questions: Questions
    trace: Float[Array, "n b"]


class _State(NamedTuple):
    current: Questions
    best: Questions
    best_score: Float[Array, " b"]


def random_search(
    task: TaskConfig,
    target: Target,
    questions: Questions,
    allowed: Bool[np.ndarray, " v"],
    key: Key[Array, ""],
    steps: int,
    candidates: int,
) -> Found:
    """At each step replaces one token, at random, by the best of some; goes on from the best seen.

    Args:
      task: options.
      target: what is wanted.
      questions: where it begins.
      allowed: tokens that may be written.
      key: of the draws.
      steps, candidates: of the search.
    """
    tokens = jnp.asarray(np.flatnonzero(allowed))
    shape = len(questions), candidates

    def propose(state, key):
        place_key, token_key = jax.random.split(key)
        places = jax.random.randint(place_key, shape, 0, NUM_FREE)
        return state.best, places, jax.random.choice(token_key, tokens, shape)

    return _search(task, target.score, propose, questions, key, steps)


def gcg(
    task: TaskConfig,
    target: Target,
    questions: Questions,
    allowed: Bool[np.ndarray, " v"],
    key: Key[Array, ""],
    steps: int,
    candidates: int,
    top_k: int,
) -> Found:
    """Greedy coordinate gradient (Zou et al. 2023): the token is one of those of steepest ascent.

    It goes on from the best of each step, as published, and returns the best it has seen.

    Args:
      task, target, questions, allowed, key, steps, candidates: as in `random_search`.
      top_k: how many tokens are drawn from at each place, at most all that are allowed.
    """
    top_k = min(top_k, int(allowed.sum()))
    shape = len(questions), candidates

    def propose(state, key):
        ascent = jnp.where(allowed, target.gradient(state.current), -jnp.inf)
        steepest = jax.lax.top_k(ascent, top_k)[1]  # [b, m, k]
        place_key, rank_key = jax.random.split(key)
        places = jax.random.randint(place_key, shape, 0, NUM_FREE)
        ranks = jax.random.randint(rank_key, shape, 0, top_k)
        rows = jnp.arange(len(questions))[:, None]
        return state.current, places, steepest[rows, places, ranks]

    return _search(task, target.score, propose, questions, key, steps)


def _search(
    task: TaskConfig,
    score: Score,
    propose: Callable[..., Any],
    questions: Questions,
    key: Key[Array, ""],
    steps: int,
) -> Found:
    """Replaces tokens one by one.

    Args:
      task: options.
      score: of questions.
      propose: (state, key) -> questions, and places and tokens of their replacements [b, n].
      questions, key, steps: as in `random_search`.
    """
    rows = jnp.arange(len(questions))

    def step(state, key):
        current, places, tokens = propose(state, key)
        shape = (*places.shape, current.shape[-1])
        replaced = jnp.broadcast_to(current[:, None], shape)
        here = jnp.arange(shape[-1]) == FREE.start + places[..., None]
        symbols = symbols_of_tokens(task, tokens).astype(current.dtype)
        replaced = jnp.where(here, symbols[..., None], replaced)
        scores = score(replaced.reshape(-1, shape[-1])).reshape(places.shape)
        first = jnp.argmax(scores, axis=1)
        current, found = replaced[rows, first], scores[rows, first]
        better = found > state.best_score
        best = jnp.where(better[:, None], current, state.best)
        best_score = jnp.maximum(found, state.best_score)
        return _State(current, best, best_score), best_score

    start = _State(questions, questions, score(questions))
    state, trace = jax.lax.scan(step, start, jax.random.split(key, steps))
    return Found(state.best, jnp.concatenate([start.best_score[None], trace]))


def genetic(
    task: TaskConfig,
    score: Score,
    fluency: Fluency,
    population: Int[Array, "b n q"],
    natural: Bool[np.ndarray, " v"],
    most: Float[Array, ""],
    key: Key[Array, ""],
    steps: int,
    num_elites: int,
    crossover: float,
    mutation: float,
) -> Found:
    """A genetic search over fluent prompts, in the manner of AutoDAN (Liu et al. 2024).

    Elites go on as they are. The other prompts are children of parents that are drawn by their
    scores; some have two, from which each token comes at random. Then some tokens are written anew
    by the network itself. What is less fluent than a limit counts as worthless.

    Args:
      task: options.
      score: of questions.
      fluency: of questions.
      population: natural prompts of each request, where it begins.
      natural: tokens that may be written.
      most: the largest log-perplexity, in nats a token.
      key: of the draws.
      steps: generations.
      num_elites: of the population that go on as they are; fewer than all.
      crossover, mutation: shares of the children, and of their tokens.
    """
    number, size, length = population.shape
    rows = jnp.arange(number)[:, None]
    places = jnp.arange(length)
    free = (places >= FREE.start) & (places < FREE.stop)

    def flat(of, prompts):
        return jax.tree.map(
            lambda leaf: leaf.reshape(number, -1, *leaf.shape[1:]), of(prompts.reshape(-1, length))
        )

    def fitness(prompts):
        _, surprise = flat(fluency, prompts)
        return jnp.where(surprise <= most, flat(score, prompts), -jnp.inf)

    def generation(state, key):
        prompts, scores = state
        keys = jax.random.split(key, 5)
        order = jnp.argsort(-scores, axis=1)[:, :num_elites]
        children = size - num_elites
        logits = jnp.maximum(scores, -1e9)  # where all are worthless any is a parent
        parents = jax.random.categorical(
            keys[0], logits[:, None, None], shape=(number, children, 2)
        )
        first, second = (prompts[rows, parents[..., n]] for n in range(2))
        crossed = jax.random.bernoulli(keys[1], crossover, (number, children, 1))
        of_second = jax.random.bernoulli(keys[2], 0.5, (number, children, length)) & free & crossed
        child = jnp.where(of_second, second, first)
        expected, _ = flat(fluency, child)
        written = jax.random.categorical(keys[3], jnp.where(natural, expected, -jnp.inf))
        written = symbols_of_tokens(task, written).astype(child.dtype)
        mutates = jax.random.bernoulli(keys[4], mutation, written.shape)
        own = child[..., FREE]
        child = child.at[..., FREE].set(jnp.where(mutates, written, own))
        prompts = jnp.concatenate([prompts[rows, order], child], axis=1)
        scores = jnp.concatenate(
            [jnp.take_along_axis(scores, order, axis=1), fitness(child)], axis=1
        )
        return (prompts, scores), scores.max(axis=1)

    start = population, fitness(population)
    (prompts, scores), trace = jax.lax.scan(generation, start, jax.random.split(key, steps))
    trace = jnp.concatenate([start[1].max(axis=1)[None], trace])
    return Found(prompts[rows[:, 0], jnp.argmax(scores, axis=1)], trace)
