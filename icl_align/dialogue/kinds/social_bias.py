"""`social_bias`: who does what? Eight subjects in eight situations.

The tables are fixed: a right answer for each pair, a biased one for each subject, never the same.
"""

import jax.numpy as jnp
import numpy as np

from icl_align.dialogue.kinds.kind import one_symbol_kind, uniformly

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


KIND = one_symbol_kind(
    question_length=2,
    first_answer=_FIRST_ANSWER,
    num_answers=ANSWERS,
    question=_question,
    right=_right,
    biased=_biased,
    label="social bias",
)
