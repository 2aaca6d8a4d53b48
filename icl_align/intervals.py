"""Numbers with their intervals, as the files of studies hold them."""

from typing import Any

import numpy as np
from jaxtyping import Float

from icl_align.statistics import mean_interval, moments, pooled_moments, statistic_moments

Interval = dict[str, Any]  # "mean", "low", "high": numbers or nested lists of one shape


def of_mean(values: Float[np.ndarray, "b s *x"]) -> Interval:
    """Of the mean over contexts and seeds."""
    return _interval(mean_interval(moments(values)))


def by_seed(values: Float[np.ndarray, "b s *x"]) -> Interval:
    """The same, with the mean of each seed."""
    return of_mean(values) | {"by_seed": np.asarray(values, np.float64).mean(axis=0).tolist()}


def of_explained(features: Float[np.ndarray, "b s *x m"]) -> Interval:
    """Of R^2, from features of `statistics.explained_variance`."""
    return within(_interval(mean_interval(pooled_moments(features, "explained_variance"))), most=1)


def within(
    interval: Interval, least: int | float = -np.inf, most: int | float = np.inf
) -> Interval:
    """The interval, cut to what is possible."""
    cut = {name: np.clip(interval[name], least, most).tolist() for name in ("low", "high")}
    return interval | cut


def of_statistic(of: Any, values: Float[np.ndarray, "b s *x"]) -> Interval:
    """Of what `of` makes of means over contexts: [*any, *x] -> [*any, ...], by the bootstrap."""
    return _interval(mean_interval(statistic_moments(of, values)))


def _interval(three: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Interval:
    return {
        name: np.round(np.asarray(values, np.float64), 6).tolist()
        for name, values in zip(("mean", "low", "high"), three, strict=True)
    }


def at(interval: Interval, *place: int) -> Interval:
    """The numbers at one place."""
    return {name: np.asarray(values)[place].item() for name, values in interval.items()}
