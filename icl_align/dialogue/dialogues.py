"""Dialogues as they are drawn, as parts and as tokens."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from icl_align.dialogue import speakers
from icl_align.dialogue.kinds.kind import NONE
from icl_align.dialogue.options import KINDS, TaskConfig
from icl_align.dialogue.vocabulary import kinds_of, layout_of, vocabulary_of


class Dialogue(NamedTuple):
    """The parts of a dialogue, any leading axes; symbols from 0, and S where a part has ended.

    Attributes:
      kind: number among the kinds that are mixed.
      question: symbols.
      instructions: 0 is the neutral one.
      answers: symbols.
      checks: FLAWED or FINE.
    """

    kind: Int[Array, "*b"]
    question: Int[Array, "*b q"]
    instructions: Int[Array, "*b t"]
    answers: Int[Array, "*b t a"]
    checks: Int[Array, "*b t"]


class Hidden(NamedTuple):
    """What no token says: any leading axes."""

    concepts: Int[Array, "*b t"]
    kept: Bool[Array, "*b t"]


def sample_dialogue(
    task: TaskConfig, key: Key[Array, ""], only: int | None = None
) -> tuple[Dialogue, Hidden]:
    """One dialogue as its speakers talk, with what they hide.

    The concept is drawn before the question, and again with the hazard before every round.

    Args:
      task: options.
      key: of the dialogue.
      only: a kind, by its number among those that are mixed; by default any.
    """
    layout = layout_of(task)
    kind_key, concept_key, question_key, rounds_key = jax.random.split(key, 4)
    kind = jax.random.randint(kind_key, (), 0, len(kinds_of(task)))
    kind = kind if only is None else jnp.full_like(kind, only)
    concept = jax.random.categorical(concept_key, speakers.log_prior(task))
    question = jnp.zeros(layout.question_length, int)
    for place in range(layout.question_length):
        own_key = jax.random.fold_in(question_key, place)
        logits = speakers.log_question(task, kind, concept, question, place)
        question = question.at[place].set(jax.random.categorical(own_key, logits))

    def one_round(before, number):
        concept, previous, check = before
        keys = jax.random.split(jax.random.fold_in(rounds_key, number), 4)
        first = number == 0
        concept = jax.random.categorical(keys[0], speakers.log_transition(task)[concept])
        instruction = jax.random.categorical(
            keys[1], speakers.log_instruction(task, first)[concept]
        )
        kept = jax.random.bernoulli(keys[2], speakers.keep_probability(task, check, first))
        answer = jnp.zeros_like(previous)
        answer_key, check_key = jax.random.split(keys[3])
        for place in range(layout.answer_length):
            logits = speakers.log_answer(
                task, kind, concept, kept, question, previous, answer, place
            )
            symbol = jax.random.categorical(jax.random.fold_in(answer_key, place), logits)
            answer = answer.at[place].set(symbol)
        fine = speakers.quality_of(task, kind, question, answer).fine
        check = jax.random.categorical(check_key, speakers.log_check(task, fine)[concept])
        return (concept, answer, check), (instruction, answer, check, concept, kept)

    nothing = jnp.full(layout.answer_length, NONE, int)
    before = (concept, nothing, jnp.zeros((), concept.dtype))
    _, drawn = jax.lax.scan(one_round, before, jnp.arange(layout.rounds))
    instructions, answers, checks, concepts, kept = drawn
    return Dialogue(kind, question, instructions, answers, checks), Hidden(concepts, kept)


def to_tokens(task: TaskConfig, dialogue: Dialogue) -> Int[Array, "*b l"]:
    """The tokens of a dialogue; PAD where a part has ended."""
    vocabulary = vocabulary_of(task)

    def symbols(numbers):
        ended = numbers >= vocabulary.num_symbols
        return jnp.where(ended, vocabulary.pad, vocabulary.first_symbol + numbers)

    rounds = jnp.concatenate(
        [
            vocabulary.first_instruction + dialogue.instructions[..., None],
            symbols(dialogue.answers),
            vocabulary.first_check + dialogue.checks[..., None],
        ],
        axis=-1,
    )
    kind = kind_tokens(task)[dialogue.kind][..., None]
    flat = rounds.reshape(*rounds.shape[:-2], -1)
    return jnp.concatenate([kind, symbols(dialogue.question), flat], axis=-1)


def from_tokens(task: TaskConfig, tokens: Int[Array, "*b l"]) -> Dialogue:
    """The parts of a dialogue of the task's layout; the inverse of `to_tokens`."""
    vocabulary, layout = vocabulary_of(task), layout_of(task)

    def symbols(tokens):
        ended = tokens == vocabulary.pad
        return jnp.where(ended, vocabulary.num_symbols, tokens - vocabulary.first_symbol)

    rounds = tokens[..., layout.first_round :]
    rounds = rounds.reshape(*tokens.shape[:-1], layout.rounds, layout.round_length)
    is_kind = tokens[..., :1] == kind_tokens(task)
    return Dialogue(
        kind=jnp.argmax(is_kind, axis=-1),
        question=symbols(tokens[..., 1 : layout.first_round]),
        instructions=rounds[..., 0] - vocabulary.first_instruction,
        answers=symbols(rounds[..., 1:-1]),
        checks=rounds[..., -1] - vocabulary.first_check,
    )


def kind_tokens(task: TaskConfig) -> Int[Array, " k"]:
    """The tokens of the kinds that are mixed."""
    first = vocabulary_of(task).first_kind
    return jnp.array([first + KINDS.index(name) for name in task.kinds])
