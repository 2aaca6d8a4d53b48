"""How the speakers of a dialogue talk: every distribution that dialogues are drawn from.

Sampling (`dialogues`) and exact reading (`readers`) both use these functions and no others, so they
cannot disagree. All are written for one dialogue; symbols of question and answer are numbered from
0, and a place after the end of a shorter kind's question or answer holds the symbol S, of which the
last entry of a distribution is the probability.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from icl_align.dialogue.kinds.kind import NONE, Kind
from icl_align.dialogue.options import TaskConfig
from icl_align.dialogue.vocabulary import (
    FINE,
    FLAWED,
    INSTRUCTIONS_PER_CONCEPT,
    UNCHECKED,
    kinds_of,
    vocabulary_of,
)

FRESH, KEPT, CORRECTED = range(3)  # how an answer comes about


class Quality(NamedTuple):
    """What there is to say of an answer; see `kinds.kind.Kind`."""

    quality: Float[Array, ""]
    biased: Float[Array, ""]
    fine: Bool[Array, ""]
    category: Int[Array, ""]


def log_prior(task: TaskConfig) -> Float[Array, " c"]:
    """Of the concepts."""
    return jnp.log(jnp.asarray(task.prior))


def log_transition(task: TaskConfig) -> Float[Array, "c c"]:
    """[before, after]: with the hazard the concept is drawn anew from the prior."""
    stays = (1 - task.hazard) * jnp.eye(task.num_concepts)
    return jnp.log(stays + task.hazard * jnp.asarray(task.prior))


def log_instruction(task: TaskConfig, first: Bool[Array, ""] | bool) -> Float[Array, "c i"]:
    """Of each instruction, under each concept; the neutral one has a share of its own at first.

    A concept's own instructions are exp(instruction_strength) times as likely as another's.
    """
    num_concepts = task.num_concepts
    groups = jax.nn.softmax(task.instruction_strength * jnp.eye(num_concepts), axis=-1)
    own = jnp.repeat(groups / INSTRUCTIONS_PER_CONCEPT, INSTRUCTIONS_PER_CONCEPT, axis=-1)
    neutral = jnp.where(first, task.first_neutral_share, task.neutral_share)
    whole = jnp.concatenate([jnp.ones((num_concepts, 1)) * neutral, (1 - neutral) * own], axis=-1)
    return jnp.log(whole)


def keep_probability(
    task: TaskConfig, check: Int[Array, ""], first: Bool[Array, ""] | bool
) -> Float[Array, ""]:
    """That the next answer is the previous one, after a check; in the first round there is none."""
    checked = jnp.where(check == FINE, task.keep_fine, task.keep_flawed)
    return jnp.where(first, 0.0, jnp.where(check == UNCHECKED, task.keep_unchecked, checked))


def log_modes(
    task: TaskConfig, check: Int[Array, ""], first: Bool[Array, ""] | bool
) -> Float[Array, " modes"]:
    """Of the ways in which the next answer comes about, after a check: FRESH, KEPT, CORRECTED.

    The last only where some answers are corrected.
    """
    keep = keep_probability(task, check, first)
    if not task.correct_flawed:
        return jnp.log(jnp.stack([1 - keep, keep]))
    corrects = jnp.where(first | (check != FLAWED), 0.0, task.correct_flawed)
    return jnp.log(jnp.stack([(1 - keep) * (1 - corrects), keep, (1 - keep) * corrects]))


def log_check(task: TaskConfig, fine: Bool[Array, ""]) -> Float[Array, "c 2"]:
    """Of FLAWED and FINE, under each concept, for an answer that is fine or not."""
    accuracy = jnp.broadcast_to(jnp.asarray(task.critic_accuracy), (task.num_concepts,))
    says_fine = jnp.where(fine, accuracy, 1 - accuracy)
    return jnp.log(jnp.stack([1 - says_fine, says_fine], axis=-1))


def log_given_check(log_check: Float[Array, "c 2"], check: Int[Array, ""]) -> Float[Array, " c"]:
    """Of the check that came, under each concept; that none came says nothing."""
    return jnp.where(check == UNCHECKED, 0.0, log_check[:, jnp.minimum(check, FINE)])


def log_question(
    task: TaskConfig,
    kind: Int[Array, ""],
    concept: Int[Array, ""] | int,
    question: Int[Array, " q"],
    place: int,
) -> Float[Array, " symbols"]:
    """Of the symbol of the question at a place, given those before it."""

    def of(kind):
        if place >= kind.question_length:
            return None
        own = question[: kind.question_length]
        return kind.question(_care(task, concept), own, place)

    return _of_kind(task, kind, of)


def log_answer(
    task: TaskConfig,
    kind: Int[Array, ""],
    concept: Int[Array, ""] | int,
    mode: Int[Array, ""] | int,
    question: Int[Array, " q"],
    previous: Int[Array, " a"],
    answer: Int[Array, " a"],
    place: int,
) -> Float[Array, " symbols"]:
    """Of the symbol of an answer at a place, given those before it.

    Args:
      task: options.
      kind: number among the kinds that are mixed.
      concept, mode: what is hidden.
      question: symbols.
      previous: the answer before, NONE in the first round.
      answer: its symbols before `place` are read.
      place: a number.
    """

    def of(kind):
        if place >= kind.answer_length:
            return None
        shorter = kind.answer_length
        return kind.answer(
            jnp.where(mode == CORRECTED, 1.0, _care(task, concept)),
            mode == KEPT,
            question[: kind.question_length],
            previous[:shorter],
            answer[:shorter],
            place,
        )

    logits = _of_kind(task, kind, of)
    sharper = logits / task.first_answer_temperature
    total = jax.nn.logsumexp(sharper)
    # Before there is an answer none can be kept: then no symbol has a probability.
    is_first = (previous[0] == NONE) & jnp.isfinite(total)
    return jnp.where(is_first, sharper - jnp.where(is_first, total, 0), logits)


def quality_of(
    task: TaskConfig,
    kind: Int[Array, ""],
    question: Int[Array, " q"],
    answer: Int[Array, " a"],
) -> Quality:
    """How good an answer is."""

    def of(kind: Kind):
        own = question[: kind.question_length], answer[: kind.answer_length]
        quality = Quality(
            kind.quality(*own), kind.biased(*own), kind.fine(*own), kind.category(*own)
        )
        dtypes = (float, float, bool, int)
        return Quality(*(jnp.asarray(q, d) for q, d in zip(quality, dtypes, strict=True)))

    return jax.lax.switch(kind, [lambda kind=kind: of(kind) for kind in kinds_of(task)])


def _care(task: TaskConfig, concept: Int[Array, ""] | int) -> Float[Array, ""]:
    """In [0, 1], from the first concept to the last."""
    return jnp.linspace(0.0, 1.0, task.num_concepts)[concept]


def _of_kind(task: TaskConfig, kind: Int[Array, ""], of) -> Float[Array, " symbols"]:
    """What `of` says of a kind, over all symbols and the one that stands for none."""
    num_symbols = vocabulary_of(task).num_symbols

    def padded(kind):
        own = of(kind)
        if own is None:
            own = jnp.log(jnp.arange(num_symbols + 1) == num_symbols)
        missing = num_symbols + 1 - len(own)
        return jnp.pad(own.astype(float), (0, missing), constant_values=-jnp.inf)

    branches = [lambda kind=one: padded(kind) for one in kinds_of(task)]
    return branches[0]() if len(branches) == 1 else jax.lax.switch(kind, branches)
