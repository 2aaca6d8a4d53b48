"""What a learner gains on its own rounds, and how that goes with the accuracy of its critic."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float

from icl_align.alignment.options import FORMULAS, LEARNED, OwnRoundsConfig
from icl_align.intervals import Interval, of_mean, of_statistic, within

NOISE = (0.1, 0.2, 0.3, 0.5, 0.75)
RESAMPLES = 1000


def learned_after(step: int) -> str:
    """The name of the learned critic as a checkpoint has it."""
    return f"{LEARNED}, step {step}"


def settings(options: OwnRoundsConfig, learned: tuple[str, ...] = ()) -> dict[str, OwnRoundsConfig]:
    """The critics that gains are compared under: name -> options.

    Each formula alone and under noise, with a power and with a bias; one that is not clipped; one
    that guesses; and those that were learned.

    Args:
      options: what is the same for all of them.
      learned: their names.
    """
    plain = dataclasses.replace(
        options, critic_noise=0.0, critic_power=1.0, critic_bias=0.0, critic_clipped=True
    )

    def of(name, **changes):
        return dataclasses.replace(plain, critic=name, **changes)

    found = {}
    for name in FORMULAS:
        found[name] = of(name)
        found |= {f"{name}, noise {p:g}": of(name, critic_noise=p) for p in NOISE}
    for name in ("share", "direction"):
        found |= {f"{name}, power {k:g}": of(name, critic_power=k) for k in (0.33, 3.0)}
        found |= {f"{name}, bias {b:+g}": of(name, critic_bias=b) for b in (-0.3, -0.1, 0.1, 0.3)}
    found["share, not clipped"] = of("share", critic_clipped=False)
    found["a guess"] = of("share", critic_noise=1.0)
    return found | {name: of(LEARNED) for name in learned}


def pearson(means: Float[np.ndarray, "*b 5"]) -> Float[np.ndarray, "*b"]:
    """Pearson's correlation of x and y, from the means of x, y, x^2, y^2 and x y."""
    x, y, xx, yy, xy = np.moveaxis(means, -1, 0)
    return (xy - x * y) / np.sqrt(np.maximum((xx - x**2) * (yy - y**2), 1e-12))


def gain_row(
    first: Float[np.ndarray, "b s"],
    measured: dict[str, Float[np.ndarray, "b s r"]],
    judged: dict[str, Float[np.ndarray, "b s ..."]],
    nested: bool = False,
) -> dict[str, Any]:
    """What there is to say of one critic.

    Args:
      first: the error of the first answer to attempts with rewards as they are given; a critic
        with a power changes those, and what it spoils first is no gain later.
      measured: of the rounds that it rewards, `quantities.beside_the_target`.
      judged: of the pool of answers that all critics judge: "accuracy" [b, s], and "moments"
        [b, s, 5] of reward and minus the error, see `pearson`.
      nested: as in `intervals.of_mean`.

    Returns:
      "gain": `first` less the error of the last answer; "accuracy" and "correlation" with the
      error on the pool; and "accuracy_met", on the rounds themselves.
    """
    return {
        "gain": of_mean(first - measured["refinement_error"][..., -1], nested),
        "accuracy": within(of_mean(judged["accuracy"], nested), 0, 1),
        "accuracy_met": within(of_mean(measured["critic_accuracy"].mean(axis=-1), nested), 0, 1),
        "correlation": of_statistic(pearson, judged["moments"], nested),
    }


def over_settings(runs: list[list[dict[str, Any]]]) -> dict[str, Interval | None]:
    """How the gain goes with the accuracy of the critic, over several of them.

    Intervals are a bootstrap's, in which runs, critics and seeds are drawn anew.

    Args:
      runs: of each run the rows of its critics, as `gain_row` has them.

    Returns:
      "correlation", Pearson's, of one run also that of each seed; and "threshold", the accuracy at
      which the regression of the gain on it crosses 0; None where the accuracies or the gains do
      not differ, and the threshold also where the correlation is not told from 0, or where it lies
      beyond the accuracies met.
    """
    accuracies, gains = (
        [np.array([row[key]["by_seed"] for row in rows]) for rows in runs]
        for key in ("accuracy", "gain")
    )

    def both(values):
        return np.concatenate([of.mean(axis=1) for of in values])

    accuracy, gain = both(accuracies), both(gains)
    if len(accuracy) < 4 or min(np.ptp(accuracy), np.ptp(gain)) < 1e-6:
        return {"correlation": None, "threshold": None}
    rng, drawn = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        some_accuracies, some_gains = [], []
        for run in rng.integers(len(runs), size=len(runs)):
            critics, seeds = accuracies[run].shape
            which = np.ix_(rng.integers(critics, size=critics), rng.integers(seeds, size=seeds))
            some_accuracies.append(accuracies[run][which])
            some_gains.append(gains[run][which])
        drawn.append(_line(both(some_accuracies), both(some_gains)))
    lows, highs = np.quantile(np.array(drawn), [0.025, 0.975], axis=0)
    found = _line(accuracy, gain)
    correlation, threshold = (
        {"mean": float(mean), "low": float(low), "high": float(high)}
        for mean, low, high in zip(found, lows, highs, strict=True)
    )
    if len(runs) == 1:
        pairs = zip(accuracies[0].T, gains[0].T, strict=True)
        correlation["by_seed"] = [_line(x, y)[0] for x, y in pairs]
    is_met = accuracy.min() <= threshold["mean"] <= accuracy.max()
    shown = threshold if correlation["low"] > 0 and is_met else None
    return {"correlation": correlation, "threshold": shown}


def _line(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Pearson's correlation, and where the regression of y on x crosses 0."""
    dx, dy = x - x.mean(), y - y.mean()
    spread = max(float(dx @ dx), 1e-12)
    slope = float(dx @ dy) / spread
    correlation = float(dx @ dy) / np.sqrt(spread * max(float(dy @ dy), 1e-12))
    return correlation, x.mean() - y.mean() / (slope if abs(slope) > 1e-9 else 1e-9)
