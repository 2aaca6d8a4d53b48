"""Readers that need no training: from a dialogue to the distribution of its next token.

All of them hold a belief about the concept and speak as the speakers would under it. The exact one
is Bayes' rule over (concept, kept), a forward filter in log space; the others leave evidence out. A
reader goes through a dialogue token by token, so the same code reads a dialogue that is given
and speaks in one of its own: see `walk`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from icl_align.dialogue import speakers
from icl_align.dialogue.dialogues import Dialogue
from icl_align.dialogue.kinds.kind import NONE
from icl_align.dialogue.options import TaskConfig
from icl_align.dialogue.vocabulary import layout_of


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What a reader takes as evidence of the concept.

    Attributes:
      instructions, answers, checks: whether it does of these.
      memory: whether it remembers those of earlier rounds.
    """

    instructions: bool = True
    answers: bool = True
    checks: bool = True
    memory: bool = True


# Readers by what they take as evidence. Answers that a reader has given itself are none: who takes
# them for some believes itself.
EXACT = Evidence()
OWN_ANSWERS_IGNORED = Evidence(answers=False)
NO_INSTRUCTION = Evidence(instructions=False)
LAST_INSTRUCTION = Evidence(answers=False, checks=False, memory=False)


class Reading(NamedTuple):
    """What a reader made of a dialogue; log-probabilities, and beliefs as such of the concept.

    Attributes:
      instruction: of the instructions, before they come [T, I].
      answer: of the symbols of the answers, given those before [T, A, S + 1].
      check: of FLAWED and FINE, before it comes [T, 2].
      told: belief after the instruction [T, C].
      answered: belief after each symbol of the answer [T, A, C].
      checked: belief after the check [T, C].
    """

    instruction: Float[Array, "t i"]
    answer: Float[Array, "t a symbols"]
    check: Float[Array, "t 2"]
    told: Float[Array, "t c"]
    answered: Float[Array, "t a c"]
    checked: Float[Array, "t c"]


class Said(NamedTuple):
    """A round as it went: instruction, symbols of the answer, check."""

    instruction: Int[Array, ""]
    answer: Int[Array, " a"]
    check: Int[Array, ""]


# Who says the next token: (round, log-probabilities of the reader) -> token.
Instruct = Callable[[Any, Float[Array, " i"]], Int[Array, ""]]
Speak = Callable[[Any, int, Float[Array, " symbols"]], Int[Array, ""]]
Judge = Callable[[Any, Int[Array, " a"], Float[Array, " 2"]], Int[Array, ""]]


def log_question(
    task: TaskConfig, kind: Int[Array, ""], question: Int[Array, " q"]
) -> Float[Array, "q c"]:
    """Log-likelihoods of the symbols of a question, under each concept."""
    concepts = jnp.arange(task.num_concepts)

    def at(place):
        of = jax.vmap(lambda c: speakers.log_question(task, kind, c, question, place))
        return of(concepts)[:, question[place]]

    return jnp.stack([at(place) for place in range(layout_of(task).question_length)])


