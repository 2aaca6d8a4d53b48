"""Drafts: answers that a reader might have given as well, for what it thinks of a text.

Two texts that differ may say the same, so the uncertainty of a text is that of its class.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy.special import digamma

from icl_align.dialogue import speakers
from icl_align.dialogue.options import TaskConfig
from icl_align.dialogue.vocabulary import are_texts, kinds_of


class Drafts(NamedTuple):
    """Answers that a reader might have given as well: N for each round.

    Attributes:
      category: class of each.
      log_loss: mean of -log probability over its symbols.
    """

    category: Int[Array, "*b n"]
    log_loss: Float[Array, "*b n"]


def drafts_of(
    task: TaskConfig,
    kind: Int[Array, ""],
    question: Int[Array, " q"],
    answers: Int[Array, "n a"],
    log_p: Float[Array, " n"],
) -> Drafts:
    """The drafts of one round, from answers and their log-probabilities."""
    of = jax.vmap(lambda answer: speakers.quality_of(task, kind, question, answer).category)
    lengths = jnp.array([one.answer_length for one in kinds_of(task)])
    return Drafts(of(answers), -log_p / lengths[kind])


def confidence_of(
    task: TaskConfig,
    kind: Int[Array, ""],
    question: Int[Array, " q"],
    answer: Int[Array, " a"],
    log_p: Float[Array, ""],
    drafts: Drafts,
) -> Float[Array, ""]:
    """The probability that a reader gave to an answer, or to its class if it is a text."""
    category = speakers.quality_of(task, kind, question, answer).category
    is_text = jnp.asarray(are_texts(task))[kind]
    return jnp.where(is_text, share_of_class(drafts, category), jnp.exp(log_p))


def share_of_class(drafts: Drafts, category: Int[Array, "*b"]) -> Float[Array, "*b"]:
    """How many of the drafts are of a class."""
    return jnp.mean(1.0 * (drafts.category == category[..., None]), axis=-1)


def class_entropy(drafts: Drafts) -> Float[Array, "*b"]:
    """Entropy of the class of an answer in nats, from n drafts.

    The estimator of Schuermann (2004, with xi = 1/2), whose bias is small however few they are:
    psi(n) - sum_i (n_i / n) G(n_i), G(n) = psi(n) + (-1)^n / 2 [psi((n + 1) / 2) - psi(n / 2)].
    """
    number = drafts.category.shape[-1]
    n = np.arange(1, number + 1)
    alternating = (-1.0) ** n / 2 * (digamma((n + 1) / 2) - digamma(n / 2))
    of_count = jnp.asarray(digamma(n) + alternating, jnp.float32)
    counts = jnp.sum(_together(drafts), axis=-1)  # of the class of each draft
    return float(digamma(number)) - jnp.mean(of_count[counts - 1], axis=-1)


def mean_log_loss_of_classes(drafts: Drafts) -> Float[Array, "*b"]:
    """The uncertainty of a text as the code of Liu et al. (2025) computes it, in nats.

    The mean over classes of the mean log-loss a token of their drafts; no entropy of classes. Of
    an answer that is no text it is that of the answer itself.
    """
    n = drafts.category.shape[-1]
    share = jnp.mean(1.0 * _together(drafts), axis=-1)
    weights = 1 / (n * share)  # so that every class counts alike
    return jnp.sum(weights * drafts.log_loss, axis=-1) / jnp.sum(weights, axis=-1)


def _together(drafts: Drafts) -> Bool[Array, "*b n n"]:
    return drafts.category[..., :, None] == drafts.category[..., None, :]
