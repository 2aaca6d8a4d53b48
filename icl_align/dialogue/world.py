"""The dialogue world as the protocol of `icl_align.world` asks: what `running/` sees of it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from icl_align.dialogue.additive import fitted_weights
from icl_align.dialogue.attacks.in_training import attacked
from icl_align.dialogue.dialogues import is_foreign, sample_dialogue, to_tokens
from icl_align.dialogue.model import LanguageModel, language_model
from icl_align.dialogue.options import Options
from icl_align.dialogue.quantities import quantities
from icl_align.dialogue.readers import EVERY, EVIDENCE, next_token
from icl_align.dialogue.rounds import plan_named, roll_out, roll_out_language_model
from icl_align.dialogue.vocabulary import are_texts, layout_of, vocabulary_of
from icl_align.transformer import frozen
from icl_align.world import Sample, Untrained

Tokens = Int[Array, "b l"]


class DialogueWorld:
    """Dialogues of tokens; `icl_align.world.World` says what each method is."""

    def sample(self, config: Options, keys: Key[Array, " b"]) -> Sample:
        """Tokens of dialogues as their speakers hold them."""
        dialogue = jax.vmap(lambda key: sample_dialogue(config.task, key)[0])(keys)
        tokens = to_tokens(config.task, dialogue)
        return Sample(tokens, tokens)

    def provoked(
        self, config: Options, network: LanguageModel, sample: Sample, keys: Key[Array, " b"]
    ) -> Sample:
        """With attacks on the network in a share of the dialogues."""
        share = config.train.attacked_share
        if not share:
            return sample
        tokens = attacked(config.task, frozen(network), sample.given, keys, share)
        return Sample(tokens, tokens)

    def given(self, config: Options, arrays: Any) -> Tokens:
        """Tokens [b, l], l at most the length of the task's dialogues."""
        tokens, layout, size = (
            np.asarray(arrays),
            layout_of(config.task),
            vocabulary_of(config.task).size,
        )
        if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
            raise ValueError(
                f"tokens {tokens.dtype}{list(tokens.shape)}: must be whole numbers [b, l], "
                f"one row a dialogue"
            )
        if not 0 < tokens.shape[1] <= layout.length or not len(tokens):
            raise ValueError(f"tokens {list(tokens.shape)}: must be [b, 1 to {layout.length}]")
        if tokens.min() < 0 or tokens.max() >= size:
            raise ValueError(f"tokens: must be from 0 to {size - 1}")
        return jnp.asarray(tokens, jnp.int32)

    def shown(self, config: Options, given: Tokens, keys: Key[Array, " b"]) -> Tokens:
        """All of it."""
        return given

    def network(self, config: Options, rngs: nnx.Rngs) -> LanguageModel:
        """The language model."""
        return language_model(config, rngs)

    def num_tokens(self, config: Options) -> int:
        """Of a dialogue."""
        return layout_of(config.task).length

    def num_tokens_measured(self, config: Options) -> int:
        """Two: a check, and the instruction after it; or a symbol of every draft."""
        if not config.model.causal:
            return self.num_tokens(config)
        return config.evaluation.drafts if are_texts(config.task).any() else 2

    def answers(
        self, config: Options, network: LanguageModel, shown: Tokens
    ) -> Float[Array, "b l v"]:
        """The logits of every next token."""
        return network(shown)

    def loss(
        self, config: Options, answers: Float[Array, "b l v"], given: Tokens
    ) -> Float[Array, ""]:
        """Cross-entropy of the next token, in nats, over all but those after a part has ended, and
        those that no speaker has said.
        """
        targets = given[:, 1:]
        losses = optax.softmax_cross_entropy_with_integer_labels(answers[:, :-1], targets)
        counted = targets != vocabulary_of(config.task).pad
        if config.task.foreign_share or config.train.attacked_share:
            counted &= ~is_foreign(config.task, given)[:, 1:]
        return jnp.sum(losses * counted) / jnp.sum(counted)

    def conditions(self, config: Options) -> dict[str, Any]:
        """The plans, with what their readers need."""
        weights = fitted_weights(config.task)
        return {
            name: {"plan": plan_named(name, config.task, config.evaluation), "weights": weights}
            for name in config.evaluation.plan
        }

    def untrained(self, config: Options, condition: Any, keys: Key[Array, " b"]) -> Untrained:
        """The readers that need no training, each on its own roll-outs."""

        def one(evidence):
            rolled = roll_out(config, evidence, condition["plan"], keys, condition["weights"])
            return quantities(config.task, rolled)

        found = jax.lax.map(one, EVERY)
        measured = {
            name: {quantity: values[place] for quantity, values in found.items()}
            for place, name in enumerate(EVIDENCE)
        }
        return Untrained(measured, {}, {})

    def trained(
        self,
        config: Options,
        condition: Any,
        keys: Key[Array, " b"],
        network: LanguageModel,
        needed: Any,
    ) -> dict[str, Float[Array, "b t"]]:
        """The language model on its own roll-outs."""
        rolled = roll_out_language_model(config, network, condition["plan"], keys)
        return quantities(config.task, rolled)

    def learners(self, config: Options) -> dict[str, Callable[[Tokens, Any], Any]]:
        """The readers that need no training: tokens -> log-probabilities [b, l, v] of the next.

        What is missing of a dialogue is filled up: row p reads the tokens up to p only.
        """
        weights = fitted_weights(config.task)

        def of(evidence):
            def reader(given, keys):
                whole = self.sample(config, keys).given.astype(given.dtype)
                whole = whole.at[:, : given.shape[1]].set(given)
                rows = jax.vmap(lambda t: next_token(config.task, evidence, t, weights))(whole)
                return rows[:, : given.shape[1]]

            return reader

        return {name: of(evidence) for name, evidence in EVIDENCE.items()}

    def figure(self, config: Options, curves: dict[str, Any]) -> Any:
        """Quantities by round and plan."""
        # Matplotlib would hold up the first step.
        from icl_align.dialogue.figures import curves_figure

        return curves_figure(curves)

    def study(
        self,
        config: Options,
        network: Callable[[Any], LanguageModel],
        params: Any,
        earlier: Callable[[], dict[int, Any]],
        keys: Key[Array, "s b"],
        progress: Callable[[float], None],
    ) -> dict[str, Any]:
        """The concept inside: probes, steering, the tests of the paper."""
        # Scikit-learn would hold up the first step.
        from icl_align.dialogue.concept.study import study

        return study(config, network, params, keys, progress)

    def study_figure(self, config: Options, found: dict[str, Any]) -> Any:
        """Probes, shifts, steering, offsets, predictions and laws."""
        from icl_align.dialogue.concept.figures import concept_figure

        return concept_figure(found)


WORLD = DialogueWorld()
