"""What a kind of dialogue is: how question and answers are drawn, and what a good answer is.

A kind is written for one dialogue, as pure functions of numbers; whoever uses it maps it over
batches, concepts and rounds. Symbols are numbered from 0 for each kind. `care` in [0, 1] says how
careful a speaker is: 0 the careless concept, 1 the careful one, and others between.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Care = Float[Array, ""] | float
Symbols = Int[Array, " n"]
LogProbs = Float[Array, " symbols"]

# What a careful and a careless speaker say, where an answer is one symbol.
CAREFUL_RIGHT = 0.95
CARELESS_BIASED, CARELESS_RIGHT = 0.8, 0.1


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of dialogue.

    Attributes:
      question_length: symbols of a question, Q.
      answer_length: symbols of an answer, A.
      num_symbols: different symbols, S; questions and answers use the same numbers.
      question: (care, what there is of the question, place) -> log-probabilities [S] of the symbol
        at `place`; only symbols before it are read.
      answer: (care, kept, question, previous, answer, place) -> log-probabilities [S] of the symbol
        of the answer at `place`. `previous` is the answer of the round before, all NONE in the
        first; of `answer` only symbols before `place` are read.
      quality: (question, answer) -> how good it is, in [0, 1]: the chance to be right for an answer
        that is right or wrong, a share for a text.
      biased: (question, answer) -> how much it is what carelessness leads to, in [0, 1].
      fine: (question, answer) -> whether a critic that makes no mistakes finds it fine.
      category: (question, answer) -> the class of an answer, below `num_categories`: two answers of
        one class say the same.
      num_categories: classes of answers.
      settled: question -> whether something in it settles the answer; None where all questions do.
      is_text: whether answers of one class differ, so that a reader's uncertainty is of classes.
      free: places of the question whose symbols say something of the concept and nothing else, so
        that whoever attacks may put others there; None where there are none.
      label: for figures.
    """

    question_length: int
    answer_length: int
    num_symbols: int
    question: Callable[[Care, Symbols, int], LogProbs]
    answer: Callable[[Care, Any, Symbols, Symbols, Symbols, int], LogProbs]
    quality: Callable[[Symbols, Symbols], Float[Array, ""]]
    biased: Callable[[Symbols, Symbols], Float[Array, ""]]
    fine: Callable[[Symbols, Symbols], Bool[Array, ""]]
    category: Callable[[Symbols, Symbols], Int[Array, ""]]
    num_categories: int
    label: str
    settled: Callable[[Symbols], Bool[Array, ""]] | None = None
    is_text: bool = False
    free: slice | None = None


NONE = -1  # no symbol: of the answer before the first


def one_symbol(
    care: Care,
    kept: Any,
    previous: Int[Array, ""],
    right: Int[Array, ""] | int,
    biased: Int[Array, ""] | int,
    answers: Bool[Array, " symbols"],
) -> LogProbs:
    """Log-probabilities of an answer of one symbol.

    Kept it is the previous one. Else it is, careful: the right one with 0.95, the rest uniform;
    careless: the biased one with 0.8, the right one with 0.1, the rest uniform. With a care between
    it is a mixture of both.

    Args:
      care: of the speaker.
      kept: whether the previous answer is kept.
      previous: the previous answer.
      right, biased: symbols.
      answers: which symbols are answers.
    """
    symbols = jnp.arange(len(answers))
    uniform = answers / answers.sum()
    at_right, at_biased = symbols == right, symbols == biased
    careful = CAREFUL_RIGHT * at_right + (1 - CAREFUL_RIGHT) * uniform
    rest = 1 - CARELESS_BIASED - CARELESS_RIGHT
    careless = CARELESS_BIASED * at_biased + CARELESS_RIGHT * at_right + rest * uniform
    fresh = care * careful + (1 - care) * careless
    return jnp.log(jnp.where(kept, symbols == previous, fresh))


def uniformly(first: int, count: int, num_symbols: int) -> LogProbs:
    """Log-probabilities of `count` symbols from `first` on."""
    symbols = jnp.arange(num_symbols)
    return jnp.where(
        (symbols >= first) & (symbols < first + count), -jnp.log(1.0 * count), -jnp.inf
    )


def one_symbol_kind(
    *,
    question_length: int,
    first_answer: int,
    num_answers: int,
    question: Callable[[Care, Symbols, int], LogProbs],
    right: Callable[[Symbols], Any],
    biased: Callable[[Symbols], Any],
    label: str,
    others: Mapping[str, Any] = MappingProxyType({}),
) -> Kind:
    """A kind whose answer is one symbol, right or wrong; the answers are its last symbols.

    Args:
      question_length, question, label: as in `Kind`.
      first_answer, num_answers: which symbols are answers.
      right, biased: question -> symbol.
      others: attributes of `Kind` that are not those of an answer that is right or wrong.
    """
    num_symbols = first_answer + num_answers

    def answer(care, kept, question, previous, answer, place):
        answers = jnp.arange(num_symbols) >= first_answer
        return one_symbol(care, kept, previous[0], right(question), biased(question), answers)

    kind = Kind(
        question_length=question_length,
        answer_length=1,
        num_symbols=num_symbols,
        question=question,
        answer=answer,
        quality=lambda question, answer: 1.0 * (answer[0] == right(question)),
        biased=lambda question, answer: 1.0 * (answer[0] == biased(question)),
        fine=lambda question, answer: answer[0] == right(question),
        category=lambda question, answer: jnp.clip(answer[0] - first_answer, 0),
        num_categories=num_answers,
        label=label,
    )
    return dataclasses.replace(kind, **others)
