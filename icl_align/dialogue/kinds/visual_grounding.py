"""`visual_grounding`: where is it? Two coordinates, to be read from noisy views of each.

As `visual_question`, twice. A view is off by one with some probability, and anywhere with less.
"""

import jax
import jax.numpy as jnp
import numpy as np

from icl_align.dialogue.kinds.kind import Kind, one_symbol, uniformly

SUBJECTS, CELLS, VIEWS = 4, 6, 2
FIRST_VIEW = SUBJECTS
FIRST_ANSWER = SUBJECTS + CELLS
NUM_SYMBOLS = FIRST_ANSWER + CELLS

USUAL = np.random.default_rng(4).integers(0, CELLS, (SUBJECTS, 2))  # where carelessness looks


def _view_table() -> np.ndarray:
    distance = np.abs(np.subtract.outer(np.arange(CELLS), np.arange(CELLS)))
    weights = np.select([distance == 0, distance == 1], [0.6, 0.15], 0.02)
    return weights / weights.sum(axis=1, keepdims=True)


VIEW = _view_table()  # [cell, what a view shows]


def posterior(question, coordinate, num_views=VIEWS):
    """Log-probabilities of a coordinate's cell, given its first views; uniform before.

    The views of a question alternate between the coordinates.
    """
    shown = question[1 + coordinate : 1 + 2 * num_views : 2] - FIRST_VIEW
    return jax.nn.log_softmax(jnp.sum(jnp.log(jnp.asarray(VIEW)[:, shown]), axis=1))


def _question(care, question, place):
    if place == 0:
        return uniformly(0, SUBJECTS, NUM_SYMBOLS)
    number, coordinate = divmod(place - 1, 2)
    view = jnp.exp(posterior(question, coordinate, number)) @ jnp.asarray(VIEW)
    return jnp.concatenate([jnp.full(SUBJECTS, -jnp.inf), jnp.log(view), jnp.full(CELLS, -jnp.inf)])


def _right(question, coordinate):
    return FIRST_ANSWER + jnp.argmax(posterior(question, coordinate))


def _biased(question, coordinate):
    return FIRST_ANSWER + jnp.asarray(USUAL)[question[0], coordinate]


def _answer(care, kept, question, previous, answer, place):
    right, biased = _right(question, place), _biased(question, place)
    answers = jnp.arange(NUM_SYMBOLS) >= FIRST_ANSWER
    return one_symbol(care, kept, previous[place], right, biased, answers)


def _cells(answer):
    return jnp.clip(answer - FIRST_ANSWER, 0)


def _quality(question, answer):
    each = [jnp.exp(posterior(question, xy))[_cells(answer)[xy]] for xy in (0, 1)]
    return each[0] * each[1]


KIND = Kind(
    question_length=1 + 2 * VIEWS,
    answer_length=2,
    num_symbols=NUM_SYMBOLS,
    question=_question,
    answer=_answer,
    quality=_quality,
    biased=lambda question, answer: (
        1.0 * ((answer[0] == _biased(question, 0)) & (answer[1] == _biased(question, 1)))
    ),
    fine=lambda question, answer: (
        (answer[0] == _right(question, 0)) & (answer[1] == _right(question, 1))
    ),
    category=lambda question, answer: _cells(answer)[0] * CELLS + _cells(answer)[1],
    num_categories=CELLS**2,
    label="visual grounding",
)
