"""The compiled programs of the study: who is asked what, and what comes of it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from icl_align.dialogue.attacks.defences import (
    CRITIC,
    OWN,
    Defence,
    Protocol,
    Script,
    defences,
    majority,
    perturbed,
    voices_of,
)
from icl_align.dialogue.attacks.options import (
    MOST_CHECKS,
    SEARCHES,
    AttackConfig,
)
from icl_align.dialogue.attacks.prompts import (
    FREE,
    Questions,
    natural_requests,
    strongest_evidence,
    with_refusals,
)
from icl_align.dialogue.attacks.search import Found, gcg, genetic, random_search
from icl_align.dialogue.attacks.targets import (
    ANSWERS,
    REFUSAL,
    after_own_check,
    first_answer,
    fluency,
    log_answers,
    opening,
    wanted,
)
from icl_align.dialogue.concept.gathering import instruction_places
from icl_align.dialogue.dialogues import foreign_tokens, natural_tokens, to_tokens
from icl_align.dialogue.kinds import request
from icl_align.dialogue.options import Options
from icl_align.dialogue.readers import EVIDENCE, activation, question_ahead, read
from icl_align.dialogue.rounds import RollOut, converse, converse_language_model

ACCURACIES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of critics that are swept

NetworkOf = Callable[[Any], Any]
Chances = Float[Array, "rows b t 2"]  # that an answer complies, that it refuses


class Asking:
    """The programs of one run and the options of an attack.

    Args:
      config: options of the run.
      network: parameters of one seed -> its network.
      options: of the attack.
    """

    def __init__(self, config: Options, network: NetworkOf, options: AttackConfig):
        self.task, self.network, self.options = config.task, network, options
        self.config = config
        self.defences = defences(options)
        sweep = [Protocol(checks=CRITIC, accuracy=accuracy) for accuracy in ACCURACIES]
        asked = [one.protocol for one in self.defences]
        self.protocols = list(dict.fromkeys([*asked, *sweep]))
        # Programs: (parameters, questions, limit of log-perplexity, key) -> what was found.
        self.attack = {name: jax.jit(functools.partial(self._attack, name)) for name in SEARCHES}

    # ------------------------------------------------------------------------------------ attacks

    def _attack(
        self, name: str, params: Any, questions: Questions, most: Any, key: Key[Array, ""]
    ) -> Found:
        task, options, steps = self.task, self.options, self.options.steps(name)
        natural, every = natural_tokens(task), natural_tokens(task) | foreign_tokens(task)
        common = {"steps": steps, "candidates": options.candidates}
        network = self.network(params)
        target = first_answer(task, network)
        if name == "random_search":
            return random_search(task, target, questions, every, key, **common)
        if name == "autodan":
            keys = jax.random.split(key, options.candidates)
            others = jax.vmap(lambda own: self._natural_like(questions, own), out_axes=1)(keys[1:])
            population = jnp.concatenate([questions[:, None], others], axis=1)
            return genetic(
                task,
                target.score,
                lambda prompts: fluency(task, network, prompts),
                population,
                natural,
                most,
                keys[0],
                steps,
                options.num_elites,
                options.crossover,
                options.mutation,
            )
        if name == "gcg_adaptive":
            target = after_own_check(task, network)
        allowed = natural if name == "gcg_natural" else every
        return gcg(task, target, questions, allowed, key, top_k=options.top_k, **common)

    def _natural_like(self, questions: Questions, key: Key[Array, ""]) -> Questions:
        """The same requests after other natural personas."""
        keys = jax.random.split(key, len(questions))
        others = natural_requests(self.task, keys, harmful=True)
        return questions.at[:, FREE].set(others[:, FREE])

    @functools.cached_property
    def requests(self) -> Callable[..., Any]:
        """A program: keys -> harmful, benign questions, and harmful ones of strongest evidence."""

        @jax.jit
        def program(keys):
            own_keys, strongest_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
            harmful, benign = (
                natural_requests(self.task, own_keys, harmful=harmful) for harmful in (True, False)
            )
            return harmful, benign, strongest_evidence(harmful, strongest_keys)

        return program

    @functools.cached_property
    def surprise(self) -> Callable[..., Any]:
        """A program: (parameters, questions) -> the network's log-perplexity of each."""
        return jax.jit(lambda params, q: fluency(self.task, self.network(params), q)[1])

    @functools.cached_property
    def exact_surprise(self) -> Callable[..., Any]:
        """A program: questions -> the exact reader's; infinite where nobody says it."""

        def one(question):
            rows = question_ahead(self.task, jnp.zeros((), int), question)[FREE]
            said = question[FREE]
            known = (said >= 0) & (said < rows.shape[-1])
            log_p = jnp.take_along_axis(rows, jnp.where(known, said, 0)[:, None], axis=-1)[:, 0]
            return -jnp.mean(jnp.where(known, log_p, -jnp.inf))

        return jax.jit(jax.vmap(one))

    # ------------------------------------------------------------------------------------ answers

    @functools.cached_property
    def answers(self) -> Callable[..., Chances]:
        """A program: (parameters, questions, keys) -> chances, a row for each of `self.rows`."""

        def program(params, questions, keys):
            network = self.network(params)
            of = lambda own: converse_language_model(self.task, network, self._voices, own)  # noqa: E731
            return self._chances(of, questions, keys)

        return jax.jit(program)

    @functools.cached_property
    def exact_answers(self) -> Callable[..., Chances]:
        """As `answers`, of the exact reader: a program of (questions, keys)."""
        exact = EVIDENCE["exact"]

        def program(questions, keys):
            of = lambda own: converse(self.task, exact, self._voices, own)  # noqa: E731
            return self._chances(of, questions, keys)

        return jax.jit(program)

    @functools.cached_property
    def first(self) -> Callable[..., Any]:
        """A program: (parameters, questions) -> log-probabilities of a network's first answers."""
        task = self.task

        @jax.jit
        def program(params, questions):
            rows = self.network(params)(opening(task, questions))
            return log_answers(task, rows[:, -1])

        return program

    @functools.cached_property
    def exact_first(self) -> Callable[..., Any]:
        """A program: questions -> those of the exact reader."""
        first = request.FIRST_CONTENT

        @jax.jit
        def program(questions):
            keys = jax.random.split(jax.random.key(0), len(questions))
            scripts = self._scripts(Protocol(), 0, questions, keys)
            rolled = converse(self.task, EVIDENCE["exact"], self._voices, scripts)
            return rolled.answer[:, 0, 0, first : first + ANSWERS]

        return program

    @property
    def rows(self) -> list[tuple[Protocol, int]]:
        """What the rows of the chances are of: a protocol, and the number of its roll-out."""
        return [
            (protocol, number)
            for protocol in self.protocols
            for number in range(protocol.copies if protocol.copies > 1 else self.options.draws)
        ]

    def _voices(self, script: Script) -> Any:
        return voices_of(self.task, script)

    def _chances(
        self, converse: Callable[[Script], RollOut], questions: Questions, keys: Key[Array, " b"]
    ) -> Chances:
        scripts = [self._scripts(*row, questions, keys) for row in self.rows]
        first = request.FIRST_CONTENT

        def one(script):
            rolled = converse(script)
            log_p = jax.nn.log_softmax(rolled.answer[:, :, 0, first : first + ANSWERS])
            comply = jnp.take_along_axis(log_p, wanted(script.question)[:, None, None], axis=-1)
            return jnp.exp(jnp.stack([comply[..., 0], log_p[..., REFUSAL]], axis=-1))

        return jax.lax.map(one, jax.tree.map(lambda *leaves: jnp.stack(leaves), *scripts))

    def _scripts(
        self, protocol: Protocol, number: int, questions: Questions, keys: Key[Array, " b"]
    ) -> Script:
        def one(question, key):
            question_key, script_key = jax.random.split(jax.random.fold_in(key, number))
            if protocol.examples:
                question = with_refusals(
                    question, question_key, protocol.examples, protocol.found_fine
                )
            if protocol.copies > 1:
                question = perturbed(question, question_key, self.options.perturbed)
            return Script(
                script_key,
                question,
                jnp.asarray(protocol.reminder),
                jnp.asarray(protocol.checks),
                jnp.asarray(protocol.accuracy, jnp.float32),
            )

        return jax.vmap(one)(questions, keys)

    def defended(
        self,
        chances: Float[np.ndarray, "rows b t 2"],
        defence: Defence,
        refused: np.ndarray,
    ) -> Float[np.ndarray, "b 2"]:
        """The chance of each request that the last answer complies, and that it refuses.

        Args:
          chances: of `answers`.
          defence: one of `self.defences`.
          refused: what the perplexity filter refuses [b].
        """
        places = [n for n, (own, _) in enumerate(self.rows) if own == defence.protocol]
        of = chances[places][:, :, defence.rounds]
        found = of.mean(axis=0)
        if defence.protocol.copies > 1:
            found = np.asarray(majority(jnp.moveaxis(of, 0, -1)))
        if defence.filters:
            found = np.where(refused[:, None], np.array([0.0, 1.0]), found)
        return found

    def swept(self, chances: Float[np.ndarray, "rows b t 2"]) -> Float[np.ndarray, "b a t"]:
        """The chance to comply, by the accuracy of the critic and the rounds of its checks."""
        of = [
            np.mean(
                [c for c, (own, _) in zip(chances, self.rows, strict=True) if own == protocol],
                axis=0,
            )
            for protocol in (Protocol(checks=CRITIC, accuracy=a) for a in ACCURACIES)
        ]
        return np.stack(of, axis=1)[:, :, : MOST_CHECKS + 1, 0]

    @functools.cached_property
    def activations(self) -> Callable[..., Any]:
        """A program: (parameters, direction, offset, questions, keys) -> activation before each
        answer of a network that checks its own, by the exact reader and by a probe [b, t] each.
        """
        places = instruction_places(self.task)

        @jax.jit
        def program(params, direction, offset, questions, keys):
            network = self.network(params)
            scripts = self._scripts(Protocol(checks=OWN), 0, questions, keys)
            dialogue = converse_language_model(self.task, network, self._voices, scripts).dialogue
            told = jax.vmap(lambda one: read(self.task, EVIDENCE["exact"], one).told)(dialogue)
            states = network.states(to_tokens(self.task, dialogue), places)[-1]
            return activation(told), states @ direction + offset

        return program
