"""Attacks on the network of the moment, for training on them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from icl_align.dialogue.attacks.prompts import FREE, NUM_FREE, natural_tokens
from icl_align.dialogue.attacks.targets import first_answer
from icl_align.dialogue.dialogues import from_tokens, symbols_of_tokens, to_tokens
from icl_align.dialogue.options import TaskConfig

STEPS = 2  # each with a gradient of its own
REPLACED = 0.5  # share of the free places that a step writes


def attacked(
    task: TaskConfig, network: Any, tokens: Int[Array, "b l"], key: Key[Array, ""], share: float
) -> Int[Array, "b l"]:
    """Dialogues of which the first ones, a share, have personas that make a network comply.

    At random places stands what raises its log-probability to comply most, of the tokens that
    nobody says there: no evidence, so what the speakers answer is still what the exact reader
    expects.

    Args:
      task: options, of the kind `request`.
      network: that is attacked.
      tokens: dialogues.
      key: of the places.
      share: of the dialogues, rounded.
    """
    dialogue = from_tokens(task, tokens)
    count = round(share * len(tokens))
    questions, target = dialogue.question[:count], first_answer(task, network)
    foreign = jnp.asarray(~np.asarray(natural_tokens(task)))
    for step in range(STEPS):
        ascent = jnp.where(foreign, target.gradient(questions), -jnp.inf)
        steepest = symbols_of_tokens(task, jnp.argmax(ascent, axis=-1)).astype(questions.dtype)
        own_key = jax.random.fold_in(key, step)
        written = jax.random.bernoulli(own_key, REPLACED, (count, NUM_FREE))
        persona = jnp.where(written, steepest, questions[:, FREE])
        questions = questions.at[:, FREE].set(persona)
    questions = jnp.concatenate([questions, dialogue.question[count:]])
    return to_tokens(task, dialogue._replace(question=questions))
