"""The language model: embedding and positions, the trunk, and a read-out over the vocabulary.

Array names end in their axes: B any leading axes, T tokens, D width of the residual stream, V
tokens of the vocabulary.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from icl_align.config import TrunkConfig
from icl_align.transformer import Trunk, learned_positions, learned_tokens, torch_linear


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

    def __call__(self, tokens: Int[Array, "*batch t"]) -> Float[Array, "*batch t v"]:
        """Row p holds the logits of token p + 1, given those up to p.

        Raises:
          ValueError: when learned positions do not reach as far as the tokens.
        """
        x_BTD, length = self.embedded(tokens), tokens.shape[-1]
        if self.causal:
            x_BTD = self.trunk(x_BTD, jnp.tril(jnp.ones((length, length), bool)))
        else:
            x_BTD = self.trunk.of_prefixes(x_BTD, jnp.arange(length))
        return self.read_out(x_BTD)

    def embedded(self, tokens: Int[Array, "*batch t"]) -> Float[Array, "*batch t d"]:
        """The vectors that enter the trunk; errors as in `__call__`."""
        size, length = self.embedding.shape[0], tokens.shape[-1]
        with jax.named_scope("tokens"):
            # A product: on a CPU the gradient of a look-up adds row by row.
            x_BTD = jax.nn.one_hot(tokens, size, dtype=self.embedding.dtype) @ self.embedding[...]
        if self.positions is None:
            return x_BTD
        if length > self.positions.shape[0]:
            raise ValueError(
                f"{length} tokens need as many learned positions, the language model has "
                f"{self.positions.shape[0]}"
            )
        return x_BTD + self.positions[:length]
