"""`visual_question`: an attribute of a subject, to be read from several noisy views of it.

Carelessness answers from the language alone: with what the subject's attribute usually is. The
noise of the views is a ceiling that no instruction lifts: what they speak for is not always the
attribute. The attribute itself is never a token, so a view's distribution is that given
the views before it, and an answer is right with its posterior probability.
"""

import jax
import jax.numpy as jnp
import numpy as np

from icl_align.dialogue.kinds.kind import one_symbol_kind, uniformly

SUBJECTS = ATTRIBUTES = 8
VIEWS = 3
VIEW_RIGHT = 0.5  # chance of a view to show the attribute; else it shows any other
FIRST_VIEW = SUBJECTS
FIRST_ANSWER = SUBJECTS + ATTRIBUTES
NUM_SYMBOLS = FIRST_ANSWER + ATTRIBUTES

USUAL = np.random.default_rng(3).permutation(ATTRIBUTES)  # of each subject


def posterior(question, num_views=VIEWS):
    """Log-probabilities of the attribute, given the first views of a question; uniform before."""
    seen = question[1 : 1 + num_views, None] - FIRST_VIEW == jnp.arange(ATTRIBUTES)
    likelihood = jnp.where(seen, VIEW_RIGHT, (1 - VIEW_RIGHT) / (ATTRIBUTES - 1))
    return jax.nn.log_softmax(jnp.sum(jnp.log(likelihood), axis=0))


def _question(care, question, place):
    if place == 0:
        return uniformly(0, SUBJECTS, NUM_SYMBOLS)
    attribute = jnp.exp(posterior(question, place - 1))
    elsewhere = (1 - VIEW_RIGHT) / (ATTRIBUTES - 1)
    view = elsewhere + (VIEW_RIGHT - elsewhere) * attribute
    empty = jnp.full(ATTRIBUTES, -jnp.inf)
    return jnp.concatenate([empty, jnp.log(view), empty])


def _right(question):
    return FIRST_ANSWER + jnp.argmax(posterior(question))


def _biased(question):
    return FIRST_ANSWER + jnp.asarray(USUAL)[question[0]]


def _chance_to_be_right(question, answer):
    return jnp.exp(posterior(question))[jnp.clip(answer[0] - FIRST_ANSWER, 0)]


KIND = one_symbol_kind(
    question_length=1 + VIEWS,
    first_answer=FIRST_ANSWER,
    num_answers=ATTRIBUTES,
    question=_question,
    right=_right,
    biased=_biased,
    label="visual question",
    others={"quality": _chance_to_be_right},
)
