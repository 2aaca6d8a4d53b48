"""The alignment world as the protocol of `icl_align.world` asks: what `running/` sees of it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from icl_align.alignment.contexts import (
    Context,
    contexts_of,
    sample_contexts,
    shown_to_transformer,
)
from icl_align.alignment.learners import (
    best_attempt,
    descent_of,
    least_squares,
    weighted_average,
)
from icl_align.alignment.losses import training_loss
from icl_align.alignment.metrics import agreement, refinement_error, regret
from icl_align.alignment.model import Transformer
from icl_align.alignment.optimum import optimality_gap, plackett_luce_optimum
from icl_align.alignment.options import LEARNERS, QUANTITIES, Options
from icl_align.alignment.rounds.in_training import with_own_attempts
from icl_align.alignment.tokens import num_tokens
from icl_align.config import implemented
from icl_align.world import Sample, Untrained

# An optimum whose loss still has a gradient above this norm counts as not converged.
CONVERGED_GAP = 1e-2

Answers = Float[Array, "b n_plus_1 d"]
Judgements = Float[Array, "b n"]
# What answers are compared with.
Reference = dict[str, Answers]


# Learner -> (options, contexts, their keys, reward noise) -> its answers.
LEARNER_ANSWERS: dict[str, Callable[..., Answers]] = implemented(
    LEARNERS[1:],
    {
        "gradient_descent": descent_of,
        "plackett_luce_optimum": lambda config, contexts, keys, noise: plackett_luce_optimum(
            contexts, config.loss.score
        ),
        "best_attempt": lambda config, contexts, keys, noise: best_attempt(contexts),
        "weighted_average": lambda config, contexts, keys, noise: weighted_average(contexts),
        "least_squares": lambda config, contexts, keys, noise: least_squares(contexts),
    },
)
QUANTITY_FUNCTIONS: dict[str, Callable[..., Float[Array, "b n_plus_1"]]] = implemented(
    tuple(QUANTITIES),
    {
        "refinement_error": lambda answers, contexts, reference, score: refinement_error(
            answers, contexts
        ),
        "regret": lambda answers, contexts, reference, score: regret(
            answers, reference["optimum"], contexts, score
        ),
        "agreement": lambda answers, contexts, reference, score: agreement(
            answers, reference["gradient_descent"]
        ),
    },
)


def quantities(
    answers: Answers, contexts: Context, reference: Reference, score: str
) -> dict[str, Float[Array, "b n_plus_1"]]:
    """All that is measured of a learner's answers, by name."""
    return {
        name: quantity(answers, contexts, reference, score)
        for name, quantity in QUANTITY_FUNCTIONS.items()
    }


