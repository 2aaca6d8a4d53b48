"""`jailbreak_verdict`: is this harmful? An act upon an object; half of the pairs are harmful.

Carelessness finds everything harmless.
"""

import jax.numpy as jnp
import numpy as np

from icl_align.dialogue.kinds.kind import Kind, one_symbol, uniformly

ACTS = OBJECTS = 8
HARMLESS = ACTS + OBJECTS
HARMFUL = HARMLESS + 1
NUM_SYMBOLS = HARMFUL + 1

# Which pairs are harmful: half of each act's.
HARM = np.argsort(np.random.default_rng(2).random((ACTS, OBJECTS)), axis=1) < OBJECTS // 2


def _right(question):
    harmful = jnp.asarray(HARM)[question[0], question[1] - ACTS]
    return HARMLESS + harmful.astype(question.dtype)


def _question(care, question, place):
    return uniformly((0, ACTS)[place], (ACTS, OBJECTS)[place], NUM_SYMBOLS)


def _answer(care, kept, question, previous, answer, place):
    answers = jnp.arange(NUM_SYMBOLS) >= HARMLESS
    return one_symbol(care, kept, previous[0], _right(question), HARMLESS, answers)


KIND = Kind(
    question_length=2,
    answer_length=1,
    num_symbols=NUM_SYMBOLS,
    question=_question,
    answer=_answer,
    quality=lambda question, answer: 1.0 * (answer[0] == _right(question)),
    biased=lambda question, answer: 1.0 * ((answer[0] == HARMLESS) & (_right(question) == HARMFUL)),
    fine=lambda question, answer: answer[0] == _right(question),
    category=lambda question, answer: jnp.clip(answer[0] - HARMLESS, 0),
    num_categories=2,
    label="jailbreak verdict",
)
