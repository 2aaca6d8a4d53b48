"""Training contexts that hold the network's own attempts."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from icl_align.alignment.contexts import Context, Stream
from icl_align.alignment.model import Transformer
from icl_align.alignment.options import Options
from icl_align.alignment.rounds.critics import critic_of, given_rewards, line_of
from icl_align.alignment.rounds.roll_out import own_rounds, transformer_in_steps
from icl_align.transformer import frozen


def with_own_attempts(
    config: Options, network: Transformer, contexts: Context, keys: Key[Array, " b"]
) -> Context:
    """Contexts in some of which all attempts after the given ones are the network's own.

    The critic's power changes the given rewards of all, so that all are judged alike.

    Args:
      config: options; `own_rounds` says who rewards them, `train.own_rounds_share` how many.
      network: as it is.
      contexts: as they were drawn.
      keys: of the contexts; each says whether its own gets own attempts.
    """
    options, last, attempts = config.own_rounds, config.last_attempts, contexts.rewards.shape[-1]
    critic = critic_of(options, config.task)
    if not config.train.own_rounds_gradient:
        network = frozen(network)
    made = own_rounds(
        transformer_in_steps(network, config.task.shown_rewards == "none"),
        contexts,
        line_of(config.task, keys),
        critic,
        keys,
        given=options.given_attempts,
        rounds=last - options.given_attempts,
        scale=options.scale,
    ).contexts
    # What stands behind the last attempt that is trained on is not read.
    room = [(0, 0), (0, attempts - last)]
    made = made._replace(
        responses=jnp.pad(made.responses, [*room, (0, 0)]), rewards=jnp.pad(made.rewards, room)
    )
    share = config.train.own_rounds_share
    chosen = jax.vmap(lambda key: jax.random.bernoulli(Stream.OWN_ROUNDS.of(key), share))(keys)
    return contexts._replace(
        responses=jnp.where(chosen[:, None, None], made.responses, contexts.responses),
        rewards=jnp.where(chosen[:, None], made.rewards, given_rewards(critic, contexts.rewards)),
    )
