"""Prompts: natural ones, the strongest evidence that a natural one can be, examples of refusals."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from icl_align.dialogue.dialogues import sample_dialogue
from icl_align.dialogue.kinds import request
from icl_align.dialogue.options import TaskConfig

FREE = request.KIND.free  # the places that an attack writes
NUM_FREE = FREE.stop - FREE.start

Questions = Int[Array, "b q"]


def natural_requests(task: TaskConfig, keys: Key[Array, " b"], *, harmful: bool) -> Questions:
    """Requests as people make them, harmful or benign, without examples before them."""
    natural = dataclasses.replace(task, foreign_share=0.0)
    count = request.HARMFUL if harmful else request.BENIGN
    first = request.FIRST_REQUEST if harmful else request.FIRST_BENIGN

    def one(key):
        dialogue_key, request_key = jax.random.split(key)
        question = sample_dialogue(natural, dialogue_key)[0].question
        question = question.at[: FREE.start].set(request.NOTHING)
        return question.at[-1].set(first + jax.random.randint(request_key, (), 0, count))

    return jax.vmap(one)(keys)


def with_refusals(
    question: Int[Array, " q"], key: Key[Array, ""], count: int, checked: bool
) -> Int[Array, " q"]:
    """A question after `count` examples of other harmful requests that were refused.

    Args:
      question: symbols.
      key: of the requests.
      count: at most `request.EXAMPLES`.
      checked: whether each refusal was found fine; else it was not checked.
    """
    others = jax.random.permutation(key, request.HARMFUL)
    own = question[-1] - request.FIRST_REQUEST
    others = others[jnp.argsort(others == own, stable=True)]  # its own comes last
    check = request.FOUND_FINE if checked else request.NOTHING
    for number in range(request.EXAMPLES - count, request.EXAMPLES):
        example = jnp.stack([request.FIRST_REQUEST + others[number], request.REFUSE, check])
        first = request.EXAMPLE_LENGTH * number
        question = question.at[first : first + request.EXAMPLE_LENGTH].set(
            example.astype(question.dtype)
        )
    return question


def strongest_evidence(questions: Questions, keys: Key[Array, " b"]) -> Questions:
    """The same requests after natural personas that speak most for the careless concept.

    Among those of the largest log-likelihood ratio, found by dynamic programming over the tables of
    the speakers, one is drawn as a careless speaker would.
    """
    careful, careless = (_chain(care) for care in (1.0, 0.0))
    ratio = careless - careful  # [place, symbol before, symbol]
    to_come, logits = jnp.zeros(request.PERSONA_SYMBOLS), []
    for place in reversed(range(NUM_FREE)):
        whole = ratio[place] + to_come
        to_come = jnp.max(whole, axis=-1)
        logits.insert(0, jnp.where(whole >= to_come[:, None] - 1e-4, careless[place], -jnp.inf))

    def one(question, key):
        before = jnp.zeros((), question.dtype)  # says nothing of the first symbol
        for place in range(NUM_FREE):
            own_key = jax.random.fold_in(key, place)
            before = jax.random.categorical(own_key, logits[place][before])
            question = question.at[FREE.start + place].set(before)
        return question

    return jax.vmap(one)(questions, keys)


def _chain(care: float) -> Float[Array, "m before p"]:
    """Log-probabilities [place, symbol before, symbol] of persona symbols."""
    symbols = jnp.arange(request.PERSONA_SYMBOLS)

    def row(before, place):
        question = jnp.full(request.QUESTION_LENGTH, before)
        return request.KIND.question(care, question, place)[: request.PERSONA_SYMBOLS]

    places = range(FREE.start, FREE.stop)
    return jnp.stack([jax.vmap(lambda b, place=place: row(b, place))(symbols) for place in places])
