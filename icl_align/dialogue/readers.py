"""Readers that need no training: from a dialogue to the distribution of its next token.

All of them hold a belief about the concept and speak as the speakers would under it. The exact one
is Bayes' rule over (concept, how an answer comes about), a forward filter in log space; the others
leave evidence out. A reader goes through a dialogue token by token, so the same code reads a
dialogue that is given and speaks in one of its own: see `walk`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from icl_align.config import implemented
from icl_align.dialogue import speakers
from icl_align.dialogue.dialogues import Dialogue, from_tokens
from icl_align.dialogue.drafts import Drafts, confidence_of, drafts_of
from icl_align.dialogue.kinds.kind import NONE
from icl_align.dialogue.options import READERS, TaskConfig
from icl_align.dialogue.vocabulary import layout_of, vocabulary_of

BAYES, PRINTED, ADDITIVE = range(3)


class Evidence(NamedTuple):
    """What a reader takes as evidence of the concept, and by which rule it adds it up.

    Arrays, so that all readers are one program.

    Attributes:
      instructions, answers, checks: whether it does of these.
      memory: whether it remembers those of earlier rounds.
      rule: how beliefs follow from evidence: BAYES, PRINTED or ADDITIVE.
    """

    instructions: Bool[Array, "*r"]
    answers: Bool[Array, "*r"]
    checks: Bool[Array, "*r"]
    memory: Bool[Array, "*r"]
    rule: Int[Array, "*r"]


def _evidence(instructions=True, answers=True, checks=True, memory=True, rule=BAYES) -> Evidence:
    return Evidence(*map(np.asarray, (instructions, answers, checks, memory, rule)))


# Answers that a reader has given itself are no evidence: who takes them for some believes itself.
EVIDENCE = implemented(
    READERS[1:],
    {
        "exact": _evidence(),
        "exact_own_answers_ignored": _evidence(answers=False),
        "last_instruction": _evidence(answers=False, checks=False, memory=False),
        "no_instruction": _evidence(instructions=False),
        "printed_rule": _evidence(rule=PRINTED),
        "additive": _evidence(rule=ADDITIVE),
    },
)
EVERY = jax.tree.map(lambda *leaves: np.stack(leaves), *EVIDENCE.values())  # in that order
MOST_ODDS = 20.0  # log-odds of a single piece of evidence, and of a belief that is shown
NUM_WEIGHTS = 4  # of the additive rule: a constant, instructions, answers, checks


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


class Before(NamedTuple):
    """What a reader knows of the round before it answers.

    Attributes:
      number: of this round.
      answer: that of the round before, NONE in the first.
      confidence: probability that the reader gave to that answer, of a text to its class.
    """

    number: Int[Array, ""]
    answer: Int[Array, " a"]
    confidence: Float[Array, ""]


class Sums(NamedTuple):
    """What the rules that are not Bayes' add up.

    Attributes:
      additive: what each weight is multiplied with: 1, and log-odds of instructions, of answers and
        of checks.
      printed: log of the product of probabilities of the careful concept, each given one piece of
        evidence. The paper's p(C|q_k) = (c_i c_y)^(k-1) c_x c_i / c_p, with c_x = c_p.
    """

    additive: Float[Array, " w"]
    printed: Float[Array, ""]


class Said(NamedTuple):
    """A round as it went: instruction, symbols of the answer, check."""

    instruction: Int[Array, ""]
    answer: Int[Array, " a"]
    check: Int[Array, ""]


# Who says the next token: (round, log-probabilities of the reader) -> token.
Instruct = Callable[[Any, Float[Array, " i"]], Int[Array, ""]]
Speak = Callable[["Before", int, Float[Array, " symbols"]], Int[Array, ""]]
Judge = Callable[[Any, Int[Array, " a"], Float[Array, " 2"]], Int[Array, ""]]
# What the drafts of a round are drawn with: round -> keys.
Draft = Callable[[Any], Key[Array, " n"]]


def _question_likelihood(
    task: TaskConfig, kind: Int[Array, ""], question: Int[Array, " q"]
) -> Float[Array, "q c symbols"]:
    """Log-probabilities of every symbol at each place of a question, under each concept."""

    def at(place):
        of = jax.vmap(lambda c: speakers.log_question(task, kind, c, question, place))
        return of(jnp.arange(task.num_concepts))

    return jnp.stack([at(place) for place in range(layout_of(task).question_length)])


def log_question(
    task: TaskConfig, kind: Int[Array, ""], question: Int[Array, " q"]
) -> Float[Array, "q c"]:
    """Log-likelihoods of the symbols of a question, under each concept."""
    likelihood = _question_likelihood(task, kind, question)
    said = question[:, None, None]
    known = (said >= 0) & (said < likelihood.shape[-1])
    own = jnp.take_along_axis(likelihood, jnp.where(known, said, 0), axis=-1)
    # What nobody says there, such as what an attack puts there, is no evidence.
    said_by_some = known & jnp.any(jnp.isfinite(own), axis=1, keepdims=True)
    return jnp.where(said_by_some, own, 0.0)[..., 0]


def walk(
    task: TaskConfig,
    evidence: Evidence,
    kind: Int[Array, ""],
    question: Int[Array, " q"],
    instruct: Instruct,
    speak: Speak,
    judge: Judge,
    draft: Draft | None = None,
    weights: Float[Array, " w"] | None = None,
) -> tuple[Said, Reading, Drafts | None]:
    """A reader goes through the rounds of one dialogue; whatever comes next is said by a function.

    Args:
      task: options.
      evidence: of the reader.
      kind: number among those that are mixed.
      question: symbols.
      instruct: (round, log-probabilities [I]) -> the instruction.
      speak: (what was before, place, log-probabilities [S + 1]) -> the symbol of the answer.
      judge: (round, answer [A], log-probabilities [2]) -> the check.
      draft: round -> keys [n] of other answers; needed where there are texts.
      weights: of the additive rule.

    Returns:
      What was said, what the reader made of it, and its drafts; leading axis t.
    """
    concepts = jnp.arange(task.num_concepts)
    length, is_bayes = layout_of(task).answer_length, evidence.rule == BAYES
    start = speakers.log_prior(task) + log_question(task, kind, question).sum(axis=0)
    start = jax.nn.log_softmax(start)
    weights = jnp.zeros(NUM_WEIGHTS) if weights is None else weights

    def one_round(state, number):
        belief, sums, before, check = state
        first = number == 0
        log_instruction = speakers.log_instruction(task, first)
        belief = _after(belief[:, None] + speakers.log_transition(task), 0)
        predicted_instruction = _after(belief[:, None] + log_instruction, 0)
        instruction = instruct(number, predicted_instruction)
        told = log_instruction[:, instruction]
        bayes = jnp.where(evidence.instructions, jax.nn.log_softmax(belief + told), belief)
        sums = sums._replace(
            additive=sums.additive.at[1].add(activation(told)),
            printed=sums.printed + _log_careful(told + start),
        )
        printed, additive = (
            _of_log_careful(sums.printed, start),
            _of_odds(weights @ sums.additive, start),
        )
        belief = jnp.stack([bayes, printed, additive])[evidence.rule]
        heard = belief

        log_modes = speakers.log_modes(task, check, first)
        modes = jnp.arange(len(log_modes))

        def answering(choose):
            """An answer, its log-probability, what was predicted, beliefs, likelihood."""
            joint = heard[:, None] + log_modes
            said = jnp.broadcast_to(log_modes, joint.shape)
            answer, log_p, predicted, answered = jnp.zeros_like(before.answer), 0.0, [], []
            for place in range(length):
                of_modes = jax.vmap(
                    lambda c, m, place=place, answer=answer: speakers.log_answer(
                        task, kind, c, m, question, before.answer, answer, place
                    ),
                    in_axes=(None, 0),
                )
                likelihood = jax.vmap(of_modes, in_axes=(0, None))(concepts, modes)  # [C, M, S + 1]
                predicted.append(_after(joint[..., None] + likelihood, (0, 1)))
                symbol = choose(place, predicted[-1])
                answer = answer.at[place].set(symbol)
                log_p = log_p + predicted[-1][symbol]
                said = said + likelihood[..., symbol]
                learnt = joint + likelihood[..., symbol]
                learnt = learnt - jax.nn.logsumexp(learnt)
                joint = jnp.where(is_bayes & evidence.answers, learnt, joint)
                answered.append(jax.nn.logsumexp(joint, axis=1))
            return answer, log_p, predicted, answered, said

        now = before._replace(number=number)
        answer, log_p, predicted, answered, said = answering(
            lambda place, log_probs: speak(now, place, log_probs)
        )
        belief, drafts, confidence = answered[-1], None, jnp.exp(log_p)
        if draft is not None:

            def one_draft(key):
                return answering(
                    lambda place, log_probs: jax.random.categorical(
                        jax.random.fold_in(key, place), log_probs
                    )
                )[:2]

            drafts = drafts_of(task, kind, question, *jax.vmap(one_draft)(draft(number)))
            confidence = confidence_of(task, kind, question, answer, log_p, drafts)

        fine = speakers.quality_of(task, kind, question, answer).fine
        log_check = speakers.log_check(task, fine)
        predicted_check = _after(belief[:, None] + log_check, 0)
        check = judge(number, answer, predicted_check)
        checked = speakers.log_given_check(log_check, check)
        learnt = jax.nn.log_softmax(belief + checked)
        belief = jnp.where(is_bayes & evidence.checks, learnt, belief)
        given = jax.nn.logsumexp(said, axis=1)  # log-likelihood of the answer, by concept
        sums = Sums(
            sums.additive.at[2].add(activation(given)).at[3].add(activation(checked)),
            sums.printed + _log_careful(given + start),
        )
        reading = Reading(
            predicted_instruction,
            jnp.stack(predicted),
            predicted_check,
            heard,
            jnp.stack(answered),
            belief,
        )
        carried = jnp.where(evidence.memory, belief, start)
        before = Before(number, answer, confidence)
        return (carried, sums, before, check), (Said(instruction, answer, check), reading, drafts)

    nothing = jnp.full(length, NONE, question.dtype)
    number = jnp.zeros((), question.dtype)
    sums = Sums(jnp.zeros(NUM_WEIGHTS, start.dtype).at[0].set(1), jnp.zeros((), start.dtype))
    before = Before(number, nothing, jnp.zeros((), start.dtype))
    _, found = jax.lax.scan(
        one_round, (start, sums, before, number), jnp.arange(task.rounds, dtype=number.dtype)
    )
    return found


def _log_careful(log_weights: Float[Array, " c"]) -> Float[Array, ""]:
    """Log-probability of the careful half of the concepts."""
    return jax.nn.log_sigmoid(activation(log_weights))


def _of_odds(odds: Float[Array, ""], start: Float[Array, " c"]) -> Float[Array, " c"]:
    """The belief of these log-odds; within each half as at the start."""
    half = start.shape[0] // 2
    careful = jnp.arange(start.shape[0]) >= start.shape[0] - half
    of_half = jnp.where(careful, jax.nn.log_sigmoid(odds), jax.nn.log_sigmoid(-odds))
    whole = jnp.where(careful, jax.nn.logsumexp(start[-half:]), jax.nn.logsumexp(start[:-half]))
    impossible = jnp.isneginf(start)
    share = jnp.where(impossible, -jnp.inf, start - jnp.where(impossible, 0, whole))
    return jax.nn.log_softmax(share + of_half)


def _of_log_careful(log_p: Float[Array, ""], start: Float[Array, " c"]) -> Float[Array, " c"]:
    """The belief in which the careful half has exp(log_p), at most almost 1."""
    log_p = jnp.minimum(log_p, -1e-6)
    return _of_odds(log_p - jnp.log(-jnp.expm1(log_p)), start)


def read(
    task: TaskConfig,
    evidence: Evidence,
    dialogue: Dialogue,
    weights: Float[Array, " w"] | None = None,
) -> Reading:
    """What a reader makes of a dialogue that is given; of one dialogue. Arguments as in `walk`."""
    _, reading, _ = walk(
        task,
        evidence,
        dialogue.kind,
        dialogue.question,
        instruct=lambda number, _: dialogue.instructions[number],
        speak=lambda before, place, _: dialogue.answers[before.number, place],
        judge=lambda number, answer, _: dialogue.checks[number],
        weights=weights,
    )
    return reading


def next_token(
    task: TaskConfig,
    evidence: Evidence,
    tokens: Int[Array, " l"],
    weights: Float[Array, " w"] | None = None,
) -> Float[Array, "l v"]:
    """Row p holds a reader's log-probabilities of token p + 1, given those up to p.

    Of one dialogue, as a language model's rows. The last, after the last check, is all zero.

    Args:
      task, evidence, weights: as in `walk`.
      tokens: a whole dialogue of the task's layout.
    """
    dialogue, vocabulary, layout = from_tokens(task, tokens), vocabulary_of(task), layout_of(task)
    reading = read(task, evidence, dialogue, weights)
    question = question_ahead(task, dialogue.kind, dialogue.question)  # [Q, S + 1]

    def rows(log_probs, tokens):
        """In the columns of these tokens."""
        empty = jnp.full((*log_probs.shape[:-1], vocabulary.size), -jnp.inf)
        return empty.at[..., tokens].set(log_probs)

    symbols = vocabulary.first_symbol + jnp.arange(vocabulary.num_symbols + 1)
    symbols = symbols.at[-1].set(vocabulary.pad)
    instructions = vocabulary.first_instruction + jnp.arange(vocabulary.num_instructions)
    checks = vocabulary.first_check + jnp.arange(2)
    rounds = jnp.concatenate(
        [
            rows(reading.instruction, instructions)[:, None],
            rows(reading.answer, symbols),
            rows(reading.check, checks)[:, None],
        ],
        axis=1,
    )
    flat = rounds.reshape(task.rounds * layout.round_length, -1)
    nothing = jnp.zeros((1, vocabulary.size))
    return jnp.concatenate([rows(question, symbols), flat, nothing])


def question_ahead(
    task: TaskConfig, kind: Int[Array, ""], question: Int[Array, " q"]
) -> Float[Array, "q symbols"]:
    """Log-probabilities of the symbols of a question, each given those before."""
    likelihood = _question_likelihood(task, kind, question)
    said = log_question(task, kind, question)
    before = jnp.cumsum(said, axis=0) - said
    belief = jax.nn.log_softmax(speakers.log_prior(task) + before, axis=-1)
    return _after(belief[..., None] + likelihood, 1)


def _after(joint: Float[Array, "..."], axis: int | tuple[int, ...]) -> Float[Array, "..."]:
    """Log of the sum over what is hidden, of log-probabilities that sum to one."""
    return jax.nn.logsumexp(joint, axis=axis)


def log_odds(log_weights: Float[Array, "*b c"]) -> Float[Array, "*b"]:
    """Log-odds of the careful half of the concepts; of two, of the careful one."""
    half = log_weights.shape[-1] // 2
    careful = jax.nn.logsumexp(log_weights[..., -half:], axis=-1)
    return careful - jax.nn.logsumexp(log_weights[..., :-half], axis=-1)


def activation(belief: Float[Array, "*b c"]) -> Float[Array, "*b"]:
    """The log-odds of a belief or of a single piece of evidence, within +-MOST_ODDS."""
    return jnp.clip(log_odds(belief), -MOST_ODDS, MOST_ODDS)
