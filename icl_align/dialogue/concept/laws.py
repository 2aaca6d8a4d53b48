"""Two laws of rounds, each fitted on the first half of them and tried on the second."""

import numpy as np
from jaxtyping import Float

from icl_align.dialogue.additive import fit
from icl_align.intervals import Interval, at, of_explained, of_statistic, within

LEAST = 1e-9  # below what is divided by
Rounds = Float[np.ndarray, "b s t"]


def two_state(right: Rounds) -> dict[str, Interval]:
    """The two-state law of repeated correction (arXiv 2508.16456).

        Acc_t = Upp - a^t (Upp - Acc_0),   a = CL - CS,   Upp = CS / (1 - CL + CS)

    with CL and CS the chances to be right after being right or wrong, counted in the first half of
    the rounds.

    Args:
      right: whether each answer is, 1 or 0; of four rounds at least.

    Returns:
      "error": root mean square over the second half; "error_of_no_change": that of the last
      accuracy of the first half; "upper" and "rate": Upp and a.
    """
    num_rounds = right.shape[-1]
    half = num_rounds // 2
    stayed = right[..., :-1] * right[..., 1:]
    both = np.concatenate([right, stayed], axis=-1)

    def of(means):
        accuracy, still = means[..., :num_rounds], means[..., num_rounds:]
        was, became = accuracy[..., : half - 1].sum(-1), accuracy[..., 1:half].sum(-1)
        kept = still[..., : half - 1].sum(-1)
        level = kept / np.maximum(was, LEAST)
        critique = (became - kept) / np.maximum(half - 1 - was, LEAST)
        rate = level - critique
        upper = critique / np.maximum(1 - rate, LEAST)
        powers = rate[..., None] ** np.arange(num_rounds)
        law = upper[..., None] - powers * (upper[..., None] - accuracy[..., :1])
        later = accuracy[..., half:]
        error = np.sqrt(np.mean((law[..., half:] - later) ** 2, axis=-1))
        no_change = np.sqrt(np.mean((accuracy[..., half - 1 : half] - later) ** 2, axis=-1))
        return np.stack([error, no_change, upper, rate], axis=-1)

    found = of_statistic(of, both)
    error, no_change, upper, rate = (at(found, place) for place in range(4))
    return {
        "error": within(error, least=0),
        "error_of_no_change": within(no_change, least=0),
        "upper": upper,
        "rate": rate,
    }


def additive(evidence: Float[np.ndarray, "b s t w"], odds: Rounds) -> dict[str, Interval]:
    """The additive law: log-odds as a weighted sum over all evidence (arXiv 2511.00617).

    Args:
      evidence: sums of log-odds of instructions, answers and checks, and a constant.
      odds: of the concept, as a reader has them.

    Returns:
      "explained": R^2 in the second half of the rounds, with weights of the first.
    """
    half = odds.shape[-1] // 2
    features = []
    for seed in range(odds.shape[1]):
        weights = fit(evidence[:, seed, :half], odds[:, seed, :half])
        wanted = odds[:, seed, half:].astype(np.float64)
        error = (evidence[:, seed, half:] @ weights - wanted) ** 2
        features.append(np.stack([error, wanted, wanted**2], axis=-1).mean(axis=1))
    return {"explained": of_explained(np.stack(features, axis=1))}
