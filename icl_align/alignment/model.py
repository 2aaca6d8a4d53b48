"""The transformer: a front that makes tokens of a context, the trunk, and a read-out.

Array names end in their axes: B any leading axes, T tokens, N attempts, D width of the residual
stream.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from icl_align.alignment.contexts import Context
from icl_align.alignment.options import ModelConfig, TaskConfig
from icl_align.alignment.tokens import TOKEN_LAYOUTS, num_tokens
from icl_align.initialisation import learned_positions, torch_linear
from icl_align.transformer import Trunk


class Transformer(nnx.Module):
    """Predicts a response after every number of attempts.

    Row n of its output reads the query and attempts 1..n, and nothing later, unless
    `config.sees_future` asks for the published variants' unmasked pass. With `config.causal` one
    masked pass makes all rows; without it each row is a pass of its own over its attempts.

    Args:
      config: the architecture.
      task: gives dimension and the largest number of attempts.
      rngs: the stream `params` initialises the weights: the trunk as in GPT-2 (Radford et al.
        2019), embedding and read-out as PyTorch's Linear, which Wang et al. (2024) trained.
    """

    def __init__(self, config: ModelConfig, task: TaskConfig, *, rngs: nnx.Rngs):
        self.causal, self.sees_future = config.causal, config.sees_future
        self.tokens, self.task = config.tokens, (task.dim, task.num_responses)
        layout = TOKEN_LAYOUTS[config.tokens](task)
        self.embed = torch_linear(layout.num_features, config.width, rngs)
        self.positions = learned_positions(config, num_tokens(config, task.num_responses), rngs)
        self.trunk = Trunk(config, rngs=rngs)
        self.read_out = torch_linear(config.width, task.dim, rngs)

    def __call__(
        self, context: Context, attempt_queries: Float[Array, "*batch n d"] | None = None
    ) -> Float[Array, "*batch n_plus_1 d"]:
        """Predictions after 0..N attempts.

        Args:
          context: any leading axes.
          attempt_queries: the query that each attempt answers; by default they all answer
            `context.query`. Interleaved tokens read row n < N at the query of attempt n + 1.

        Raises:
          ValueError: when learned positions do not reach as far as the context.
        """
        x_BTD = self.embedded(context, attempt_queries)
        num_tokens, num_responses = x_BTD.shape[-2], context.rewards.shape[-1]
        every = TOKEN_LAYOUTS[self.tokens].tokens_per_attempt
        if self.causal or self.sees_future:
            x_BND = self.trunk(x_BTD, self.visible(num_tokens))[..., ::every, :]
        else:
            x_BND = self.trunk.of_prefixes(x_BTD, every * jnp.arange(num_responses + 1))
        return self.read_out(x_BND)

    def embedded(
        self, context: Context, attempt_queries: Float[Array, "*batch n d"] | None = None
    ) -> Float[Array, "*batch t d_model"]:
        """The tokens that enter the trunk; arguments and errors as in `__call__`."""
        d, num_responses = context.query.shape[-1], context.rewards.shape[-1]
        layout = TOKEN_LAYOUTS[self.tokens](TaskConfig(dim=d, num_responses=num_responses))
        if attempt_queries is None:
            attempt_queries = jnp.broadcast_to(context.query[..., None, :], context.responses.shape)
        with jax.named_scope("tokens"):
            x_BTD = self.embed(layout.features(context, attempt_queries))
        num_tokens = x_BTD.shape[-2]
        if self.positions is None:
            return x_BTD
        if num_tokens > self.positions.shape[0]:
            raise ValueError(
                f"{num_responses} attempts need {num_tokens} learned positions, "
                f"the transformer has {self.positions.shape[0]}"
            )
        return x_BTD + self.positions[:num_tokens]

    def visible(self, num_tokens: int) -> Bool[Array, "t t"]:
        """Entry [i, j] says whether token i may see token j in one pass over all tokens."""
        visible_TT = jnp.ones((num_tokens, num_tokens), bool)
        return jnp.tril(visible_TT) if self.causal else visible_TT