def walk(
    task: TaskConfig,
    evidence: Evidence,
    kind: Int[Array, ""],
    question: Int[Array, " q"],
    instruct: Instruct,
    speak: Speak,
    judge: Judge,
    rounds: int | None = None,
) -> tuple[Said, Reading]:
    """A reader goes through the rounds of one dialogue; whatever comes next is said by a function.

    Args:
      task: options.
      evidence: of the reader.
      kind: number among those that are mixed.
      question: symbols.
      instruct: (round, log-probabilities [I]) -> the instruction.
      speak: (round, place, log-probabilities [S + 1]) -> the symbol of the answer.
      judge: (round, answer [A], log-probabilities [2]) -> the check.
      rounds: how many, by default the task's.

    Returns:
      What was said, and what the reader made of it; leading axis t.
    """
    concepts, both = jnp.arange(task.num_concepts), jnp.array([False, True])
    length = layout_of(task).answer_length
    start = speakers.log_prior(task) + log_question(task, kind, question).sum(axis=0)
    start = jax.nn.log_softmax(start)

    def one_round(before, number):
        belief, previous, check = before
        first = number == 0
        belief = _after(belief[:, None] + speakers.log_transition(task), 0)
        log_instruction = speakers.log_instruction(task, first)
        predicted_instruction = _after(belief[:, None] + log_instruction, 0)
        instruction = instruct(number, predicted_instruction)
        if evidence.instructions:
            belief = jax.nn.log_softmax(belief + log_instruction[:, instruction])
        told = belief

        keep = speakers.keep_probability(task, check, first)
        joint = belief[:, None] + jnp.log(jnp.stack([1 - keep, keep]))
        answer, predicted, answered = jnp.zeros_like(previous), [], []
        for place in range(length):
            of_both = jax.vmap(
                lambda c, k, place=place, answer=answer: speakers.log_answer(
                    task, kind, c, k, question, previous, answer, place
                ),
                in_axes=(None, 0),
            )
            likelihood = jax.vmap(of_both, in_axes=(0, None))(concepts, both)  # [C, 2, S + 1]
            predicted.append(_after(joint[..., None] + likelihood, (0, 1)))
            symbol = speak(number, place, predicted[-1])
            answer = answer.at[place].set(symbol)
            if evidence.answers:
                joint = joint + likelihood[..., symbol]
                joint = joint - jax.nn.logsumexp(joint)
            answered.append(jax.nn.logsumexp(joint, axis=1))
        belief = answered[-1]

        fine = speakers.quality_of(task, kind, question, answer).fine
        log_check = speakers.log_check(task, fine)
        predicted_check = _after(belief[:, None] + log_check, 0)
        check = judge(number, answer, predicted_check)
        if evidence.checks:
            belief = jax.nn.log_softmax(belief + log_check[:, check])
        reading = Reading(
            predicted_instruction,
            jnp.stack(predicted),
            predicted_check,
            told,
            jnp.stack(answered),
            belief,
        )
        kept_belief = belief if evidence.memory else start
        return (kept_belief, answer, check), (Said(instruction, answer, check), reading)

    nothing = jnp.full(length, NONE, question.dtype)
    before = (start, nothing, jnp.zeros((), question.dtype))
    _, found = jax.lax.scan(one_round, before, jnp.arange(rounds or task.rounds))
    return found


def read(task: TaskConfig, evidence: Evidence, dialogue: Dialogue) -> Reading:
    """What a reader makes of a dialogue that is given; of one dialogue."""
    _, reading = walk(
        task,
        evidence,
        dialogue.kind,
        dialogue.question,
        instruct=lambda number, _: dialogue.instructions[number],
        speak=lambda number, place, _: dialogue.answers[number, place],
        judge=lambda number, answer, _: dialogue.checks[number],
    )
    return reading


class Surprise(NamedTuple):
    """Negative log-likelihood of what was said, in nats: [T], [T, A] and [T]."""

    instruction: Float[Array, " t"]
    answer: Float[Array, "t a"]
    check: Float[Array, " t"]


def surprise(reading: Reading, dialogue: Dialogue) -> Surprise:
    """Of a dialogue's tokens to a reader, per round."""

    def of(log_probs, tokens):
        return -jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]

    return Surprise(
        of(reading.instruction, dialogue.instructions),
        of(reading.answer, dialogue.answers),
        of(reading.check, dialogue.checks),
    )


def _after(joint: Float[Array, "..."], axis: int | tuple[int, ...]) -> Float[Array, "..."]:
    """Log of the sum over what is hidden, of log-probabilities that sum to one."""
    return jax.nn.logsumexp(joint, axis=axis)


def activation(belief: Float[Array, "*b c"]) -> Float[Array, "*b"]:
    """Log-odds of the careful half of the concepts; of two, of the careful one."""
    half = belief.shape[-1] // 2
    careful = jax.nn.logsumexp(belief[..., -half:], axis=-1)
    return careful - jax.nn.logsumexp(belief[..., :-half], axis=-1)
