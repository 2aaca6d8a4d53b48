"""What the benchmarks have of a world beside the simulator's own code."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

from icl_align.config import Config


class Subject(NamedTuple):
    """A world as the benchmarks see it; `benchmarks.WORLD.SUBJECT`, where there is one.

    Attributes:
      outside_trunk: configuration -> operations of one context's products outside the trunk.
      of_data: those of them whose other factor is data.
      workers: kind -> module of `benchmarks.WORLD` and class; the kind is WORLD:KIND outside.
      rival: kind of the worker that trains the same in PyTorch; None where there is none.
      axes: option -> values, that grow beside those that all worlds have.
      labels: option -> what figures call it.
      reach: (overrides, seeds, with PyTorch, seconds) -> how long training takes until a measure of
        the world is small; None where there is no such measure.
    """

    outside_trunk: Callable[[Config], dict[str, int]] = lambda config: {}
    of_data: tuple[str, ...] = ()
    workers: dict[str, tuple[str, str]] = {}  # noqa: RUF012
    rival: str | None = None
    axes: dict[str, tuple[int, ...]] = {}  # noqa: RUF012
    labels: dict[str, str] = {}  # noqa: RUF012
    reach: Callable[..., dict[str, Any]] | None = None


def subject_of(config: Config) -> Subject:
    """What there is of a configuration's world."""
    try:
        return importlib.import_module(f"benchmarks.{config.world}").SUBJECT
    except ModuleNotFoundError as error:
        if error.name != f"benchmarks.{config.world}":
            raise
        return Subject()
