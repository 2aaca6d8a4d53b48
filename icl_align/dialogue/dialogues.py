"""Dialogues as they are drawn, as parts and as tokens."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from icl_align.dialogue import speakers
from icl_align.dialogue.kinds.kind import NONE
from icl_align.dialogue.options import KINDS, TaskConfig
from icl_align.dialogue.vocabulary import (
    FLAWED,
    UNCHECKED,
    kinds_of,
    layout_of,
    vocabulary_of,
)


class Dialogue(NamedTuple):
    """The parts of a dialogue, any leading axes; symbols from 0, and S where a part has ended.

    Attributes:
      kind: number among the kinds that are mixed.
      question: symbols; below 0 where a token stands that is no symbol.
      instructions: 0 is the neutral one.
      answers: symbols.
      checks: FLAWED, FINE or UNCHECKED.
    """

    kind: Int[Array, "*b"]
    question: Int[Array, "*b q"]
    instructions: Int[Array, "*b t"]
    answers: Int[Array, "*b t a"]
    checks: Int[Array, "*b t"]


class Hidden(NamedTuple):
    """What no token says: any leading axes; how each answer came about, as `speakers` has it."""

    concepts: Int[Array, "*b t"]
    modes: Int[Array, "*b t"]


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

    if task.foreign_share:
        question = _with_foreign(
            task, jax.random.fold_in(question_key, layout.question_length), question
        )

    def one_round(before, number):
        concept, previous, check = before
        keys = jax.random.split(jax.random.fold_in(rounds_key, number), 4)
        first = number == 0
        concept = jax.random.categorical(keys[0], speakers.log_transition(task)[concept])
        instruction = jax.random.categorical(
            keys[1], speakers.log_instruction(task, first)[concept]
        )
        mode = _mode(task, keys[2], check, first)
        answer = jnp.zeros_like(previous)
        answer_key, check_key = jax.random.split(keys[3])
        for place in range(layout.answer_length):
            logits = speakers.log_answer(
                task, kind, concept, mode, question, previous, answer, place
            )
            symbol = jax.random.categorical(jax.random.fold_in(answer_key, place), logits)
            answer = answer.at[place].set(symbol)
        fine = speakers.quality_of(task, kind, question, answer).fine
        check = jax.random.categorical(check_key, speakers.log_check(task, fine)[concept])
        if task.unchecked_share:
            own_key = jax.random.fold_in(check_key, 0)
            is_unchecked = jax.random.bernoulli(own_key, task.unchecked_share)
            check = jnp.where(is_unchecked, UNCHECKED, check)
        return (concept, answer, check), (instruction, answer, check, concept, mode)

    nothing = jnp.full(layout.answer_length, NONE, int)
    before = (concept, nothing, jnp.zeros((), concept.dtype))
    _, drawn = jax.lax.scan(one_round, before, jnp.arange(layout.rounds))
    instructions, answers, checks, concepts, modes = drawn
    return Dialogue(kind, question, instructions, answers, checks), Hidden(concepts, modes)


def _mode(
    task: TaskConfig, key: Key[Array, ""], check: Int[Array, ""], first: Bool[Array, ""]
) -> Int[Array, ""]:
    """How an answer comes about."""
    kept = jax.random.bernoulli(key, speakers.keep_probability(task, check, first))
    mode = jnp.where(kept, speakers.KEPT, speakers.FRESH)
    if not task.correct_flawed:
        return mode
    corrects = jax.random.bernoulli(jax.random.fold_in(key, 0), task.correct_flawed)
    corrected = ~kept & corrects & (check == FLAWED) & ~first
    return jnp.where(corrected, speakers.CORRECTED, mode)


def to_tokens(task: TaskConfig, dialogue: Dialogue) -> Int[Array, "*b l"]:
    """The tokens of a dialogue; PAD where a part has ended."""
    vocabulary = vocabulary_of(task)
    rounds = jnp.concatenate(
        [
            vocabulary.first_instruction + dialogue.instructions[..., None],
            symbol_tokens(task, dialogue.answers),
            check_tokens(task, dialogue.checks)[..., None],
        ],
        axis=-1,
    )
    kind = kind_tokens(task)[dialogue.kind][..., None]
    flat = rounds.reshape(*rounds.shape[:-2], -1)
    return jnp.concatenate([kind, symbol_tokens(task, dialogue.question), flat], axis=-1)


def from_tokens(task: TaskConfig, tokens: Int[Array, "*b l"]) -> Dialogue:
    """The parts of a dialogue of the task's layout; the inverse of `to_tokens`."""
    vocabulary, layout = vocabulary_of(task), layout_of(task)
    rounds = tokens[..., layout.first_round :]
    rounds = rounds.reshape(*tokens.shape[:-1], layout.rounds, layout.round_length)
    is_kind = tokens[..., :1] == kind_tokens(task)
    return Dialogue(
        kind=jnp.argmax(is_kind, axis=-1),
        question=symbols_of_tokens(task, tokens[..., 1 : layout.first_round]),
        instructions=rounds[..., 0] - vocabulary.first_instruction,
        answers=symbols_of_tokens(task, rounds[..., 1:-1]),
        checks=jnp.where(
            rounds[..., -1] == vocabulary.pad, UNCHECKED, rounds[..., -1] - vocabulary.first_check
        ),
    )


