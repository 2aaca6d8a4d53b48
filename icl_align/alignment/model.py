"""The transformer: a front that makes tokens of a context, the trunk, and a read-out.

Array names end in their axes: B any leading axes, T tokens, N attempts, D width of the residual
stream.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from icl_align.alignment.contexts import Context
from icl_align.alignment.options import ModelConfig, TaskConfig
from icl_align.alignment.tokens import TOKEN_LAYOUTS, num_tokens, num_tokens_of
from icl_align.initialisation import learned_positions, torch_linear
from icl_align.transformer import Memory, Trunk

Past = list[Memory] | None  # keys and values of the tokens read; none without a causal mask


class Transformer(nnx.Module):
    """Predicts a response after every number of attempts.

    Row n of its output reads the query and attempts 1..n, and nothing later, unless
    `config.sees_future` asks for the published variants' unmasked pass. With `config.causal` one
    masked pass makes all rows; without it each row is a pass of its own over its attempts.

    Args:
      config: the architecture.
      task: gives dimension and the largest number of attempts.
      critic: whether it has a second read-out, which predicts the reward of an attempt.
      rngs: the stream `params` initialises the weights: the trunk as in GPT-2 (Radford et al.
        2019), embedding and read-out as PyTorch's Linear, which Wang et al. (2024) trained.
    """

    def __init__(
        self, config: ModelConfig, task: TaskConfig, *, rngs: nnx.Rngs, critic: bool = False
    ):
        self.causal, self.sees_future = config.causal, config.sees_future
        self.tokens, self.task = config.tokens, (task.dim, task.num_responses)
        layout = TOKEN_LAYOUTS[config.tokens](task)
        self.embed = torch_linear(layout.num_features, config.width, rngs)
        self.positions = learned_positions(config, num_tokens(config, task.num_responses), rngs)
        self.trunk = Trunk(config, rngs=rngs)
        self.read_out = torch_linear(config.width, task.dim, rngs)
        self.critic = torch_linear(config.width, 1, rngs) if critic else None

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

    def with_judgements(
        self, context: Context
    ) -> tuple[Float[Array, "*batch n_plus_1 d"], Float[Array, "*batch n"]]:
        """Predictions, and the reward that each attempt is expected to get, from those before it.

        One pass: behind the context stands each attempt without its reward, which sees itself and
        what came before the attempt, and which no other token sees.

        Args:
          context: any leading axes.

        Raises:
          ValueError: the network has no critic; or as `__call__`.
        """
        self._check_critic()
        x_BTD, num_responses = self.embedded(context), context.rewards.shape[-1]
        num_tokens, every = x_BTD.shape[-2], TOKEN_LAYOUTS[self.tokens].tokens_per_attempt
        places_N = 1 + every * jnp.arange(num_responses)
        x_BND = self._unjudged(context, places_N)
        own_NN = jnp.eye(num_responses, dtype=bool)
        before_NT = jnp.arange(num_tokens) < places_N[:, None]
        none_TN = jnp.zeros((num_tokens, num_responses), bool)
        visible = jnp.block([[self.visible(num_tokens), none_TN], [before_NT, own_NN]])
        x_BSD = self.trunk(jnp.concatenate([x_BTD, x_BND], axis=-2), visible)
        answers = self.read_out(x_BSD[..., :num_tokens, :][..., ::every, :])
        return answers, self.critic(x_BSD[..., num_tokens:, :])[..., 0]

    def begin(
        self, context: Context, given: int, attempts: int
    ) -> tuple[Float[Array, "*batch d"], Past]:
        """The prediction after the first `given` attempts, and what it keeps of them.

        With `read_on` the same as row by row of `__call__`, at the cost of one pass.

        Args:
          context: any leading axes.
          given: how many it reads.
          attempts: the most it will read.

        Raises:
          ValueError: when learned positions do not reach so far.
        """
        self._check_reach(num_tokens_of(self.tokens, attempts), attempts)
        if not self.causal:
            return self._after(context, given), None
        first = context._replace(
            responses=context.responses[..., :given, :], rewards=context.rewards[..., :given]
        )
        length = num_tokens_of(self.tokens, attempts)
        past = self.trunk.blank_memory(context.query.shape[:-1], length)
        x_BTD, past = self.trunk.recall(self.embedded(first), past, 0)
        return self.read_out(x_BTD[..., -1, :]), past

    def read_on(
        self, past: Past, context: Context, n: Int[Array, ""] | int
    ) -> tuple[Float[Array, "*batch d"], Past]:
        """The prediction after attempt n (from 0) of a context, those before it having been read.

        Args:
          past: of `begin`, or of `read_on` for the attempt before.
          context: holds attempt n, and what may stand behind it is not read.
          n: may be traced.
        """
        if past is None:
            return self._after(context, n + 1), None
        one, every = _attempt(context, n), TOKEN_LAYOUTS[self.tokens].tokens_per_attempt
        layout = self._layout(one)
        queries = jnp.broadcast_to(one.query[..., None, :], one.responses.shape)
        x_BTD = self.embed(layout.features(one, queries)[..., 1:, :])
        start = 1 + every * n
        if self.positions is not None:
            x_BTD = x_BTD + self.positions[...][start + jnp.arange(every)]
        x_BTD, past = self.trunk.recall(x_BTD, past, start)
        return self.read_out(x_BTD[..., -1, :]), past

    def judge(
        self, past: Past, context: Context, n: Int[Array, ""] | int
    ) -> Float[Array, "*batch"]:
        """The reward that attempt n (from 0) of a context is expected to get, unseen so far.

        Args: as `read_on`.

        Raises:
          ValueError: the network has no critic.
        """
        self._check_critic()
        place = 1 + TOKEN_LAYOUTS[self.tokens].tokens_per_attempt * n
        x_BTD = self._unjudged(_attempt(context, n), place + jnp.arange(1))
        x_BTD, _ = self.trunk.recall(x_BTD, past, place)
        return self.critic(x_BTD)[..., 0, 0]

    def _after(self, context: Context, n: Int[Array, ""] | int) -> Float[Array, "*batch d"]:
        """The prediction after n attempts, which all see each other."""
        place = jnp.asarray(TOKEN_LAYOUTS[self.tokens].tokens_per_attempt * n)[None]
        return self.read_out(self.trunk.of_prefixes(self.embedded(context), place))[..., 0, :]

    def _unjudged(self, context: Context, places: Int[Array, " n"]) -> Float[Array, "*batch n w"]:
        x_BND = self.embed(self._layout(context).unjudged(context))
        return x_BND if self.positions is None else x_BND + self.positions[...][places]

    def _check_reach(self, num_tokens: int, num_responses: int) -> None:
        if self.positions is not None and num_tokens > self.positions.shape[0]:
            raise ValueError(
                f"{num_responses} attempts need {num_tokens} learned positions, "
                f"the transformer has {self.positions.shape[0]}"
            )

    def _check_critic(self) -> None:
        if self.critic is None:
            raise ValueError("this network has no critic; loss.critic_weight above 0 trains one")

    def _layout(self, context: Context) -> Any:
        d, num_responses = context.responses.shape[-1], context.rewards.shape[-1]
        return TOKEN_LAYOUTS[self.tokens](TaskConfig(dim=d, num_responses=num_responses))

    def embedded(
        self, context: Context, attempt_queries: Float[Array, "*batch n d"] | None = None
    ) -> Float[Array, "*batch t d_model"]:
        """The tokens that enter the trunk; arguments and errors as in `__call__`."""
        layout, num_responses = self._layout(context), context.rewards.shape[-1]
        if attempt_queries is None:
            attempt_queries = jnp.broadcast_to(context.query[..., None, :], context.responses.shape)
        with jax.named_scope("tokens"):
            x_BTD = self.embed(layout.features(context, attempt_queries))
        num_tokens = x_BTD.shape[-2]
        if self.positions is None:
            return x_BTD
        self._check_reach(num_tokens, num_responses)
        return x_BTD + self.positions[:num_tokens]

    def visible(self, num_tokens: int) -> Bool[Array, "t t"]:
        """Entry [i, j] says whether token i may see token j in one pass over all tokens."""
        visible_TT = jnp.ones((num_tokens, num_tokens), bool)
        return jnp.tril(visible_TT) if self.causal else visible_TT


def _attempt(context: Context, n: Int[Array, ""] | int) -> Context:
    """A context of nothing but its attempt n."""
    return context._replace(
        responses=jax.lax.dynamic_slice_in_dim(context.responses, n, 1, axis=-2),
        rewards=jax.lax.dynamic_slice_in_dim(context.rewards, n, 1, axis=-1),
    )