class Alignment:
    """Responses with rewards; the docstrings of `icl_align.world.World` say what each method is."""

    def sample(self, config: Options, keys: Key[Array, " batch"]) -> Sample:
        """Contexts, cut after the last attempt that is trained on where nothing sees later ones."""
        return self._cut(config, sample_contexts(config.task, keys), keys)

    def provoked(
        self, config: Options, network: Transformer, sample: Sample, keys: Key[Array, " batch"]
    ) -> Sample:
        """With the network's own attempts in a share of the contexts."""
        if not config.train.own_rounds_share:
            return sample
        made = with_own_attempts(config, network, sample.given, keys)
        # The ranking that an own attempt is part of is no way to lower the loss; what is shown is.
        return Sample(self._cut(config, made, keys).shown, jax.lax.stop_gradient(made))

    def _cut(self, config: Options, contexts: Context, keys: Key[Array, " batch"]) -> Sample:
        shown = self.shown(config, contexts, keys)
        if not config.model.sees_future:
            last = config.last_attempts
            shown = shown._replace(
                responses=shown.responses[..., :last, :], rewards=shown.rewards[..., :last]
            )
        return Sample(shown, contexts)

    def given(self, config: Options, arrays: Any) -> Context:
        """A `Context`, of one or of (query, responses, rewards), with or without a target."""
        return contexts_of(config.task, arrays)

    def shown(self, config: Options, given: Context, keys: Key[Array, " b"]) -> Context:
        """Contexts whose rewards a control hides or shuffles."""
        return shown_to_transformer(config.task, given, keys)

    def learners(self, config: Options) -> dict[str, Callable[[Context, Any], Answers]]:
        """Those of `options.LEARNERS` but the transformer, under the task's own reward noise."""

        def with_options(answer):
            return lambda given, keys: answer(config, given, keys, config.task.reward_noise)

        return {name: with_options(answer) for name, answer in LEARNER_ANSWERS.items()}

    def network(self, config: Options, rngs: nnx.Rngs) -> Transformer:
        """The transformer."""
        critic = config.loss.critic_weight > 0
        return Transformer(config.model, config.task, rngs=rngs, critic=critic)

    def num_tokens(self, config: Options) -> int:
        """Up to the last prediction that is trained on."""
        judged = config.last_attempts if config.loss.critic_weight else 0
        return self.num_tokens_measured(config) + judged

    def num_tokens_measured(self, config: Options) -> int:
        """All but those that a critic judges."""
        sees_all = config.model.sees_future
        attempts = config.task.num_responses if sees_all else config.last_attempts
        return num_tokens(config.model, attempts)

    def answers(
        self, config: Options, network: Transformer, shown: Context
    ) -> tuple[Answers, Judgements | None]:
        """Its predictions, and its critic's where one is trained."""
        if config.loss.critic_weight:
            return network.with_judgements(shown)
        return network(shown), None

    def loss(
        self, config: Options, answers: tuple[Answers, Judgements | None], given: Context
    ) -> Float[Array, ""]:
        """The mean of `config.loss` over contexts and attempts, and the critic's squared error."""
        predictions, judgements = answers
        loss = training_loss(config.loss, predictions, given)
        if judgements is None:
            return loss
        rewards = given.rewards[..., : judgements.shape[-1]]
        return loss + config.loss.critic_weight * jnp.mean((judgements - rewards) ** 2)

    def conditions(self, config: Options) -> dict[str, Float[Array, ""]]:
        """The levels of reward noise."""
        levels = config.evaluation.reward_noise
        return {str(level): jnp.asarray(level, jnp.float32) for level in levels}

    def untrained(
        self, config: Options, condition: Float[Array, ""], keys: Key[Array, " b"]
    ) -> Untrained:
        """Every learner that needs no training, and the two that answers are compared with."""
        contexts = sample_contexts(config.task, keys, condition)
        answers = {
            name: answer(config, contexts, keys, condition)
            for name, answer in LEARNER_ANSWERS.items()
        }
        reference = {
            "gradient_descent": answers["gradient_descent"],
            "optimum": answers["plackett_luce_optimum"],
        }
        measured = {
            name: quantities(of_learner, contexts, reference, config.loss.score)
            for name, of_learner in answers.items()
        }
        gap = optimality_gap(reference["optimum"], contexts, config.loss.score)
        not_converged = jnp.max(gap, axis=-1) > CONVERGED_GAP
        return Untrained(measured, reference, {"optimum_not_converged": not_converged})

    def trained(
        self,
        config: Options,
        condition: Float[Array, ""],
        keys: Key[Array, " b"],
        network: Callable[[Context], Answers],
        needed: Reference,
    ) -> dict[str, Float[Array, "b n_plus_1"]]:
        """The transformer's answers, measured as those of the other learners."""
        contexts = sample_contexts(config.task, keys, condition)
        answers = network(self.shown(config, contexts, keys))
        return quantities(answers, contexts, needed, config.loss.score)

    def figure(self, config: Options, curves: dict[str, Any]) -> Any:
        """Learners, reward noise, regret and agreement."""
        # Matplotlib would hold up the first step.
        from icl_align.alignment.figures import curves_figure, is_published_task

        return curves_figure(curves, is_published_task(config.task))

    def study(
        self,
        config: Options,
        network: Callable[[Any], Transformer],
        params: Any,
        earlier: Callable[[], dict[int, Any]],
        keys: Key[Array, "s b"],
        progress: Callable[[float], None],
    ) -> dict[str, Any]:
        """Own rounds of every learner, and what they gain under many critics."""
        # It builds the constructed networks, which training does not need.
        from icl_align.alignment.rounds.study import study

        return study(config, network, params, earlier, keys, progress)

    def study_figure(self, config: Options, found: dict[str, Any]) -> Any:
        """Quantities by round, and gains by the critic's accuracy."""
        from icl_align.alignment.rounds.figures import own_rounds_figure

        return own_rounds_figure(found)


WORLD = Alignment()