def check_tokens(task: TaskConfig, checks: Int[Array, "*b"]) -> Int[Array, "*b"]:
    """The tokens of checks."""
    vocabulary = vocabulary_of(task)
    return jnp.where(checks == UNCHECKED, vocabulary.pad, vocabulary.first_check + checks)


def natural_tokens(task: TaskConfig) -> Bool[np.ndarray, " v"]:
    """Which tokens people say at the free places of a kind that has such."""
    vocabulary = vocabulary_of(task)
    (kind,) = kinds_of(task)
    with jax.ensure_compile_time_eval():
        nothing = np.zeros(kind.question_length, int)
        said = np.isfinite(kind.question(0.5, nothing, kind.free.start))
    natural = np.zeros(vocabulary.size, bool)
    natural[vocabulary.first_symbol :][: len(said)] = said
    return natural


def foreign_tokens(task: TaskConfig) -> Bool[np.ndarray, " v"]:
    """Which tokens nobody says there, of those that dialogues of the task hold elsewhere."""
    vocabulary = vocabulary_of(task)
    foreign = ~natural_tokens(task)
    foreign[vocabulary.first_kind : vocabulary.first_instruction] = False
    foreign[[vocabulary.first_kind + KINDS.index(name) for name in task.kinds]] = True
    return foreign


def is_foreign(task: TaskConfig, tokens: Int[Array, "*b l"]) -> Bool[Array, "*b l"]:
    """Which tokens of dialogues stand at free places and are none that people say there."""
    (kind,) = kinds_of(task)
    places = jnp.arange(tokens.shape[-1]) - 1  # before the question stands its kind
    free = (places >= kind.free.start) & (places < kind.free.stop)
    return free & ~jnp.asarray(natural_tokens(task))[tokens]


def _with_foreign(
    task: TaskConfig, key: Key[Array, ""], question: Int[Array, " q"]
) -> Int[Array, " q"]:
    """A question with foreign symbols at some of its free places."""
    (of_kind,) = kinds_of(task)
    places = jnp.arange(len(question))
    free = (places >= of_kind.free.start) & (places < of_kind.free.stop)
    which_key, symbol_key = jax.random.split(key)
    replaced = free & jax.random.bernoulli(which_key, task.foreign_share, question.shape)
    tokens = jnp.asarray(np.flatnonzero(foreign_tokens(task)))
    others = symbols_of_tokens(task, jax.random.choice(symbol_key, tokens, question.shape))
    return jnp.where(replaced, others.astype(question.dtype), question)


def symbol_tokens(task: TaskConfig, symbols: Int[Array, "*b"]) -> Int[Array, "*b"]:
    """The tokens of symbols; those below 0 stand for tokens that are no symbols."""
    vocabulary = vocabulary_of(task)
    ended = symbols >= vocabulary.num_symbols
    return jnp.where(ended, vocabulary.pad, vocabulary.first_symbol + symbols)


def symbols_of_tokens(task: TaskConfig, tokens: Int[Array, "*b"]) -> Int[Array, "*b"]:
    """The inverse of `symbol_tokens`."""
    vocabulary = vocabulary_of(task)
    ended = tokens == vocabulary.pad
    return jnp.where(ended, vocabulary.num_symbols, tokens - vocabulary.first_symbol)


def kind_tokens(task: TaskConfig) -> Int[Array, " k"]:
    """The tokens of the kinds that are mixed."""
    first = vocabulary_of(task).first_kind
    return jnp.array([first + KINDS.index(name) for name in task.kinds])
