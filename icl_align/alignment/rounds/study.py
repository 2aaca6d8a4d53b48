"""Own rounds of every learner, and what they gain under many critics."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from icl_align.alignment.contexts import sample_contexts, shown_to_transformer
from icl_align.alignment.metrics import refinement_error
from icl_align.alignment.model import Transformer
from icl_align.alignment.options import FORMULAS, LEARNED, LEARNERS, Options
from icl_align.alignment.rounds.critics import Critic, critic_of, line_of
from icl_align.alignment.rounds.gains import (
    gain_row,
    learned_after,
    over_settings,
    pearson,
    settings,
)
from icl_align.alignment.rounds.learners import MEASURED, WITHOUT_TRAINING
from icl_align.alignment.rounds.quantities import (
    BOUNDS,
    BY_ANSWER,
    BY_ROUND,
    accuracy,
    beside_the_target,
    quantities,
)
from icl_align.alignment.rounds.roll_out import (
    InSteps,
    OwnRounds,
    in_steps,
    judged_by,
    own_rounds,
    transformer_in_steps,
    transformer_own_first,
)
from icl_align.config import with_values
from icl_align.intervals import Interval, of_mean, of_statistic, within
from icl_align.statistics import rounds_to_convergence

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

    def __init__(
        self, config: Options, network: Callable[[Any], Transformer], keys: Key[Array, "s b"]
    ):
        self._config, given = config, config.own_rounds.given_attempts
        self._keys, self.nested = keys, len(keys) > 1
        hides = config.task.shown_rewards == "none"

        def rolled(params, critic, keys, judging):
            learner = transformer_in_steps(network(params), hides)
            if config.evaluation.own_rounds_first:
                learner = transformer_own_first(network(params), given, hides)
            if judging is not None:
                learner = judged_by(learner, transformer_in_steps(network(judging), hides))
            return roll_out(config, learner, critic, keys)

        def judged(judging, critic, answers, keys):
            # The same answers for all; each critic has seen its own rewards of those before.
            learner = in_steps(lambda contexts, n: answers[:, n])
            if judging is not None:
                learner = judged_by(learner, transformer_in_steps(network(judging), hides))
            as_they_are = with_values(config, {"own_rounds.scale": "as_is"})
            made = roll_out(as_they_are, learner, critic, keys).contexts
            worth = -refinement_error(made.responses, made)[:, given:]
            return {
                "accuracy": accuracy(made, given),
                "moments": _moments(made.rewards[:, given:], worth),
            }

        self._measure = jax.jit(lambda made, keys: quantities(config, made, keys, given))
        self._measure_quickly = jax.jit(lambda made, keys: beside_the_target(made, given))
        self._rolled, self._judged = jax.jit(rolled), jax.jit(judged)
        self._learned = jax.jit(lambda params, keys: _on_given(config, network(params), keys))

    def trained(
        self, params: Any, critic: Critic, *, judging: Any = None, quickly: bool = False
    ) -> dict[str, Float[np.ndarray, "b s r"]]:
        """What is measured of networks.

        Args:
          params: with a leading axis of seeds.
          critic: who rewards.
          judging: of the networks that are the learned critics; their own if None.
          quickly: without what takes an optimisation for each context.
        """
        measure = self._measure_quickly if quickly else self._measure

        def of(own, keys):
            policy, judge = own
            return measure(self._rolled(policy, critic, keys, judge), keys)

        return self._of_seeds((params, judging), of)

    def untrained(self, name: str, critic: Critic) -> dict[str, Float[np.ndarray, "b s r"]]:
        """What is measured of a learner without training: of one seed, if all share contexts."""
        config = self._config

        @jax.jit
        def rolled(critic, keys):
            return roll_out(config, WITHOUT_TRAINING[name](config, keys), critic, keys)

        def measured(keys):
            return self._measure(rolled(critic, keys), keys)

        return _beside([self._gathered(measured, of_seed) for of_seed in self._keys])

    def judged(
        self, params: Any, critics: list[tuple[Critic, Any]]
    ) -> list[dict[str, Float[np.ndarray, "b s ..."]]]:
        """How accurate critics are on one pool of answers: the networks' own, under the critic of
        the options.

        Args:
          params: with a leading axis of seeds.
          critics: each with the networks that are its learned ones; None for formulas.
        """
        answering = critic_of(self._config.own_rounds, self._config.task)

        def of(own, keys):
            policy, judging = own
            pool = self._rolled(policy, answering, keys, None).contexts.responses
            found = [
                self._judged(judge, critic, pool, keys)
                for (critic, _), judge in zip(critics, judging, strict=True)
            ]
            return {name: jnp.stack([one[name] for one in found], axis=1) for name in found[0]}

        found = self._of_seeds((params, [judging for _, judging in critics]), of)  # [b, s, c, ...]
        return [
            {name: values[:, :, place] for name, values in found.items()}
            for place in range(len(critics))
        ]

    def of_learned_critic(self, params: Any) -> dict[str, Float[np.ndarray, "b s ..."]]:
        """How accurate the learned critic is on given attempts."""
        return self._of_seeds(params, self._learned)

    def _of_seeds(self, params: Any, measure: Callable[[Any, Keys], Any]) -> dict[str, np.ndarray]:
        seeds = len(jax.tree.leaves(params)[0])
        each = [jax.tree.map(lambda leaf, s=s: leaf[s], params) for s in range(seeds)]
        keys = self._keys if self.nested else [self._keys[0]] * seeds
        return _beside(
            [
                self._gathered(functools.partial(measure, own), of_seed)
                for own, of_seed in zip(each, keys, strict=True)
            ]
        )

    def _gathered(self, measure: Callable[[Keys], Any], keys: Keys) -> dict[str, np.ndarray]:
        size = min(self._config.evaluation.batch_size, len(keys))
        whole = -(-len(keys) // size) * size
        batches = jnp.concatenate([keys, keys[: whole - len(keys)]]).reshape(-1, size)
        found = [jax.device_get(measure(some)) for some in batches]
        joined = {name: np.concatenate([one[name] for one in found]) for name in found[0]}
        return {name: values[: len(keys)] for name, values in joined.items()}


def _beside(of_seeds: list[dict[str, np.ndarray]]) -> dict[str, Float[np.ndarray, "b s ..."]]:
    return {name: np.stack([one[name] for one in of_seeds], axis=1) for name in of_seeds[0]}


def _on_given(
    config: Options, network: Transformer, keys: Keys
) -> dict[str, Float[Array, "b ..."]]:
    """The same of a learned critic on given attempts, from the third on: none can judge before."""
    contexts = sample_contexts(config.task, keys)
    _, expected = network.with_judgements(shown_to_transformer(config.task, contexts, keys))
    trained_on = slice(config.last_attempts)
    contexts = contexts._replace(
        responses=contexts.responses[:, trained_on], rewards=contexts.rewards[:, trained_on]
    )
    expected, first = expected[:, trained_on], min(2, config.last_attempts - 1)
    return {
        "accuracy": accuracy(contexts, first, expected),
        "moments": _moments(expected[:, first:], contexts.rewards[:, first:]),
    }


def _moments(x: Float[Array, "b n"], y: Float[Array, "b n"]) -> Float[Array, "b 5"]:
    return jnp.stack([x, y, x**2, y**2, x * y], axis=-1).mean(axis=1)


def study(
    config: Options,
    network: Callable[[Any], Transformer],
    params: Any,
    earlier: Callable[[], dict[int, Any]],
    keys: Key[Array, "s b"],
    progress: Callable[[float], None],
) -> dict[str, Any]:
    """What own_rounds.json holds; arguments as `icl_align.world.StudiedWorld.study`.

    A learned critic is examined as each kept checkpoint has it; who answers is the last.

    Returns:
      "learners": learner -> quantity -> mean, low, high by answer or round, and each seed's;
      "rounds_to_convergence" of each, of the mean and of each seed; "critics": a row for each of
      `gains.settings`, see `gains.gain_row`; "correlation" and "threshold" over them, see
      `gains.over_settings`; "learned_critics": accuracy and correlation of each on
      given attempts; "critic_of_others": who rewards learners that cannot judge; "summary".
    """
    rounds, options = _Rounds(config, network, keys), config.own_rounds
    has_critic = config.loss.critic_weight > 0 and not config.evaluation.own_rounds_first
    learned = {LEARNED: params} if has_critic else {}
    if has_critic:
        learned |= {learned_after(step): of_step for step, of_step in earlier().items()}
    swept = settings(options, tuple(learned))
    critics = [(critic_of(one, config.task), learned.get(name)) for name, one in swept.items()]
    work = len(MEASURED) + len(swept) + 1
    progress(0.0)
    values = {LEARNERS[0]: rounds.trained(params, critic_of(options, config.task))}
    progress(1 / work)
    of_others = options  # who has no critic is rewarded by a formula
    if options.critic == LEARNED:
        of_others = dataclasses.replace(options, critic=FORMULAS[0])
    for name in WITHOUT_TRAINING:
        values[name] = rounds.untrained(name, critic_of(of_others, config.task))
        progress(len(values) / work)
    learners = {
        name: {
            quantity: within(of_mean(of[quantity], rounds.nested), *BOUNDS[quantity])
            for quantity in (*BY_ANSWER, *BY_ROUND)
        }
        for name, of in values.items()
    }
    judged, rows, first = rounds.judged(params, critics), [], None
    for name, (critic, judging), of_pool in zip(swept, critics, judged, strict=True):
        judging = None if name == LEARNED else judging  # who answers reads it already
        measured = rounds.trained(params, critic, judging=judging, quickly=True)
        # Of the first critic, which leaves given rewards as they are.
        first = measured["refinement_error"][..., 0] if first is None else first
        rows.append({"name": name} | gain_row(first, measured, of_pool, rounds.nested))
        progress((len(values) + 1 + len(rows)) / work)
    found = {
        "given_attempts": options.given_attempts,
        "rounds": config.evaluation.own_rounds,
        "critic": options.critic,
        "critic_of_others": of_others.critic,
        "learners": learners,
        "rounds_to_convergence": {
            name: _convergence(of, rounds.nested) for name, of in values.items()
        },
        "critics": rows,
        **over_settings([rows]),
    }
    if has_critic:
        found["learned_critics"] = [
            {"name": name} | _of_given(rounds.of_learned_critic(of), rounds.nested)
            for name, of in learned.items()
        ]
    return found | {"summary": summary(found)}


def _of_given(judged: dict[str, Float[np.ndarray, "b s ..."]], nested: bool) -> dict[str, Interval]:
    return {
        "accuracy": within(of_mean(judged["accuracy"], nested), 0, 1),
        "correlation": of_statistic(pearson, judged["moments"], nested),
    }


def _convergence(values: dict[str, Float[np.ndarray, "b s r"]], nested: bool) -> Interval:
    """Rounds to convergence of the refinement error, each seed's too; the last for never."""
    errors = values["refinement_error"]
    interval = of_statistic(rounds_to_convergence, errors, nested)
    each = rounds_to_convergence(errors.mean(axis=0))
    return within(interval, 0, errors.shape[-1] - 1) | {"by_seed": each.tolist()}


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
