"""Numbers with their intervals, as the files of studies hold them."""

from typing import Any

import numpy as np
from jaxtyping import Float

from icl_align.statistics import Moments, mean_interval, moments, pooled_moments, statistic_moments

Interval = dict[str, Any]  # "mean", "low", "high": numbers or nested lists of one shape


def of_mean(values: Float[np.ndarray, "b s *x"], nested: bool = False) -> Interval:
    """Of the mean over contexts and seeds.

    Args:
      values: one for each context and seed.
      nested: whether each seed has contexts of its own; then the seeds' spread holds both.
    """
    return _interval(mean_interval(_of_seeds_alone(moments(values), nested)))


def by_seed(values: Float[np.ndarray, "b s *x"], nested: bool = False) -> Interval:
    """The same, with the mean of each seed."""
    means = np.asarray(values, np.float64).mean(axis=0).tolist()
    return of_mean(values, nested) | {"by_seed": means}


def of_explained(features: Float[np.ndarray, "b s *x m"]) -> Interval:
    """Of R^2, from features of `statistics.explained_variance`."""
    return within(_interval(mean_interval(pooled_moments(features, "explained_variance"))), most=1)


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
    return _interval(mean_interval(_of_seeds_alone(statistic_moments(of, values), nested)))


def _of_seeds_alone(both: Moments, nested: bool) -> Moments:
    # Of one seed the contexts are all there is.
    if not nested or len(both.seed_means) == 1:
        return both
    return both._replace(context_squares=np.zeros_like(both.context_squares))


def _interval(three: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Interval:
    return {
        name: np.round(np.asarray(values, np.float64), 6).tolist()
        for name, values in zip(("mean", "low", "high"), three, strict=True)
    }


def at(interval: Interval, *place: int) -> Interval:
    """The numbers at one place."""
    return {name: np.asarray(values)[place].item() for name, values in interval.items()}
