"""Linear probes: what the residual stream says of the exact posterior's log-odds.

A probe is a ridge regression from the state at an instruction to the exact reader's log-odds there.
It is fitted on some dialogues and judged on others. Two controls are fitted alike: one on a network
that was not trained, one on log-odds that belong to other dialogues.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from icl_align.intervals import Interval, of_explained, of_mean

RIDGE = 1.0  # penalty on the weights of standardised states
# An untrained network's instructions differ by their embedding, so it may know the last one.
SOURCES = ("trained", "untrained", "shuffled")

States = Float[np.ndarray, "b layers t d"]
Odds = Float[np.ndarray, "b t"]


class Direction(NamedTuple):
    """Where a probe points in the residual stream after a block: reading = state . raw + offset.

    Attributes:
      raw: weights [d]: where the probe looks.
      offset: of the reading.
      spread: standard deviation of the states along it, in units of the stream.
      pattern: how the mean state moves with one standard deviation of the log-odds [d]. The
        weights of a probe need not point there (Haufe et al. 2014).
    """

    raw: Float[np.ndarray, " d"]
    offset: float
    spread: float
    pattern: Float[np.ndarray, " d"]


def unit(vector: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
    """A direction, of length 1."""
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def fitted(states: Float[np.ndarray, "n d"], odds: Float[np.ndarray, " n"]):
    """A probe: a scikit-learn pipeline."""
    return make_pipeline(StandardScaler(), Ridge(alpha=RIDGE)).fit(states, odds)


def direction_of(states: Float[np.ndarray, "n d"], odds: Float[np.ndarray, " n"]) -> Direction:
    """The direction of the probe of all these states."""
    probe = fitted(states, odds)
    scaler, ridge = probe[0], probe[1]
    raw = ridge.coef_ / scaler.scale_
    offset = float(ridge.intercept_ - scaler.mean_ @ raw)
    centred = odds - odds.mean()
    pattern = centred @ (states - states.mean(axis=0)) / len(odds) / max(float(odds.std()), 1e-12)
    spread = float(np.std(states @ unit(raw)))
    return Direction(raw.astype(np.float32), offset, spread, pattern)


def explained(
    fit: tuple[States, Odds], held_out: tuple[States, Odds]
) -> Float[np.ndarray, "b layers t m"]:
    """Features of `statistics.explained_variance` of a probe for every layer and round."""
    (states, odds), (others, wanted) = fit, held_out
    num_layers, num_rounds = states.shape[1:3]
    guess = np.stack(
        [
            np.stack(
                [
                    fitted(states[:, layer, t], odds[:, t]).predict(others[:, layer, t])
                    for t in range(num_rounds)
                ],
                axis=-1,
            )
            for layer in range(num_layers)
        ],
        axis=1,
    )
    wanted = np.broadcast_to(wanted[:, None], guess.shape)
    return np.stack([(guess - wanted) ** 2, wanted, wanted**2], axis=-1)


def shuffled(odds: Odds) -> Odds:
    """Log-odds of other dialogues, in the same rounds."""
    return odds[np.random.default_rng(0).permutation(len(odds))]


def explained_by_seed(features: list[Float[np.ndarray, "b layers t m"]]) -> Interval:
    """R^2 by layer and round, from those of each seed."""
    return of_explained(np.stack(features, axis=1))


def shift(
    differences: Float[np.ndarray, "b s layers t d"], directions: list[list[Direction]]
) -> dict[str, Interval]:
    """How an instruction moves the state, by layer and round.

    Args:
      differences: state after the instruction - state after the neutral one.
      directions: of each seed and layer.

    Returns:
      "cosine" with the probe's weights, "cosine_pattern" with its pattern, and "along": how far
      along the weights, in standard deviations.
    """
    spread = np.array([[max(d.spread, 1e-9) for d in own] for own in directions])
    norm = np.maximum(np.linalg.norm(differences, axis=-1), 1e-9)

    def along(of):
        units = np.stack([[unit(of(d)) for d in own] for own in directions])
        return np.sum(differences * units[None, :, :, None], axis=-1)

    on_weights = along(lambda direction: direction.raw)
    return {
        "cosine": of_mean(on_weights / norm),
        "cosine_pattern": of_mean(along(lambda direction: direction.pattern) / norm),
        "along": of_mean(on_weights / spread[None, :, :, None]),
    }
