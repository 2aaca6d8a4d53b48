"""What an attack makes as likely as it can: that a network complies, now or after its own check."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from icl_align.dialogue.attacks.prompts import FREE, NUM_FREE, Questions
from icl_align.dialogue.dialogues import kind_tokens, symbol_tokens
from icl_align.dialogue.kinds import request
from icl_align.dialogue.options import TaskConfig
from icl_align.dialogue.vocabulary import vocabulary_of

ANSWERS = request.CONTENTS + 1  # the contents, then the refusal
REFUSAL = request.REFUSE - request.FIRST_CONTENT

# Log-probability that the network complies with each question.
Score = Callable[[Questions], Float[Array, " b"]]


class Target(NamedTuple):
    """What an attack asks of a network.

    Attributes:
      score: questions -> log-probability of compliance.
      gradient: questions -> its gradient by every token at each free place [b, m, v].
    """

    score: Score
    gradient: Callable[[Questions], Float[Array, "b m v"]]


def opening(task: TaskConfig, question: Int[Array, "*b q"]) -> Int[Array, "*b t"]:
    """The tokens of a dialogue until its first answer, after the neutral instruction."""
    kind = jnp.broadcast_to(kind_tokens(task)[0], question.shape[:-1])[..., None]
    neutral = jnp.full_like(kind, vocabulary_of(task).first_instruction)
    return jnp.concatenate([kind, symbol_tokens(task, question), neutral], axis=-1)


def log_answers(task: TaskConfig, row: Float[Array, "*b v"]) -> Float[Array, "*b answers"]:
    """Of the answers that there are, from the logits of a row; the refusal last."""
    first = vocabulary_of(task).first_symbol + request.FIRST_CONTENT
    return jax.nn.log_softmax(row[..., first : first + ANSWERS])


def wanted(question: Int[Array, "*b q"]) -> Int[Array, "*b"]:
    """The number of the answer that complies."""
    return request.content(jnp.moveaxis(question, -1, 0)) - request.FIRST_CONTENT


def _of_answer(log_p: Float[Array, "*b answers"], number: Int[Array, "*b"]) -> Float[Array, "*b"]:
    return jnp.take_along_axis(log_p, number[..., None], axis=-1)[..., 0]


def fluency(
    task: TaskConfig, network: Any, questions: Questions
) -> tuple[Float[Array, "b m v"], Float[Array, " b"]]:
    """What a network expects at the free places, and its log-perplexity there in nats a token."""
    tokens = opening(task, questions)
    rows = jax.nn.log_softmax(network(tokens)[:, FREE])  # a row is of the token after its own
    said = tokens[:, FREE.start + 1 : FREE.stop + 1]
    log_p = jnp.take_along_axis(rows, said[..., None], axis=-1)[..., 0]
    return rows, -jnp.mean(log_p, axis=-1)


def first_answer(task: TaskConfig, network: Any) -> Target:
    """That the first answer complies."""

    def score(questions, shift=None):
        rows = _rows(network, opening(task, questions), shift)
        return _of_answer(log_answers(task, rows[..., -1, :]), wanted(questions))

    return Target(score, _gradient(network, score))


def after_own_check(task: TaskConfig, network: Any) -> Target:
    """That the answer after the network's own check of the first one complies.

    Summed over what is said before: the first answer complies or refuses, and is found fine or
    flawed. The few other first answers are left out.
    """
    vocabulary = vocabulary_of(task)
    answers = vocabulary.first_symbol + request.FIRST_CONTENT

    def score(questions, shift=None):
        begin = opening(task, questions)  # [*b, t]
        complies = wanted(questions)
        said = jnp.stack([complies, jnp.full_like(complies, REFUSAL)], axis=-1)  # [*b, 2]
        said = jnp.repeat(said, 2, axis=-1)
        check = jnp.broadcast_to(jnp.array([0, 1, 0, 1]), said.shape)
        neutral = jnp.full_like(said, vocabulary.first_instruction)
        tail = jnp.stack([answers + said, vocabulary.first_check + check, neutral], axis=-1)
        begin = jnp.broadcast_to(begin[..., None, :], (*tail.shape[:-1], begin.shape[-1]))
        rows = _rows(network, jnp.concatenate([begin, tail], axis=-1), shift)  # [*b, 4, t, v]
        first, judged, last = (rows[..., begin.shape[-1] - 1 + n, :] for n in (0, 1, 3))
        checks = judged[..., vocabulary.first_check : vocabulary.first_check + 2]
        log_p = (
            _of_answer(log_answers(task, first), said)
            + _of_answer(jax.nn.log_softmax(checks), check)
            + _of_answer(log_answers(task, last), jnp.broadcast_to(complies[..., None], said.shape))
        )
        return jax.nn.logsumexp(log_p, axis=-1)

    return Target(score, _gradient(network, score))


def _rows(
    network: Any, tokens: Int[Array, "*b t"], shift: Float[Array, "m d"] | None
) -> Float[Array, "*b t v"]:
    """A network's logits, with something added to the vectors of the tokens at the free places."""
    if shift is None:
        return network(tokens)
    layers = len(network.trunk.blocks) + 1
    free = jnp.arange(1 + FREE.start, 1 + FREE.stop)  # after the token of the kind
    added = jnp.zeros((layers, tokens.shape[-1], shift.shape[-1])).at[0, free].set(shift)
    return network(tokens, added)


def _gradient(network: Any, score: Callable[..., Any]) -> Callable[..., Any]:
    """Of a score by the one-hot vectors of the tokens at the free places."""
    nothing = jnp.zeros((NUM_FREE, network.embedding.shape[1]))

    def one(question):
        by_vector = jax.grad(lambda shift: score(question, shift))(nothing)
        return by_vector @ network.embedding[...].T

    return jax.vmap(one)
