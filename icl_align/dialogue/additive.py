"""The additive law: log-odds of the concept as a weighted sum over the evidence of all rounds.

As belief dynamics have it (arXiv 2511.00617). The weights are fitted by least squares to the exact
reader's log-odds, on dialogues of the speakers.
"""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from icl_align.dialogue.dialogues import Dialogue, sample_dialogue
from icl_align.dialogue.options import TaskConfig
from icl_align.dialogue.readers import EVIDENCE, NUM_WEIGHTS, activation, log_odds, read

FITTED_ON = 2048  # dialogues


def fitted_weights(task: TaskConfig) -> Float[Array, " w"]:
    """Weights of a constant, of instructions, answers and checks; the same at every call."""
    return _fitted(pickle.dumps(task))


@functools.cache  # several programs of an evaluation ask for them
def _fitted(pickled: bytes) -> Float[Array, " w"]:
    task = pickle.loads(pickled)
    keys = jax.random.split(jax.random.key(0), FITTED_ON)

    def one(key):
        dialogue, _ = sample_dialogue(task, key)
        exact = read(task, EVIDENCE["exact"], dialogue).told
        return summed_evidence(task, dialogue), activation(exact)

    features, wanted = jax.device_get(jax.jit(jax.vmap(one))(keys))
    return jnp.asarray(fit(features, wanted), jnp.float32)


def summed_evidence(task: TaskConfig, dialogue: Dialogue) -> Float[Array, "t w"]:
    """What each weight is multiplied with, after the instruction of every round."""

    def odds(weights):
        return log_odds(read(task, EVIDENCE["additive"], dialogue, weights).told)

    # The law is linear in its weights, so its features are what each weight alone gives.
    return jnp.clip(jax.vmap(odds)(jnp.eye(NUM_WEIGHTS)), -200, 200).T


def fit(evidence: Float[np.ndarray, "*b w"], odds: Float[np.ndarray, "*b"]) -> np.ndarray:
    """Weights [w] by least squares."""
    flat = np.asarray(evidence, np.float64).reshape(-1, NUM_WEIGHTS)
    return np.linalg.lstsq(flat, np.asarray(odds, np.float64).reshape(-1), rcond=None)[0]
