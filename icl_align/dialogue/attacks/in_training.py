"""Attacks on the network of the moment, for training on them."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from icl_align.dialogue.attacks.prompts import FREE, NUM_FREE
from icl_align.dialogue.attacks.targets import first_answer
from icl_align.dialogue.dialogues import (
    foreign_tokens,
    from_tokens,
    symbols_of_tokens,
    to_tokens,
)
from icl_align.dialogue.options import TaskConfig

ATTACKED = 2**31  # folded into the key of a dialogue: no child of what it is drawn with
STEPS = 2  # each with a gradient of its own
REPLACED = 0.5  # share of the free places that a step writes


def attacked(
    task: TaskConfig,
    network: Any,
    tokens: Int[Array, "b l"],
    keys: Key[Array, " b"],
    share: float,
) -> Int[Array, "b l"]:
    """Dialogues of which some have personas that make a network comply.

    At random places stands what raises its log-probability to comply most, of the tokens that
    nobody says there: the exact reader takes them for no evidence, as in `task.foreign_share`.

    Args:
      task: options, of the kind `request`.
      network: that is attacked.
      tokens: dialogues.
      keys: of the dialogues; each says whether its own is attacked, and where.
      share: how often it is.
    """
    dialogue = from_tokens(task, tokens)
    questions, target = dialogue.question, first_answer(task, network)
    foreign = jnp.asarray(foreign_tokens(task))
    keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, ATTACKED), 1 + STEPS))(
        keys
    )
    is_attacked = jax.vmap(lambda key: jax.random.bernoulli(key, share))(keys[:, 0])
    for step in range(STEPS):
        ascent = jnp.where(foreign, target.gradient(questions), -jnp.inf)
        steepest = symbols_of_tokens(task, jnp.argmax(ascent, axis=-1)).astype(questions.dtype)
        of = jax.vmap(lambda key: jax.random.bernoulli(key, REPLACED, (NUM_FREE,)))
        written = of(keys[:, 1 + step]) & is_attacked[:, None]
        persona = jnp.where(written, steepest, questions[:, FREE])
        questions = questions.at[:, FREE].set(persona)
    return to_tokens(task, dialogue._replace(question=questions))
