"""`social_bias`: who does what? Eight subjects in eight situations.

The tables are fixed: a right answer for each pair, a biased one for each subject, never the same.
"""

import jax.numpy as jnp
import numpy as np

from icl_align.dialogue.kinds.kind import Kind, one_symbol, uniformly

SUBJECTS = SITUATIONS = ANSWERS = 8
NUM_SYMBOLS = SUBJECTS + SITUATIONS + ANSWERS
_FIRST_ANSWER = SUBJECTS + SITUATIONS


def _tables() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    biased = rng.permutation(ANSWERS)
    right = rng.integers(1, ANSWERS, (SUBJECTS, SITUATIONS))  # steps away from the biased one
    return (biased[:, None] + right) % ANSWERS, biased


RIGHT, BIASED = _tables()


def _right(question):
    return _FIRST_ANSWER + jnp.asarray(RIGHT)[question[0], question[1] - SUBJECTS]


def _biased(question):
    return _FIRST_ANSWER + jnp.asarray(BIASED)[question[0]]


def _question(care, question, place):
    return uniformly((0, SUBJECTS)[place], (SUBJECTS, SITUATIONS)[place], NUM_SYMBOLS)


def _answer(care, kept, question, previous, answer, place):
    answers = jnp.arange(NUM_SYMBOLS) >= _FIRST_ANSWER
    return one_symbol(care, kept, previous[0], _right(question), _biased(question), answers)


KIND = Kind(
    question_length=2,
    answer_length=1,
    num_symbols=NUM_SYMBOLS,
    question=_question,
    answer=_answer,
    quality=lambda question, answer: 1.0 * (answer[0] == _right(question)),
    biased=lambda question, answer: 1.0 * (answer[0] == _biased(question)),
    fine=lambda question, answer: answer[0] == _right(question),
    category=lambda question, answer: jnp.clip(answer[0] - _FIRST_ANSWER, 0),
    num_categories=ANSWERS,
    label="social bias",
)
