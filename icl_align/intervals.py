"""Numbers with their intervals, as the files of studies hold them."""

from typing import Any

import numpy as np
from jaxtyping import Float

from icl_align.statistics import Moments, mean_interval, moments, pooled_moments, statistic_moments

# "mean", "low", "high": numbers or nested lists of one shape; "by_seed": one of each seed.
Interval = dict[str, Any]


def of_mean(values: Float[np.ndarray, "b s *x"], nested: bool = False) -> Interval:
    """Of the mean over contexts and seeds.

    Args:
      values: one for each context and seed.
      nested: whether each seed has contexts of its own; then the seeds' spread holds both.
    """
    return _interval(_of_seeds_alone(moments(values), nested))


def of_explained(features: Float[np.ndarray, "b s *x m"]) -> Interval:
    """Of R^2, from features of `statistics.explained_variance`."""
    return within(_interval(pooled_moments(features, "explained_variance")), most=1)


def within(
    interval: Interval, least: int | float = -np.inf, most: int | float = np.inf
) -> Interval:
    """The interval, cut to what is possible."""
    cut = {name: np.clip(interval[name], least, most).tolist() for name in ("low", "high")}
    return interval | cut


def of_statistic(of: Any, values: Float[np.ndarray, "b s *x"], nested: bool = False) -> Interval:
    """Of what `of` makes of means over contexts: [*any, *x] -> [*any, ...], by the bootstrap;
    `nested` as in `of_mean`.
    """
    return _interval(_of_seeds_alone(statistic_moments(of, values), nested))


def _of_seeds_alone(both: Moments, nested: bool) -> Moments:
    # Of one seed the contexts are all there is.
    if not nested or len(both.seed_means) == 1:
        return both
    return both._replace(context_squares=np.zeros_like(both.context_squares))


def _interval(both: Moments) -> Interval:
    found = dict(zip(("mean", "low", "high"), mean_interval(both), strict=True))
    found["by_seed"] = both.seed_means
    return {
        name: np.round(np.asarray(values, np.float64), 6).tolist() for name, values in found.items()
    }


def at(interval: Interval, *place: int) -> Interval:
    """The numbers at one place."""
    of_seeds = np.asarray(interval["by_seed"])[:, *place].tolist()
    three = {name: np.asarray(interval[name])[place].item() for name in ("mean", "low", "high")}
    return three | {"by_seed": of_seeds}


def stacked(intervals: list[Interval]) -> Interval:
    """Several as one, with a leading axis."""
    three = {name: [one[name] for one in intervals] for name in ("mean", "low", "high")}
    of_seeds = np.stack([one["by_seed"] for one in intervals], axis=1).tolist()
    return three | {"by_seed": of_seeds}
