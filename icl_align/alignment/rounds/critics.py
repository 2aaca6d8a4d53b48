"""Critics: who rewards a learner's own answers.

On the published data y = r W x + (1 - r) W- x, so an answer on that line says itself what its
reward is. An answer beside the line has none, and three formulas give it one. All of them give the
target 1, and a given attempt its own reward; where every attempt has a corrupt policy of its own,
that holds for the worst attempt only:

    share      the place of its projection on the line: blind to what stands at right angles to it
    distance   1 - |y - W x| / |W- x - W x|: how near the target it is
    direction  the place on the line that points as far from the target as it does: blind to length
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from icl_align.alignment.contexts import Stream, sample_contexts
from icl_align.alignment.losses import EPSILON
from icl_align.alignment.options import CRITICS, FORMULAS, LEARNED, OwnRoundsConfig, TaskConfig
from icl_align.config import implemented, with_values


class Line(NamedTuple):
    """What answers are judged by: the line from what corrupts a context to its target."""

    target: Float[Array, "*batch d"]
    corrupted: Float[Array, "*batch d"]


def line_of(task: TaskConfig, keys: Key[Array, " b"]) -> Line:
    """The line of the contexts of some keys.

    Where every attempt has a corrupt policy of its own it is that of the worst attempt.
    """
    clean = sample_contexts(with_values(task, {"reward_transform": "identity"}), keys, 0.0)
    worst = jnp.argmin(clean.rewards, axis=-1)[:, None]
    reward = jnp.take_along_axis(clean.rewards, worst, axis=-1)
    response = jnp.take_along_axis(clean.responses, worst[..., None], axis=-2)[:, 0]
    return Line(clean.target, (response - reward * clean.target) / (1 - reward))


def _norm(vectors: Float[Array, "*batch d"]) -> Float[Array, "*batch"]:
    # A finite gradient where it is 0.
    return jnp.sqrt(jnp.maximum(jnp.sum(vectors**2, axis=-1), EPSILON**2))


def share(line: Line, answers: Float[Array, "*batch d"]) -> Float[Array, "*batch"]:
    """Any number; 1 wherever the projection on the line is the target."""
    along = line.target - line.corrupted
    return jnp.sum((answers - line.corrupted) * along, axis=-1) / _norm(along) ** 2


def distance(line: Line, answers: Float[Array, "*batch d"]) -> Float[Array, "*batch"]:
    """At most 1, and 1 at the target only."""
    return 1 - _norm(answers - line.target) / _norm(line.corrupted - line.target)


def direction(line: Line, answers: Float[Array, "*batch d"]) -> Float[Array, "*batch"]:
    """In [0, 1]; 1 for a positive multiple of the target, 0 for whatever points away at least as
    far as the corrupted answer does.
    """
    length = _norm(line.target)
    unit = line.target / length[..., None]
    along = jnp.sum(answers * unit, axis=-1)
    across = _norm(answers - along[..., None] * unit)
    cosine, sine = along / _norm(answers), across / _norm(answers)
    a = jnp.sum(line.corrupted * unit, axis=-1)
    b = _norm(line.corrupted - a[..., None] * unit)
    left = jnp.maximum(b * cosine - a * sine, 0)  # 0 at the corrupted answer, and beyond
    return left / jnp.maximum(left + length * sine, EPSILON)


FORMULA_FUNCTIONS: dict[str, Callable[[Line, Array], Float[Array, "*batch"]]] = implemented(
    FORMULAS, {"share": share, "distance": distance, "direction": direction}
)


# Critic -> its number among the values that `rewards_of` chooses from.
NUMBERS = implemented(CRITICS, {name: number for number, name in enumerate((*FORMULAS, LEARNED))})


class Critic(NamedTuple):
    """The numbers of a critic; arrays, so that one program serves many critics.

    Attributes:
      formula: its number in NUMBERS.
      noise, bias, clipped: as in `own_rounds.critic_*`.
      power: of all rewards, on top of the task's transform.
      task_power: of the task's transform, which given rewards have already.
    """

    formula: Int[Array, "*c"]
    noise: Float[Array, "*c"]
    power: Float[Array, "*c"]
    task_power: Float[Array, "*c"]
    bias: Float[Array, "*c"]
    clipped: Float[Array, "*c"]


def critic_of(options: OwnRoundsConfig, task: TaskConfig) -> Critic:
    """The critic that the options describe, for attempts of a task."""
    task_power = task.reward_power if task.reward_transform == "power" else 1.0
    numbers = (
        options.critic_noise,
        options.critic_power,
        task_power,
        options.critic_bias,
        options.critic_clipped,
    )
    return Critic(
        jnp.asarray(NUMBERS[options.critic]), *(jnp.asarray(n, jnp.float32) for n in numbers)
    )


def _to_power(rewards: Float[Array, "*b"], power: Float[Array, ""]) -> Float[Array, "*b"]:
    """Odd, so that it is monotone where rewards are not clipped; exact for a power of 1."""
    powered = jnp.sign(rewards) * jnp.maximum(jnp.abs(rewards), EPSILON) ** power
    return jnp.where(power == 1, rewards, powered)


def given_rewards(critic: Critic, rewards: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """What a critic makes of given rewards: their power, so that it judges all attempts alike."""
    return _to_power(rewards, critic.power)


def rewards_of(
    critic: Critic,
    line: Line,
    answers: Float[Array, "b d"],
    learned: Float[Array, " b"],
    keys: Key[Array, " b"],
    n: Int[Array, ""] | int,
) -> Float[Array, " b"]:
    """What a critic gives to own answers.

    Args:
      critic: one.
      line: of the contexts.
      answers: as they are put back.
      learned: what the learner itself expects of them.
      keys: of the contexts.
      n: which attempt they are, from 0.

    Returns:
      The formula's value, clipped, to the powers, with the bias, clipped again; or a fresh U(0, 1)
      draw with the probability `noise`. The answers whose rewards are drawn at a small noise are
      among those at a larger one.
    """
    values = jnp.stack([of(line, answers) for of in FORMULA_FUNCTIONS.values()])

    def clip(value):
        return jnp.where(critic.clipped > 0, jnp.clip(value, 0, 1), value)

    powered = _to_power(clip(values), critic.task_power * critic.power)
    # What is learned is the reward as the task has it.
    every = jnp.concatenate([powered, _to_power(clip(learned), critic.power)[None]])
    value = clip(jnp.take(every, critic.formula, axis=0) + critic.bias)

    def draw(key):
        return jax.random.uniform(jax.random.fold_in(Stream.CRITIC.of(key), n), (2,))

    which, fresh = jnp.moveaxis(jax.vmap(draw)(keys), -1, 0)
    return jnp.where(which < critic.noise, fresh, value)
