"""What is measured of a reader's rounds: one value for each dialogue and round."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from icl_align.config import implemented
from icl_align.dialogue import speakers
from icl_align.dialogue.drafts import class_entropy, mean_log_loss_of_classes, share_of_class
from icl_align.dialogue.kinds.kind import NONE
from icl_align.dialogue.options import QUANTITIES, TaskConfig
from icl_align.dialogue.readers import EVIDENCE, Reading, activation, read
from icl_align.dialogue.rounds import RollOut
from icl_align.dialogue.vocabulary import are_texts, kinds_of, vocabulary_of
from icl_align.statistics import BINS, RANK_BINS

EM_STEPS = 60  # of the belief that explains an answer's distribution

Rounds = Float[Array, "b t"]


def quantities(task: TaskConfig, rolled: RollOut) -> dict[str, Rounds]:
    """All quantities of roll-outs, by name."""
    exact = jax.vmap(lambda dialogue: read(task, EVIDENCE["exact"], dialogue))(rolled.dialogue)
    dialogue = rolled.dialogue
    quality = jax.vmap(
        lambda kind, question, answers: jax.vmap(
            lambda answer: speakers.quality_of(task, kind, question, answer)
        )(answers)
    )(dialogue.kind, dialogue.question, dialogue.answers)
    own = jax.nn.log_softmax(rolled.answer)
    said = jnp.take_along_axis(own, dialogue.answers[..., None], axis=-1)[..., 0]
    log_p, places = jnp.sum(said, axis=-1), _places(exact)
    confidence, uncertainty = jnp.exp(log_p), jnp.sum(_entropy(own), axis=-1)
    as_coded, most = -log_p / places, jnp.log(1.0 * vocabulary_of(task).num_symbols) * places
    if rolled.drafts is not None:
        is_text, most_of_text = (of[dialogue.kind][:, None] for of in _about_texts(task))
        share = share_of_class(rolled.drafts, quality.category)
        confidence = jnp.where(is_text, share, confidence)
        uncertainty = jnp.where(is_text, class_entropy(rolled.drafts), uncertainty)
        as_coded = jnp.where(is_text, mean_log_loss_of_classes(rolled.drafts), as_coded)
        most = jnp.where(is_text, most_of_text, most)
    calibration = calibration_features(confidence, quality.quality)
    found: dict[str, Callable[[], Rounds]] = {
        "accuracy": lambda: quality.quality,
        "gain": lambda: quality.quality - quality.quality[:, :1],
        "biased": lambda: quality.biased,
        "uncertainty": lambda: uncertainty,
        "uncertainty_as_coded": lambda: as_coded,
        "confidence": lambda: confidence,
        "calibration_error": lambda: calibration,
        "calibration_error_corrected": lambda: calibration,
        "rank_calibration_error": lambda: rank_features(uncertainty / most, quality.quality),
        "activation": lambda: _activation(task, rolled),
        "excess_loss": lambda: jnp.sum(_divergence(exact.answer, rolled.answer), axis=-1) / places,
        "excess_loss_check": lambda: _divergence(exact.check, rolled.check),
        "excess_loss_instruction": lambda: _divergence(exact.instruction, rolled.instruction),
    }
    return {name: of() for name, of in implemented(tuple(QUANTITIES), found).items()}


def _about_texts(task: TaskConfig) -> tuple[Bool[Array, " k"], Float[Array, " k"]]:
    """Of each kind that is mixed: whether it has texts, and the most uncertainty of a class."""
    most = [math.log(kind.num_categories) for kind in kinds_of(task)]
    return jnp.asarray(are_texts(task)), jnp.array(most)


def _entropy(log_probs: Float[Array, "*b n"]) -> Float[Array, "*b"]:
    p = jnp.exp(log_probs)
    return -jnp.sum(jnp.where(p > 0, p * log_probs, 0), axis=-1)


def _divergence(exact: Float[Array, "*b n"], other: Float[Array, "*b n"]) -> Float[Array, "*b"]:
    """Kullback-Leibler divergence of a reader from the exact one, in nats.

    It is the reader's expected excess loss on a token that the exact reader's distribution draws.
    """
    p = jnp.exp(exact)
    return jnp.sum(jnp.where(p > 0, p * (exact - jnp.maximum(other, -100.0)), 0), axis=-1)


def _places(exact: Reading) -> Rounds:
    """How many symbols an answer has: those after its end are certain."""
    return jnp.sum(exact.answer[..., -1] < -1e-6, axis=-1) * 1.0


def calibration_features(
    confidence: Float[Array, "*b"], correct: Float[Array, "*b"]
) -> Float[Array, "*b m"]:
    """For each bin of confidence: whether it is this one; the gap, confidence - correct; and the
    variance of a right confidence. What `statistics.calibration_error` takes the mean of.
    """
    inside = _in_bins(confidence, BINS)
    gap, variance = confidence - correct, confidence * (1 - confidence)
    features = [inside, inside * gap[..., None], inside * variance[..., None]]
    return jnp.concatenate(features, axis=-1)


def rank_features(
    uncertainty: Float[Array, "*b"], correct: Float[Array, "*b"]
) -> Float[Array, "*b m"]:
    """For each bin of uncertainty, a share of its largest: whether it is this one; and correct."""
    inside = _in_bins(uncertainty, RANK_BINS)
    return jnp.concatenate([inside, inside * correct[..., None]], axis=-1)


def _in_bins(values: Float[Array, "*b"], number: int) -> Float[Array, "*b bins"]:
    place = jnp.clip((values * number).astype(int), 0, number - 1)
    return jax.nn.one_hot(place, number)


def _activation(task: TaskConfig, rolled: RollOut) -> Rounds:
    """Log-odds of the careful concept: of a belief, or of the one that explains answers best."""
    belief = rolled.belief
    if belief is None:
        belief = jax.vmap(lambda one: _implied_belief(task, one))(rolled)
    return activation(belief)


def _implied_belief(task: TaskConfig, rolled: RollOut) -> Float[Array, "t c"]:
    """The belief whose speakers' mixture is closest to what a reader expects of an answer.

    Of the first symbol, in Kullback-Leibler divergence, by expectation-maximisation.
    """
    dialogue, concepts = rolled.dialogue, jnp.arange(task.num_concepts)

    def of_round(number):
        first = number == 0
        previous = jnp.where(first, NONE, dialogue.answers[number - 1])
        log_modes = speakers.log_modes(task, dialogue.checks[number - 1], first)

        def mixture(concept):
            of = lambda mode: jnp.exp(  # noqa: E731
                speakers.log_answer(
                    task, dialogue.kind, concept, mode, dialogue.question, previous,
                    dialogue.answers[number], 0,
                )
            )  # fmt: skip
            return jnp.exp(log_modes) @ jax.vmap(of)(jnp.arange(len(log_modes)))

        components = jax.vmap(mixture)(concepts)  # [C, S + 1]
        wanted = jax.nn.softmax(rolled.answer[number, 0])

        def step(_, weights):
            whole = jnp.maximum(weights @ components, 1e-30)
            return weights * (components @ (wanted / whole))

        uniform = jnp.full(len(concepts), 1 / len(concepts))
        weights = jax.lax.fori_loop(0, EM_STEPS, step, uniform)
        return jnp.log(jnp.maximum(weights / weights.sum(), 1e-9))

    return jax.vmap(of_round)(jnp.arange(task.rounds))
