"""What is measured of own rounds, round by round."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from icl_align.alignment.contexts import Context
from icl_align.alignment.learners import gradient_descent
from icl_align.alignment.losses import cosine, ranking_losses
from icl_align.alignment.metrics import agreement, refinement_error
from icl_align.alignment.optimum import plackett_luce_optimum
from icl_align.alignment.options import Options
from icl_align.alignment.rounds.own import OwnRounds

BY_ANSWER = ("refinement_error", "gain", "regret", "agreement")  # one more than rounds
BY_ROUND = ("movement", "reward", "critic_accuracy")

Values = dict[str, Float[Array, "b r"]]


def quantities(config: Options, made: OwnRounds, keys: Key[Array, " b"], given: int) -> Values:
    """All that is measured; `BY_ANSWER` of every answer, `BY_ROUND` of every own attempt.

    refinement_error  1 - cos with the target
    gain              error of the first answer less that of this one
    regret            Plackett-Luce loss above its minimum, on all attempts so far, own ones too
    agreement         cosine with gradient descent's answer to the same attempts
    movement          1 - cos of the answer before an own attempt and the one after it
    reward            what the critic gave
    critic_accuracy   share of the earlier attempts that it ranks with an own one as the error does

    Args:
      config: options.
      made: rounds of some learner.
      keys: of the contexts.
      given: attempts before the own ones.
    """
    return beside_the_target(made, given) | beside_descent(config, made, keys, given)


def beside_descent(config: Options, made: OwnRounds, keys: Key[Array, " b"], given: int) -> Values:
    """Those of `quantities` for which each context is optimised: regret and agreement."""
    contexts, answers = made
    score, last = config.loss.score, contexts.rewards.shape[-1]
    attempts = jnp.arange(given, last + 1)
    optimum = plackett_luce_optimum(contexts, score, attempts=attempts)
    descent = gradient_descent(
        contexts, config.gradient_descent, keys, score=score, attempts=attempts
    )

    def loss(predictions):
        return ranking_losses("plackett_luce", score, predictions, contexts, attempts)

    return {
        "regret": loss(answers) - loss(optimum),
        "agreement": agreement(answers, descent),
    }


def beside_the_target(made: OwnRounds, given: int) -> Values:
    """Those of `quantities` that need the target only."""
    contexts, answers = made
    last = contexts.rewards.shape[-1]
    error = refinement_error(answers, contexts)
    right = ranked_right(contexts)[:, given:]
    earlier = jnp.tril(jnp.ones((last, last)), -1)[given:]
    return {
        "refinement_error": error,
        "gain": error[:, :1] - error,
        "movement": cosine(answers[:, 1:], answers[:, :-1]),
        "reward": contexts.rewards[:, given:],
        "critic_accuracy": jnp.sum(right * earlier, -1) / jnp.maximum(jnp.sum(earlier, -1), 1),
    }


def ranked_right(contexts: Context) -> Float[Array, "b n n"]:
    """Whether the rewards rank each pair of attempts as their errors do; 1/2 for equal rewards."""
    errors = jax.vmap(lambda y, t: cosine(y, t[None]))(contexts.responses, contexts.target)
    better = jnp.sign(errors[:, None, :] - errors[:, :, None])
    rewarded = jnp.sign(contexts.rewards[:, :, None] - contexts.rewards[:, None, :])
    return 0.5 * (1 + better * rewarded)
