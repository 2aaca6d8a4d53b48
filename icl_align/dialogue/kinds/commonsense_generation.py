"""`commonsense_generation`: a text that has to cover given words.

A text that is not kept is revised: words of the previous one that were asked for stay where they
are, and a missing one is put in at the other places with a probability that grows with care. So it
takes several rounds until all are covered.
"""

import jax.numpy as jnp

from icl_align.dialogue.kinds.kind import Kind

WORDS, GIVEN, FILLERS = 8, 3, 4
FIRST_FILLER = WORDS
NUM_SYMBOLS = WORDS + FILLERS
LENGTH = 5
STAYS = 0.98  # a covered word of the previous text stays at its place
CAREFUL_ADDS, CARELESS_ADDS = 0.2, 0.04  # a missing word comes at a free place


def _question(care, question, place):
    symbols = jnp.arange(NUM_SYMBOLS)
    free = symbols < WORDS
    for before in range(place):
        free &= symbols != question[before]
    return jnp.log(free / free.sum())


def _answer(care, kept, question, previous, answer, place):
    symbols = jnp.arange(NUM_SYMBOLS)
    given = jnp.any(symbols[:, None] == question, axis=1)
    written = jnp.zeros(NUM_SYMBOLS, bool)
    for before in range(place):
        written |= symbols == answer[before]
    # Words that the previous text has from here on will stay, so they are not missing.
    to_come = jnp.any(symbols[:, None] == previous[place:], axis=1)
    missing = given & ~written & ~to_come
    adds = (CARELESS_ADDS + (CAREFUL_ADDS - CARELESS_ADDS) * care) * jnp.any(missing)
    anything = 1.0 * (symbols >= FIRST_FILLER) + 0.02 * (symbols < WORDS)
    free = adds * missing / jnp.maximum(missing.sum(), 1) + (1 - adds) * anything / anything.sum()
    stays = (symbols == previous[place]) & given & ~written
    fresh = jnp.where(jnp.any(stays), STAYS * stays + (1 - STAYS) * free, free)
    return jnp.log(jnp.where(kept, symbols == previous[place], fresh))


def _covered(question, answer):
    return jnp.sum(jnp.any(question[:, None] == answer, axis=1))


KIND = Kind(
    question_length=GIVEN,
    answer_length=LENGTH,
    num_symbols=NUM_SYMBOLS,
    question=_question,
    answer=_answer,
    quality=lambda question, answer: _covered(question, answer) / GIVEN,
    biased=lambda question, answer: 1 - _covered(question, answer) / GIVEN,
    fine=lambda question, answer: _covered(question, answer) == GIVEN,
    category=lambda question, answer: _covered(question, answer),
    num_categories=GIVEN + 1,
    label="commonsense generation",
    is_text=True,
)
