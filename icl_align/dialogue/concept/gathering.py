"""What the study of the concept needs of dialogues: values of each dialogue, as arrays on the host.

Readers that need no training and networks go through the same dialogues under every plan.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from icl_align.config import with_values
from icl_align.dialogue import speakers
from icl_align.dialogue.additive import fitted_weights, summed_evidence
from icl_align.dialogue.dialogues import Dialogue, sample_dialogue, to_tokens
from icl_align.dialogue.options import Options, TaskConfig
from icl_align.dialogue.quantities import quantities
from icl_align.dialogue.readers import EVERY, EVIDENCE, activation, read
from icl_align.dialogue.rounds import Plan, RollOut, plan_named, roll_out, roll_out_language_model
from icl_align.dialogue.vocabulary import are_texts, kinds_of, layout_of

# Dialogues that go through a program at once; a text takes as long as many questions.
CHUNK, CHUNK_OF_TEXTS = 256, 64

# Of the quantities; features of the others would fill the memory.
NEEDED = (
    "accuracy",
    "gain",
    "biased",
    "uncertainty",
    "confidence",
    "calibration_error_corrected",
    "activation",
)

Values = dict[str, np.ndarray]  # name -> [dialogues, rounds, ...], or [dialogues]
# Of a question: whether something in it settles the answer; NEITHER where its kind has no such.
NEITHER, AMBIGUOUS, SETTLED = -1, 0, 1
NetworkOf = Callable[[Any], nnx.Module]


def chunk_size(task: TaskConfig) -> int:
    """How many dialogues go through a program at once."""
    return CHUNK_OF_TEXTS if are_texts(task).any() else CHUNK


def instruction_places(task: TaskConfig) -> Int[Array, " t"]:
    """Where the instructions stand: the state there has to know the concept before the answer."""
    layout = layout_of(task)
    return layout.first_round + layout.round_length * jnp.arange(task.rounds)


def in_chunks(function: Callable[..., Any], size: int, *arrays: Any) -> Any:
    """`function` of arrays with a leading axis that `size` divides, that many entries at a time."""
    parts = [
        jax.device_get(function(*(array[start : start + size] for array in arrays)))
        for start in range(0, len(arrays[0]), size)
    ]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


class Programs:
    """The compiled programs of the study of one configuration.

    Args:
      config: options.
      network: parameters of one seed -> its network.
    """

    def __init__(self, config: Options, network: NetworkOf):
        self.config, self.network = config, network
        self.size = chunk_size(config.task)

    def plan(self, name: str) -> Plan:
        """A plan by name; on the host, so that all are of one type and one program."""
        plan = plan_named(name, self.config.task, self.config.evaluation)
        return jax.tree.map(np.asarray, plan)

    def of_speakers(self, keys: Key[Array, " b"]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [b, L] of dialogues of the speakers, and the exact log-odds [b, T] in them."""
        return in_chunks(self._of_speakers, self.size, keys)

    def states(
        self, params: Any, tokens: Int[np.ndarray, "b l"]
    ) -> Float[np.ndarray, "b layers t d"]:
        """The residual stream at every instruction, before the first block and after each."""
        return in_chunks(functools.partial(self._states, params), self.size, tokens)

    def told(
        self, params: Any, tokens: Int[np.ndarray, "b l"], instruction: int
    ) -> Float[np.ndarray, "b layers t d"]:
        """The same states if the instruction of that round, and of no other, were another."""
        of = functools.partial(self._told, params, np.int32(instruction))
        return in_chunks(of, self.size, tokens)

    def network_values(
        self,
        params: Any,
        plan: str,
        keys: Key[Array, " b"],
        direction: Float[np.ndarray, " d"],
        offset: float = 0.0,
        added: Float[np.ndarray, "layers d"] | None = None,
    ) -> Values:
        """What is measured of a network's own roll-outs.

        Args:
          params: of one seed.
          plan: by name.
          keys: of the dialogues.
          direction, offset: of the probe of the last layer; `reading` is what it reads there.
          added: to the stream where an answer is expected; see `roll_out_language_model`.
        """
        if added is None:
            added = np.zeros((self.config.model.num_layers + 1, len(direction)), np.float32)
        of = functools.partial(self._network_values, params, self.plan(plan), added)
        return in_chunks(lambda own: of(own, direction, offset), self.size, keys)

    def reader_values(self, plan: str, keys: Key[Array, " b"]) -> dict[str, Values]:
        """What is measured of the readers that need no training, each on its own roll-outs."""
        of = functools.partial(self._reader_values, EVERY, self.plan(plan), self._weights)
        found = in_chunks(of, self.size, keys)
        return {
            name: {quantity: values[:, place] for quantity, values in found.items()}
            for place, name in enumerate(EVIDENCE)
        }

    def exact_activation(
        self, plan: str, keys: Key[Array, " b"], hazard: float
    ) -> Float[np.ndarray, "b r t"]:
        """Activation of both forms of the exact reader in a world of another hazard."""
        of = functools.partial(self._exact_activation, self.plan(plan), np.float32(hazard))
        return in_chunks(of, self.size, keys)

    # ---------------------------------------------------------------------------------- programs

    @functools.cached_property
    def _weights(self) -> Float[Array, " w"]:
        return fitted_weights(self.config.task)

    @functools.cached_property
    def _of_speakers(self) -> Callable[..., Any]:
        task = self.config.task

        @jax.jit
        @jax.vmap
        def program(key):
            dialogue, _ = sample_dialogue(task, key, self.config.kind_evaluated)
            told = read(task, EVIDENCE["exact"], dialogue).told
            return to_tokens(task, dialogue), activation(told)

        return program

    @functools.cached_property
    def _states(self) -> Callable[..., Any]:
        places = instruction_places(self.config.task)
        return jax.jit(
            lambda params, tokens: jnp.moveaxis(self.network(params).states(tokens, places), 0, 1)
        )

    @functools.cached_property
    def _told(self) -> Callable[..., Any]:
        places = instruction_places(self.config.task)

        @jax.jit
        def program(params, instruction, tokens):
            def at(place):
                other = tokens.at[:, place].set(instruction)
                return self.network(params).states(other, place[None])[:, :, 0]

            return jnp.moveaxis(jax.lax.map(at, places), 0, 2).swapaxes(0, 1)  # [b, layers, T, d]

        return program

    @functools.cached_property
    def _network_values(self) -> Callable[..., Any]:
        config, places = self.config, instruction_places(self.config.task)
        layout = layout_of(config.task)
        offset_in_round = jnp.arange(layout.length) - layout.first_round
        # An answer's symbols are expected at the instruction and at all of them but the last.
        expects = (offset_in_round >= 0) & (
            offset_in_round % layout.round_length < layout.answer_length
        )
        expects = expects[:, None]

        @jax.jit
        def program(params, plan, added, keys, direction, offset):
            network = self.network(params)
            rolled = roll_out_language_model(config, network, plan, keys, added)
            tokens = to_tokens(config.task, rolled.dialogue)
            state = network.states(tokens, places, jnp.where(expects, added[:, None], 0))[-1]
            reading, norm = state @ direction, jnp.linalg.norm(state, axis=-1)
            cosine = reading / jnp.maximum(norm * jnp.linalg.norm(direction), 1e-9)
            values = _values(config.task, rolled)
            return values | {"reading": reading + offset, "cosine": cosine}

        return program

    @functools.cached_property
    def _reader_values(self) -> Callable[..., Any]:
        config = self.config

        @jax.jit
        def program(every, plan, weights, keys):
            def one(evidence):
                return _values(config.task, roll_out(config, evidence, plan, keys, weights))

            found = jax.lax.map(one, every)
            return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), found)

        return program

    @functools.cached_property
    def _exact_activation(self) -> Callable[..., Any]:
        forms = [EVIDENCE["exact"], EVIDENCE["exact_own_answers_ignored"]]
        both = jax.tree.map(lambda *leaves: np.stack(leaves), *forms)

        @jax.jit
        def program(plan, hazard, keys):
            config = with_values(self.config, {"task.hazard": hazard})

            def one(evidence):
                belief = roll_out(config, evidence, plan, keys).belief
                return activation(belief)

            return jnp.moveaxis(jax.lax.map(one, both), 0, 1)

        return program


def _values(task: TaskConfig, rolled: RollOut) -> dict[str, Array]:
    """The needed quantities of roll-outs, and what the paper's tests need beside them."""

    def of(dialogue: Dialogue):
        fine = jax.vmap(
            lambda answer: speakers.quality_of(task, dialogue.kind, dialogue.question, answer).fine
        )(dialogue.answers)
        return {
            "fine": 1.0 * fine,
            "evidence": summed_evidence(task, dialogue),
            "settled": settled(task, dialogue.kind, dialogue.question),
        }

    found = quantities(task, rolled)
    return {name: found[name] for name in NEEDED} | jax.vmap(of)(rolled.dialogue)


def settled(task: TaskConfig, kind: Int[Array, ""], question: Int[Array, " q"]) -> Int[Array, ""]:
    """AMBIGUOUS or SETTLED, of kinds that have both; NEITHER of others."""

    def of(kind):
        if kind.settled is None:
            return jnp.asarray(NEITHER)
        return jnp.where(kind.settled(question[: kind.question_length]), SETTLED, AMBIGUOUS)

    return jax.lax.switch(kind, [lambda kind=one: of(kind) for one in kinds_of(task)])
