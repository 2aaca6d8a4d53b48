"""Own rounds of every learner, and what they gain under many critics."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from icl_align.alignment.contexts import sample_contexts
from icl_align.alignment.model import Transformer
from icl_align.alignment.options import FORMULAS, LEARNED, LEARNERS, Options
from icl_align.alignment.rounds.critics import Critic, critic_of, line_of
from icl_align.alignment.rounds.gains import (
    gain_row,
    interval_of,
    over_settings,
    pearson,
    settings,
)
from icl_align.alignment.rounds.learners import MEASURED, WITHOUT_TRAINING
from icl_align.alignment.rounds.own import InSteps, OwnRounds, own_rounds, transformer_in_steps
from icl_align.alignment.rounds.quantities import (
    BY_ANSWER,
    BY_ROUND,
    beside_the_target,
    quantities,
    ranked_right,
)
from icl_align.statistics import mean_interval, moments, statistic_moments

SETTLED = 0.01  # of the refinement error: within this of its end a curve has converged

Interval = dict[str, Any]
Keys = Key[Array, " b"]


def roll_out(config: Options, learner: InSteps, critic: Critic, keys: Keys) -> OwnRounds:
    """The own rounds of a learner that an evaluation asks for.

    Args:
      config: options.
      learner: who answers.
      critic: who rewards.
      keys: of the contexts.
    """
    return own_rounds(
        learner,
        sample_contexts(config.task, keys),
        line_of(config.task, keys),
        critic,
        keys,
        given=config.own_rounds.given_attempts,
        rounds=config.evaluation.own_rounds,
        scale=config.own_rounds.scale,
    )


class _Rounds:
    """Rounds of learners over all contexts of an evaluation, batch by batch."""

    def __init__(self, config: Options, network: Callable[[Any], Transformer], keys: Keys):
        self._config, options = config, config.own_rounds
        size = min(config.evaluation.batch_size, len(keys))
        whole = -(-len(keys) // size) * size
        padded = jnp.concatenate([keys, keys[: whole - len(keys)]])
        self._batches, self._count = padded.reshape(-1, size), len(keys)
        hides = config.task.shown_rewards == "none"
        self._measure = jax.jit(
            lambda made, keys: quantities(config, made, keys, options.given_attempts)
        )
        self._measure_quickly = jax.jit(
            lambda made, keys: beside_the_target(made, options.given_attempts)
        )
        self._of_network = jax.jit(
            lambda params, critic, keys: roll_out(
                config, transformer_in_steps(network(params), hides), critic, keys
            )
        )

    def trained(
        self, params: Any, critic: Critic, quickly: bool = False
    ) -> dict[str, Float[np.ndarray, "b s r"]]:
        """What is measured of networks.

        Args:
          params: with a leading axis of seeds.
          critic: who rewards.
          quickly: without what takes an optimisation for each context.
        """
        measure = self._measure_quickly if quickly else self._measure
        seeds = len(jax.tree.leaves(params)[0])
        each = [jax.tree.map(lambda leaf, s=s: leaf[s], params) for s in range(seeds)]
        found = [
            self._gathered(lambda keys, own=own: self._of_network(own, critic, keys), measure)
            for own in each
        ]
        return {name: np.stack([one[name] for one in found], axis=1) for name in found[0]}

    def untrained(self, name: str, critic: Critic) -> dict[str, Float[np.ndarray, "b 1 r"]]:
        """What is measured of a learner without training."""
        config = self._config

        @jax.jit
        def rolled(critic, keys):
            return roll_out(config, WITHOUT_TRAINING[name](config, keys), critic, keys)

        found = self._gathered(functools.partial(rolled, critic), self._measure)
        return {quantity: values[:, None] for quantity, values in found.items()}

    def _gathered(
        self, rolled: Callable[[Keys], OwnRounds], measure: Callable[[OwnRounds, Keys], Any]
    ) -> dict[str, np.ndarray]:
        found = [jax.device_get(measure(rolled(keys), keys)) for keys in self._batches]
        joined = {name: np.concatenate([one[name] for one in found]) for name in found[0]}
        return {name: values[: self._count] for name, values in joined.items()}


def study(
    config: Options,
    network: Callable[[Any], Transformer],
    params: Any,
    keys: Keys,
    progress: Callable[[float], None],
) -> dict[str, Any]:
    """What own_rounds.json holds; arguments as `icl_align.world.StudiedWorld.study`.

    Returns:
      "learners": learner -> quantity -> mean, low, high by answer or round; "rounds_to_convergence"
      of each; "critics": a row for each of `settings`, with what the transformer gains and how
      accurate the critic is; "correlation" of the two over these rows, and the "threshold" of
      accuracy above which the fitted line says that there is a gain; "learned_critic": its accuracy
      on given attempts; "summary".
    """
    rounds, options = _Rounds(config, network, keys), config.own_rounds
    has_critic = config.loss.critic_weight > 0
    swept = settings(options, has_critic)
    work = len(MEASURED) + len(swept)
    progress(0.0)
    own = rounds.trained(params, critic_of(options))
    # Who cannot judge is judged by the formula that given attempts follow.
    judges = options.critic != LEARNED
    formula = options if judges else dataclasses.replace(options, critic=FORMULAS[0])
    values = {LEARNERS[0]: own}
    for name in WITHOUT_TRAINING:
        values[name] = rounds.untrained(name, critic_of(formula))
        progress(len(values) / work)
    learners = {
        name: {quantity: _curve(of[quantity]) for quantity in (*BY_ANSWER, *BY_ROUND)}
        for name, of in values.items()
    }
    rows = []
    for name, critic in swept.items():
        measured = rounds.trained(params, critic_of(critic), quickly=True)
        rows.append({"name": name} | gain_row(measured))
        progress((len(values) + len(rows)) / work)
    found = {
        "given_attempts": options.given_attempts,
        "rounds": config.evaluation.own_rounds,
        "learners": learners,
        "rounds_to_convergence": {
            name: rounds_to_convergence(of["refinement_error"]["mean"])
            for name, of in learners.items()
        },
        "critics": rows,
        **over_settings(rows),
    }
    if has_critic:
        found["learned_critic"] = _learned_critic(config, network, params, keys)
    return found | {"summary": summary(found)}


def _curve(values: Float[np.ndarray, "b s r"]) -> Interval:
    of = moments(values)
    mean, low, high = mean_interval(of)
    curve = {"mean": mean.tolist(), "low": low.tolist(), "high": high.tolist()}
    return curve | {"by_seed": of.seed_means.tolist()}


def rounds_to_convergence(means: list[float]) -> int | None:
    """The first round from which all later means stay within SETTLED of the last.

    None if that is the last itself: nobody knows whether it would stay.
    """
    away = np.flatnonzero(np.abs(np.asarray(means) - means[-1]) > SETTLED)
    first = int(away[-1]) + 1 if away.size else 0
    return first if first < len(means) - 1 or len(means) == 1 else None


def _learned_critic(
    config: Options, network: Callable[[Any], Transformer], params: Any, keys: Keys
) -> dict[str, Interval]:
    """The learned critic on given attempts, from the third on: pairs ranked right, correlation."""

    @jax.jit
    def judged(params, keys):
        contexts = sample_contexts(config.task, keys)
        _, expected = network(params).with_judgements(contexts)
        right = ranked_right(contexts._replace(rewards=expected))[:, 2:, 2:]
        pairs = jnp.tril(jnp.ones(right.shape[-2:]), -1)
        accuracy = jnp.sum(right * pairs, (-2, -1)) / jnp.sum(pairs)
        e, r = expected[:, 2:], contexts.rewards[:, 2:]
        both = jnp.stack([e, r, e**2, r**2, e * r], axis=-1).mean(axis=1)
        return accuracy, both

    seeds = len(jax.tree.leaves(params)[0])
    found = [judged(jax.tree.map(lambda leaf, s=s: leaf[s], params), keys) for s in range(seeds)]
    accuracy, both = (np.stack([np.asarray(one[k]) for one in found], axis=1) for k in (0, 1))

    return {
        "accuracy": interval_of(moments(accuracy)),
        "correlation": interval_of(statistic_moments(pearson, both)),
    }


def summary(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The headline numbers."""
    transformer = found["learners"][LEARNERS[0]]
    parts = {
        "error of the first answer": ("refinement_error", 0),
        f"error after {found['rounds']} own rounds": ("refinement_error", -1),
        "gain": ("gain", -1),
        "agreement with gradient descent": ("agreement", -1),
        "movement in the last round": ("movement", -1),
        "accuracy of the critic in the last round": ("critic_accuracy", -1),
    }
    rows = [
        {"name": name}
        | {side: transformer[quantity][side][place] for side in ("mean", "low", "high")}
        for name, (quantity, place) in parts.items()
    ]
    for name in ("correlation", "threshold"):
        if found[name] is not None:
            said = "of gain with accuracy" if name == "correlation" else "of a useful critic"
            rows.append({"name": f"{name} {said}"} | found[name])
    return rows
