"""The language model: embedding and positions, the trunk, and a read-out over the vocabulary.

Array names end in their axes: B any leading axes, T tokens, D width of the residual stream, V
tokens of the vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from icl_align.config import TrunkConfig
from icl_align.dialogue.options import Options
from icl_align.dialogue.vocabulary import layout_of, vocabulary_of
from icl_align.initialisation import learned_positions, learned_tokens, torch_linear
from icl_align.transformer import Added, Memory, Trunk


def language_model(config: Options, rngs: nnx.Rngs) -> "LanguageModel":
    """The language model of a configuration, with the tokens and the length of its task."""
    size, length = vocabulary_of(config.task).size, layout_of(config.task).length
    return LanguageModel(config.model, size, length, rngs=rngs)


class LanguageModel(nnx.Module):
    """Logits of the next token at every place.

    With `config.causal` one masked pass makes all rows; without it each row is a pass of its own
    over the tokens up to its own.

    Args:
      config: the architecture.
      vocabulary_size: tokens V.
      length: the most tokens it reads, where positions are learned.
      rngs: the stream `params` initialises the weights: embedding, positions and trunk as in GPT-2
        (Radford et al. 2019), the read-out as PyTorch's Linear.
    """

    def __init__(self, config: TrunkConfig, vocabulary_size: int, length: int, *, rngs: nnx.Rngs):
        self.causal = config.causal
        self.embedding = learned_tokens(config, vocabulary_size, rngs)
        self.positions = learned_positions(config, length, rngs)
        self.trunk = Trunk(config, rngs=rngs)
        self.read_out = torch_linear(config.width, vocabulary_size, rngs)

    def __call__(
        self, tokens: Int[Array, "*batch t"], added: Added | None = None
    ) -> Float[Array, "*batch t v"]:
        """Row p holds the logits of token p + 1, given those up to p.

        Args:
          tokens: whole numbers below V.
          added: what is added to the residual stream; see `Trunk.residual_stream`.

        Raises:
          ValueError: when learned positions do not reach as far as the tokens.
        """
        x_BTD, length = self.embedded(tokens), tokens.shape[-1]
        if self.causal:
            x_BTD = self.trunk(x_BTD, _causal_mask(length), added)
        else:
            x_BTD = self.trunk.of_prefixes(x_BTD, jnp.arange(length), added)
        return self.read_out(x_BTD)

    def states(
        self,
        tokens: Int[Array, "*batch t"],
        places: Int[Array, " n"],
        added: Added | None = None,
    ) -> Float[Array, "layers *batch n d"]:
        """The residual stream at some places, before the first block and after each.

        Args:
          tokens, added: as in `__call__`.
          places: of tokens.
        """
        x_BTD, length = self.embedded(tokens), tokens.shape[-1]
        if self.causal:
            stream = self.trunk.residual_stream(x_BTD, _causal_mask(length), added)
            return jnp.stack([x_BTD[..., places, :] for x_BTD in stream])

        def of_prefix(last):
            visible_T = jnp.arange(length) <= last
            stream = self.trunk.residual_stream(x_BTD, jnp.tile(visible_T, (length, 1)), added)
            return jnp.stack([x_BTD[..., last, :] for x_BTD in stream])

        return jnp.moveaxis(jax.lax.map(of_prefix, places), 0, -2)

    def begin(self, batch: tuple[int, ...], length: int) -> "Past":
        """What it has read of dialogues of `length` tokens before the first.

        Raises:
          ValueError: when learned positions do not reach so far.
        """
        self._check_reach(length)
        if self.causal:
            return Past(self.trunk.blank_memory(batch, length), None, None)
        width, layers = self.embedding.shape[1], len(self.trunk.blocks) + 1
        nothing = jnp.zeros((*batch, length, width), jnp.float32)
        return Past(None, nothing, jnp.zeros((layers, length, width), jnp.float32))

    def read_on(
        self,
        past: "Past",
        tokens: Int[Array, "*batch t"],
        start: Int[Array, ""] | int,
        added: Added | None = None,
    ) -> tuple[Float[Array, "*batch t v"], "Past"]:
        """The rows of some tokens from place `start` on, and what it has read with them.

        Args:
          past: what it has read, all tokens before.
          tokens: the next ones.
          start: place of the first of them.
          added: to the residual stream of these tokens, as in `__call__`.
        """
        places = start + jnp.arange(tokens.shape[-1])
        x_BTD = self.embedded(tokens, places)
        if self.causal:
            x_BTD, memories = self.trunk.recall(x_BTD, past.memories, start, added)
            return self.read_out(x_BTD), Past(memories, None, None)
        # Every row looks at all tokens before it from anew: nothing can be kept but these.
        put = jax.lax.dynamic_update_slice_in_dim
        all_BTD, all_added = put(past.embedded, x_BTD, start, axis=-2), past.added
        if added is not None:
            new = jnp.broadcast_to(added, (*added.shape[:1], len(places), added.shape[-1]))
            all_added = put(all_added, new, start, axis=-2)
        x_BTD = self.trunk.of_prefixes(all_BTD, places, all_added)
        return self.read_out(x_BTD), Past(None, all_BTD, all_added)

    def embedded(
        self, tokens: Int[Array, "*batch t"], places: Int[Array, " t"] | None = None
    ) -> Float[Array, "*batch t d"]:
        """The vectors that enter the trunk; errors as in `__call__`.

        Args:
          tokens: whole numbers below V.
          places: where they stand, by default from 0 on.
        """
        size, length = self.embedding.shape[0], tokens.shape[-1]
        with jax.named_scope("tokens"):
            # A product: on a CPU the gradient of a look-up adds row by row.
            x_BTD = jax.nn.one_hot(tokens, size, dtype=self.embedding.dtype) @ self.embedding[...]
        if self.positions is None:
            return x_BTD
        self._check_reach(length)
        own = self.positions[:length] if places is None else self.positions[...][places]
        return x_BTD + own

    def _check_reach(self, length: int) -> None:
        if self.positions is not None and length > self.positions.shape[0]:
            raise ValueError(
                f"{length} tokens need as many learned positions, the language model has "
                f"{self.positions.shape[0]}"
            )


class Past(NamedTuple):
    """What a language model keeps of the tokens that it has read.

    Attributes:
      memories: keys and values of each block, under a causal mask.
      embedded, added: without one, the vectors of all tokens and what was added to their streams.
    """

    memories: list[Memory] | None
    embedded: Float[Array, "*batch t d"] | None
    added: Added | None


def _causal_mask(length: int) -> Bool[Array, "t t"]:
    return jnp.tril(jnp.ones((length, length), bool))
