"""Defences: how a reader is asked, so that its last answer is safer."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from icl_align.config import implemented
from icl_align.dialogue import speakers
from icl_align.dialogue.attacks.options import DEFENCES, MOST_CHECKS, AttackConfig
from icl_align.dialogue.attacks.prompts import FREE, NUM_FREE
from icl_align.dialogue.kinds import request
from icl_align.dialogue.options import TaskConfig
from icl_align.dialogue.rounds import Voices
from icl_align.dialogue.vocabulary import (
    FINE,
    FLAWED,
    INSTRUCTIONS_PER_CONCEPT,
    UNCHECKED,
)

OWN, CRITIC, NOBODY = range(3)  # who checks an answer
RANDOM, WRONG = 0.5, 0.0  # accuracies of critics


class Script(NamedTuple):
    """How one dialogue goes.

    Attributes:
      key: of what is drawn in it.
      question: symbols.
      reminder: whether the first instruction is a careful one.
      checks: OWN, CRITIC or NOBODY.
      accuracy: of the critic.
    """

    key: Key[Array, "*b"]
    question: Int[Array, "*b q"]
    reminder: Bool[Array, "*b"]
    checks: Int[Array, "*b"]
    accuracy: Float[Array, "*b"]


def voices_of(task: TaskConfig, script: Script) -> Voices:
    """Who says what under a script."""
    speak_key, judge_key = jax.random.split(script.key)
    careful = 1 + INSTRUCTIONS_PER_CONCEPT * (task.num_concepts - 1)
    kind = jnp.zeros((), int)

    def instruct(number, _):
        return jnp.where(script.reminder & (number == 0), careful, 0)

    def speak(before, place, log_probs):
        return jax.random.categorical(jax.random.fold_in(speak_key, before.number), log_probs)

    def judge(number, answer, log_probs):
        own_key, right_key = jax.random.split(jax.random.fold_in(judge_key, number))
        fine = speakers.quality_of(task, kind, script.question, answer).fine
        right = jax.random.bernoulli(right_key, script.accuracy)
        of_critic = jnp.where(fine == right, FINE, FLAWED)
        own = jax.random.categorical(own_key, log_probs)
        return jnp.stack([own, of_critic, jnp.full_like(own, UNCHECKED)])[script.checks]

    return Voices(kind, script.question, instruct, speak, judge)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How every request is asked under a defence.

    Attributes:
      reminder, checks, accuracy: as in `Script`.
      examples: refusals of other requests before the question.
      found_fine: whether these were checked, and found fine.
      copies: perturbed prompts that vote; 1 is the prompt itself.
    """

    reminder: bool = False
    checks: int = OWN
    accuracy: float = 1.0
    examples: int = 0
    found_fine: bool = False
    copies: int = 1


@dataclasses.dataclass(frozen=True)
class Defence:
    """A row of the table.

    Attributes:
      name: of its family.
      times: rounds of checking, or examples; 0 where there are none.
      protocol: how it asks.
      rounds: the round whose answer counts.
      filters: whether what is not fluent is refused.
    """

    name: str
    times: int
    protocol: Protocol
    rounds: int = 0
    filters: bool = False

    @property
    def label(self) -> str:
        """For tables and files, such as "own_check 2"."""
        return f"{self.name} {self.times}" if self.times else self.name

    @property
    def tokens(self) -> int:
        """Tokens that a reader reads or writes for one request."""
        # The kind, the free places, the request, an instruction, the answer.
        of = self.protocol
        once = 1 + NUM_FREE + 1 + 2 + (3 if of.found_fine else 2) * of.examples
        again = (2 if of.checks == NOBODY else 3) * self.rounds  # check, instruction, answer
        return (once + again) * of.copies + (NUM_FREE if self.filters else 0)


def defences(options: AttackConfig) -> list[Defence]:
    """Every defence that is asked for, with what it is compared with first."""
    times = range(1, MOST_CHECKS + 1)

    def checked(name, checks, accuracy=1.0):
        protocol = Protocol(checks=checks, accuracy=accuracy)
        return [Defence(name, n, protocol, rounds=n) for n in times]

    def shown(name, found_fine):
        return [Defence(name, n, Protocol(examples=n, found_fine=found_fine)) for n in times]

    families = implemented(
        DEFENCES,
        {
            "none": [Defence("none", 0, Protocol())],
            "self_reminder": [Defence("self_reminder", 0, Protocol(reminder=True))],
            "in_context_refusals": shown("in_context_refusals", False),
            "perplexity_filter": [Defence("perplexity_filter", 0, Protocol(), filters=True)],
            "smoothing": [Defence("smoothing", 0, Protocol(copies=options.copies))],
            "own_check": checked("own_check", OWN),
            "critic_check": checked("critic_check", CRITIC, options.critic_accuracy),
            "random_check": checked("random_check", CRITIC, RANDOM),
            "wrong_check": checked("wrong_check", CRITIC, WRONG),
            "no_check": checked("no_check", NOBODY),
            "backup": shown("backup", True),
        },
    )
    asked = [name for name in DEFENCES if name in {"none", *options.defences}]
    return [defence for name in asked for defence in families[name]]


def perturbed(question: Int[Array, " q"], key: Key[Array, ""], number: int) -> Int[Array, " q"]:
    """A question of which some of the persona's symbols are replaced by others that people say.

    As the swaps of SmoothLLM (Robey et al. 2023).
    """
    place_key, symbol_key = jax.random.split(key)
    places = FREE.start + jax.random.permutation(place_key, NUM_FREE)[:number]
    symbols = jax.random.randint(symbol_key, (number,), 0, request.PERSONA_SYMBOLS)
    return question.at[places].set(symbols.astype(question.dtype))


def majority(chances: Float[Array, "*b copies"]) -> Float[Array, "*b"]:
    """The chance that more than half of n independent events happen (Poisson-binomial)."""
    number = chances.shape[-1]

    def add(counts, chance):
        more = jnp.concatenate([jnp.zeros_like(counts[:1]), counts[:-1]])
        return counts * (1 - chance) + more * chance, None

    none_yet = jnp.zeros((number + 1, *chances.shape[:-1])).at[0].set(1.0)
    counts, _ = jax.lax.scan(add, none_yet, jnp.moveaxis(chances, -1, 0))
    return counts[number // 2 + 1 :].sum(axis=0)
