"""The paper's own tests (Liu et al. 2025), as published and mended.

Every array has leading axes b, s: dialogues and seeds.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Float
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from icl_align.dialogue.options import QUANTITIES
from icl_align.intervals import Interval, of_mean, of_statistic, within
from icl_align.statistics import POOLS, rounds_to_convergence

Rounds = Float[np.ndarray, "b s t"]

FOLDS = 5
# What predicts that uncertainty did not rise. "commonest" looks at nothing; "within_rounds" has a
# regression on the concept's change of its own in every round.
PREDICTORS = ("commonest", "concept", "round", "both", "within_rounds")
AFTER = 3  # rounds in which an immoral instruction is followed


def convergence(accuracy: Rounds) -> Interval:
    """Rounds to convergence of the accuracy: the mean over seeds."""
    return within(of_statistic(rounds_to_convergence, accuracy), 0, accuracy.shape[-1] - 1)


def differences(
    values: dict[str, np.ndarray], without: dict[str, np.ndarray], quantities: Iterable[str]
) -> dict[str, Interval]:
    """What a plan changes: its values less those under `none`, by quantity and round.

    Args:
      values: of the plan, by quantity; features [b, s, t, m] where the quantity is pooled.
      without: under the plan `none`, on the same dialogues.
      quantities: which.
    """
    found = {}
    for quantity in quantities:
        pool = QUANTITIES[quantity].pool
        if pool is None:
            found[quantity] = of_mean(values[quantity] - without[quantity])
            continue
        count, of = len(values[quantity]), POOLS[pool]

        def difference(means, of=of, count=count):
            return of(means[..., 0, :, :], count) - of(means[..., 1, :, :], count)

        both = np.stack([values[quantity], without[quantity]], axis=2)  # [b, s, 2, t, m]
        found[quantity] = of_statistic(difference, both)
    return found


def by_question(
    gain: Rounds, without: Rounds, groups: dict[str, Bool[np.ndarray, " b"]]
) -> dict[str, dict[str, Interval]]:
    """Gains on each group of questions, and what they are above those under `none`."""
    return {
        name: {"gain": of_mean(gain[own]), "above_none": of_mean(gain[own] - without[own])}
        for name, own in groups.items()
    }


def prediction(concept: Rounds, uncertainty: Rounds) -> dict[str, Interval]:
    """How often a logistic regression is right that uncertainty did not rise, held out.

    As published it sees the change of the concept's activation from one round to the next. Round
    number moves both, so it is tried alone, beside the concept, and held fixed.

    Args:
      concept: activation.
      uncertainty: in nats.

    Returns:
      Predictor -> share that is right, on dialogues that it was not fitted on.
    """
    change = np.diff(concept, axis=-1)
    label = np.diff(uncertainty, axis=-1) <= 1e-6
    right = {name: np.zeros(label.shape[:2]) for name in PREDICTORS}
    for seed in range(label.shape[1]):
        own_change, own_label = change[:, seed], label[:, seed]
        for name in PREDICTORS:
            guess = _held_out(name, own_change, own_label)
            right[name][:, seed] = (guess == own_label).mean(axis=-1)
    return {name: within(of_mean(values), 0, 1) for name, values in right.items()}


def _held_out(
    name: str, change: Float[np.ndarray, "b t"], label: Bool[np.ndarray, "b t"]
) -> Bool[np.ndarray, "b t"]:
    """Guesses, for the dialogues of each fold by a regression on the others."""
    num_rounds = label.shape[1]
    one_hot = np.broadcast_to(np.eye(num_rounds), (*label.shape, num_rounds))
    seen = {
        "commonest": 0 * change[..., None],
        "concept": change[..., None],
        "round": one_hot,
        "both": np.concatenate([change[..., None], one_hot], axis=-1),
        "within_rounds": change[..., None],
    }[name]
    guess = np.zeros(label.shape, bool)
    for fold in range(FOLDS):
        out = np.arange(len(label)) % FOLDS == fold
        if not out.any():
            continue
        if name == "within_rounds":
            for t in range(num_rounds):
                guess[out, t] = _guess(seen[~out, t], label[~out, t], seen[out, t])
        else:
            flat = seen.shape[-1]
            found = _guess(
                seen[~out].reshape(-1, flat), label[~out].reshape(-1), seen[out].reshape(-1, flat)
            )
            guess[out] = found.reshape(label[out].shape)
    return guess


def _guess(
    seen: Float[np.ndarray, "n f"], label: Bool[np.ndarray, " n"], new: Float[np.ndarray, "m f"]
) -> Bool[np.ndarray, " m"]:
    if label.all() or not label.any():
        return np.full(len(new), label[0])
    # Standardised, and with hardly a penalty: how large an activation is says nothing.
    regression = make_pipeline(StandardScaler(), LogisticRegression(C=1e3, max_iter=1000))
    return regression.fit(seen, label).predict(new)


def immoral_offsets(immoral: Rounds, careful: Rounds, first: int) -> Float[np.ndarray, "b s after"]:
    """Activation less that under the plan `careful`, in the round of the first immoral instruction
    and those after it.
    """
    return (immoral - careful)[..., first : first + AFTER]


def first_immoral(immoral_at: list[int], num_rounds: int) -> int | None:
    """The first immoral round; None unless AFTER - 1 rounds without another follow it."""
    first = min(immoral_at, default=num_rounds)
    others = set(immoral_at) & set(range(first + 1, first + AFTER))
    return first if first + AFTER <= num_rounds and not others else None
