"""Own rounds: a learner answers, its answer becomes its next attempt, and it answers again."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from icl_align.alignment.contexts import Context
from icl_align.alignment.losses import EPSILON
from icl_align.alignment.model import Transformer
from icl_align.alignment.options import SCALES
from icl_align.alignment.rounds.critics import Critic, Line, given_rewards, rewards_of
from icl_align.config import implemented

Answer = Float[Array, "b d"]


class InSteps(NamedTuple):
    """A learner that reads attempt by attempt.

    Attributes:
      begin: (contexts, given) -> its answers after the first `given` attempts, and its state.
      read_on: (state, contexts, n) -> the same after attempt n (from 0) as well.
      judge: (state, contexts, n) -> the reward that it expects of attempt n, not read yet.
    """

    begin: Callable[[Context, int], tuple[Answer, Any]]
    read_on: Callable[[Any, Context, Int[Array, ""]], tuple[Answer, Any]]
    judge: Callable[[Any, Context, Int[Array, ""]], Float[Array, " b"]]


def in_steps(answer: Callable[[Context, Int[Array, ""] | int], Answer]) -> InSteps:
    """A learner that reads all anew for every answer.

    Args:
      answer: (contexts, n) -> its answers after n attempts; what stands behind them is not read.
    """
    return InSteps(
        lambda contexts, given: (answer(contexts, given), None),
        lambda state, contexts, n: (answer(contexts, n + 1), state),
        lambda state, contexts, n: jnp.zeros_like(contexts.rewards[:, 0]),
    )


def transformer_in_steps(network: Transformer, hides_rewards: bool = False) -> InSteps:
    """The transformer, which keeps what it has read.

    Args:
      network: one.
      hides_rewards: whether it sees every reward as 0, as with `task.shown_rewards=none`.
    """

    def seen(contexts):
        hidden = contexts._replace(rewards=jnp.zeros_like(contexts.rewards))
        return hidden if hides_rewards else contexts

    def judge(state, contexts, n):
        if network.critic is None:
            return jnp.zeros_like(contexts.rewards[:, 0])
        return network.judge(state, contexts, n)

    return InSteps(
        lambda contexts, given: network.begin(seen(contexts), given, contexts.rewards.shape[-1]),
        lambda state, contexts, n: network.read_on(state, seen(contexts), n),
        judge,
    )


def transformer_own_first(network: Transformer, given: int, hides_rewards: bool = False) -> InSteps:
    """The transformer, to which own attempts are shown before the given ones.

    Args:
      network: one.
      given: attempts before the own ones, in the order of the rounds.
      hides_rewards: as in `transformer_in_steps`.
    """

    def answer(contexts, n):
        places = jnp.arange(contexts.rewards.shape[-1])
        order = jnp.where(places < n, (places + given) % jnp.maximum(n, 1), places)
        rewards = contexts.rewards[:, order] * (not hides_rewards)
        moved = contexts._replace(responses=contexts.responses[:, order], rewards=rewards)
        return network(moved)[:, n]

    return in_steps(answer)


def judged_by(learner: InSteps, critic: InSteps) -> InSteps:
    """A learner whose attempts another one judges, which reads along."""

    def begin(contexts, given):
        answer, own = learner.begin(contexts, given)
        return answer, (own, critic.begin(contexts, given)[1])

    def read_on(state, contexts, n):
        answer, own = learner.read_on(state[0], contexts, n)
        return answer, (own, critic.read_on(state[1], contexts, n)[1])

    return InSteps(begin, read_on, lambda state, contexts, n: critic.judge(state[1], contexts, n))


def _to_norm_of(given: Float[Array, "b n d"], answers: Answer) -> Answer:
    if not given.shape[-2]:
        return answers
    wanted = jnp.mean(jnp.linalg.norm(given, axis=-1), axis=-1)
    squares = jnp.sum(answers**2, axis=-1)
    # A finite gradient for the zero vector, which stays.
    return answers * (wanted / jnp.sqrt(jnp.maximum(squares, EPSILON**2)))[:, None]


SCALE_FUNCTIONS: dict[str, Callable[[Float[Array, "b n d"], Answer], Answer]] = implemented(
    SCALES, {"attempts_norm": _to_norm_of, "as_is": lambda given, answers: answers}
)


class OwnRounds(NamedTuple):
    """What came of some rounds.

    Attributes:
      contexts: the given attempts, then an own one of every round.
      answers: after the given attempts, and after each own one.
    """

    contexts: Context
    answers: Float[Array, "b rounds_plus_1 d"]


def own_rounds(
    learner: InSteps,
    contexts: Context,
    line: Line,
    critic: Critic,
    keys: Key[Array, " b"],
    *,
    given: int,
    rounds: int,
    scale: str,
) -> OwnRounds:
    """A learner's own rounds on some contexts.

    Args:
      learner: who answers.
      contexts: at least `given` attempts; no others are read.
      line: what the critic knows of them.
      critic: who rewards own answers.
      keys: of the contexts.
      given: attempts before the own ones.
      rounds: own answers that are put back.
      scale: as in `own_rounds.scale`.
    """
    first, room = contexts.responses[:, :given], [(0, 0), (0, rounds)]
    contexts = contexts._replace(
        responses=jnp.pad(first, [*room, (0, 0)]),
        rewards=jnp.pad(given_rewards(critic, contexts.rewards[:, :given]), room),
    )
    answer, state = learner.begin(contexts, given)

    def one_round(carry, n):
        contexts, answer, state = carry
        back = SCALE_FUNCTIONS[scale](first, answer)
        contexts = contexts._replace(responses=contexts.responses.at[:, n].set(back))
        reward = rewards_of(critic, line, back, learner.judge(state, contexts, n), keys, n)
        contexts = contexts._replace(rewards=contexts.rewards.at[:, n].set(reward))
        after, state = learner.read_on(state, contexts, n)
        return (contexts, after, state), answer

    (contexts, last, _), answers = jax.lax.scan(
        one_round, (contexts, answer, state), given + jnp.arange(rounds)
    )
    answers = jnp.concatenate([jnp.moveaxis(answers, 0, 1), last[:, None]], axis=1)
    return OwnRounds(contexts, answers)
