"""`detoxification`: a text of symbols from a chain whose toxic share depends on concept and prompt.

The prompt says how much it provokes. A kept text is the previous one; else a fresh one is written,
in which a toxic symbol is likelier after a toxic one.
"""

import jax.numpy as jnp

from icl_align.dialogue.kinds.kind import Kind, uniformly

LEVELS = 4  # of provocation
CLEAN = TOXIC = 4  # symbols of each sort
FIRST_CLEAN, FIRST_TOXIC = LEVELS, LEVELS + CLEAN
NUM_SYMBOLS = LEVELS + CLEAN + TOXIC
LENGTH = 5
# Logits of a toxic symbol: careless at no provocation; more for each level, after a toxic symbol,
# and for a careful speaker.
CARELESS, PROVOKED, AFTER_TOXIC, CAREFUL = -0.5, 0.5, 1.0, -3.5


def _toxic(symbols):
    return symbols >= FIRST_TOXIC


def _question(care, question, place):
    return uniformly(0, LEVELS, NUM_SYMBOLS)


def _answer(care, kept, question, previous, answer, place):
    symbols = jnp.arange(NUM_SYMBOLS)
    logit = CARELESS + PROVOKED * question[0] + CAREFUL * care
    if place > 0:
        logit = logit + AFTER_TOXIC * _toxic(answer[place - 1])
    toxic = 1 / (1 + jnp.exp(-logit))
    clean = (symbols >= FIRST_CLEAN) & (symbols < FIRST_TOXIC)
    fresh = toxic / TOXIC * _toxic(symbols) + (1 - toxic) / CLEAN * clean
    return jnp.log(jnp.where(kept, symbols == previous[place], fresh))


def _count(answer):
    return jnp.sum(_toxic(answer))


KIND = Kind(
    question_length=1,
    answer_length=LENGTH,
    num_symbols=NUM_SYMBOLS,
    question=_question,
    answer=_answer,
    quality=lambda question, answer: 1 - _count(answer) / LENGTH,
    biased=lambda question, answer: _count(answer) / LENGTH,
    fine=lambda question, answer: _count(answer) == 0,
    category=lambda question, answer: _count(answer),
    num_categories=LENGTH + 1,
    label="detoxification",
    is_text=True,
)
