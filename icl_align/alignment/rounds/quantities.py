"""What is measured of own rounds, round by round."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from icl_align.alignment.contexts import Context
from icl_align.alignment.learners import descent_of
from icl_align.alignment.losses import EPSILON, cosine, ranking_losses
from icl_align.alignment.metrics import agreement, refinement_error
from icl_align.alignment.optimum import plackett_luce_optimum
from icl_align.alignment.options import Options
from icl_align.alignment.rounds.roll_out import OwnRounds

BY_ANSWER = ("refinement_error", "gain", "regret", "agreement")  # one more than rounds
BY_ROUND = ("movement", "length", "reward", "critic_accuracy")
# Between which they lie.
BOUNDS = {
    "refinement_error": (0, 2),
    "gain": (-2, 2),
    "regret": (0, math.inf),
    "agreement": (-1, 1),
    "movement": (0, 2),
    "length": (0, math.inf),
    "reward": (-math.inf, math.inf),
    "critic_accuracy": (0, 1),
}
APART = 1e-4  # attempts whose errors differ by less are no pair to rank

Values = dict[str, Float[Array, "b r"]]


def quantities(config: Options, made: OwnRounds, keys: Key[Array, " b"], given: int) -> Values:
    """All that is measured; `BY_ANSWER` of every answer, `BY_ROUND` of every own attempt.

    refinement_error  1 - cos with the target
    gain              error of the first answer less that of this one
    regret            Plackett-Luce loss above its minimum, on all attempts so far, own ones too
    agreement         cosine with gradient descent's answer to the same attempts
    movement          1 - cos of the answer before an own attempt and the one after it
    length            of the answer that is put back, before it is scaled, in mean lengths of the
                      given attempts (of the query where none is given)
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
    descent = descent_of(config, contexts, keys, config.task.reward_noise, attempts)

    def loss(predictions):
        return ranking_losses("plackett_luce", score, predictions, contexts, attempts)

    return {
        "regret": loss(answers) - loss(optimum),
        "agreement": agreement(answers, descent),
    }


def beside_the_target(made: OwnRounds, given: int) -> Values:
    """Those of `quantities` that need the target only."""
    contexts, answers = made
    error = refinement_error(answers, contexts)
    right, counted = own_pairs(contexts, given)
    own_length = jnp.linalg.norm(answers[:, :-1], axis=-1)
    beside = contexts.responses[:, :given] if given else contexts.query[:, None]
    mean_length = jnp.mean(jnp.linalg.norm(beside, axis=-1), axis=-1, keepdims=True)
    return {
        "refinement_error": error,
        "gain": error[:, :1] - error,
        "movement": cosine(answers[:, 1:], answers[:, :-1]),
        "length": own_length / jnp.maximum(mean_length, EPSILON),
        "reward": contexts.rewards[:, given:],
        "critic_accuracy": _share(right, counted, -1),
    }


def accuracy(
    contexts: Context, given: int, judged: Float[Array, "b n"] | None = None
) -> Float[Array, " b"]:
    """Share of the pairs of an own attempt and an earlier one that the rewards rank as the errors
    do; 1/2 without any. Arguments as of `own_pairs`.
    """
    return _share(*own_pairs(contexts, given, judged), (-2, -1))


def own_pairs(
    contexts: Context, given: int, judged: Float[Array, "b n"] | None = None
) -> tuple[Float[Array, "b r n"], Float[Array, "b r n"]]:
    """Of own attempt r and attempt n: whether they are ranked right, and whether they count.

    They do where n is earlier and the errors are apart. Equal rewards are half right.

    Args:
      contexts: whose rewards the earlier attempts have.
      given: attempts before the own ones.
      judged: the rewards of own attempts; those of the contexts if None.
    """
    judged = contexts.rewards if judged is None else judged
    errors = refinement_error(contexts.responses, contexts)
    last = errors.shape[-1]
    gap = errors[:, None, :] - errors[:, given:, None]
    rewarded = jnp.sign(judged[:, given:, None] - contexts.rewards[:, None, :])
    earlier = jnp.tril(jnp.ones((last, last)), -1)[given:]
    return 0.5 * (1 + jnp.sign(gap) * rewarded), earlier * (jnp.abs(gap) > APART)


def _share(
    right: Float[Array, "b r n"], counted: Float[Array, "b r n"], axis: int | tuple[int, ...]
) -> Float[Array, "..."]:
    number = jnp.sum(counted, axis)
    return jnp.where(number > 0, jnp.sum(right * counted, axis) / jnp.maximum(number, 1), 0.5)
