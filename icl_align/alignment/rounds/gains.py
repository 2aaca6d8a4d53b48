"""What a learner gains on its own rounds, and how that goes with the accuracy of its critic."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float

from icl_align.alignment.options import FORMULAS, LEARNED, OwnRoundsConfig
from icl_align.statistics import Moments, mean_interval, moments, statistic_moments

NOISE = (0.0, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)

Interval = dict[str, float]


def settings(options: OwnRoundsConfig, has_critic: bool) -> dict[str, OwnRoundsConfig]:
    """The critics that gains are compared under: name -> options.

    Each formula under several noises; some with a power or a bias; one that is not clipped; and the
    one that was learned, if there is one.
    """
    plain = dataclasses.replace(
        options, critic_noise=0.0, critic_power=1.0, critic_bias=0.0, clipped=True
    )

    def of(name, **changes):
        return dataclasses.replace(plain, critic=name, **changes)

    found = {}
    for name in FORMULAS:
        found |= {f"{name}, noise {p:g}": of(name, critic_noise=p) for p in NOISE}
    for name in ("share", "direction"):
        found |= {f"{name}, power {k:g}": of(name, critic_power=k) for k in (0.33, 3.0)}
        found |= {f"{name}, bias {b:+g}": of(name, critic_bias=b) for b in (-0.3, -0.1, 0.1, 0.3)}
    found["share, not clipped"] = of("share", clipped=False)
    if has_critic:
        found[LEARNED] = of(LEARNED)
    return found


def pearson(means: Float[np.ndarray, "*b 5"]) -> Float[np.ndarray, "*b"]:
    """Pearson's correlation of x and y, from the means of x, y, x^2, y^2 and x y."""
    x, y, xx, yy, xy = np.moveaxis(means, -1, 0)
    return (xy - x * y) / np.sqrt(np.maximum((xx - x**2) * (yy - y**2), 1e-12))


def interval_of(of: Moments) -> Interval:
    """Mean, low and high of one number."""
    mean, low, high = mean_interval(of)
    return {"mean": float(mean), "low": float(low), "high": float(high)}


def gain_row(measured: dict[str, Float[np.ndarray, "b s r"]]) -> dict[str, Interval]:
    """The gain of the last round, and the accuracy of the critic over all rounds, both ways."""
    errors, rewards = measured["refinement_error"][..., :-1], measured["reward"]
    both = np.stack([-errors, rewards, errors**2, rewards**2, -errors * rewards], axis=-1)

    return {
        "gain": interval_of(moments(measured["gain"][..., -1])),
        "accuracy": interval_of(moments(measured["critic_accuracy"].mean(axis=-1))),
        "correlation": interval_of(statistic_moments(pearson, both.mean(axis=2))),
    }


def over_settings(rows: list[dict[str, Any]]) -> dict[str, Interval | None]:
    """How the gain goes with the accuracy of the critic, over several of them.

    Returns:
      "correlation", Pearson's with Fisher's interval, and "threshold", where the regression of the
      gain on the accuracy crosses 0, with a bootstrap interval over the rows; None where the
      accuracies do not differ.
    """
    from scipy.stats import pearsonr

    accuracy = np.array([row["accuracy"]["mean"] for row in rows])
    gain = np.array([row["gain"]["mean"] for row in rows])
    if len(rows) < 4 or min(np.ptp(accuracy), np.ptp(gain)) < 1e-6:
        return {"correlation": None, "threshold": None}
    found = pearsonr(accuracy, gain)
    low, high = found.confidence_interval(0.95)
    drawn = np.random.default_rng(0).integers(len(rows), size=(2000, len(rows)))

    def threshold(rows):
        a, g = accuracy[rows], gain[rows]
        centred = a - a.mean(-1, keepdims=True)
        slope = (centred * g).sum(-1) / np.maximum((centred**2).sum(-1), 1e-12)
        return a.mean(-1) - g.mean(-1) / np.where(np.abs(slope) < 1e-12, 1e-12, slope)

    bounds = np.quantile(threshold(drawn), [0.025, 0.975])
    return {
        "correlation": {
            "mean": float(found.statistic),
            "low": float(low),
            "high": float(high),
        },
        "threshold": {
            "mean": float(threshold(np.arange(len(rows)))),
            "low": float(bounds[0]),
            "high": float(bounds[1]),
        },
    }
