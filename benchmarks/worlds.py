"""What the benchmarks have of a world beside the simulator's own code."""

import importlib
from collections.abc import Callable
from typing import NamedTuple

from icl_align.config import Config


class Subject(NamedTuple):
    """A world as the benchmarks see it; `benchmarks.WORLD.SUBJECT`, where there is one.

    Attributes:
      outside_trunk: configuration -> operations of one context's products outside the trunk.
      of_data: those of them whose other factor is data.
      rival: kind of the worker that trains the same in PyTorch; None where there is none.
      axes: option -> values, that grow beside those that all worlds have.
    """

    outside_trunk: Callable[[Config], dict[str, int]] = lambda config: {}
    of_data: tuple[str, ...] = ()
    rival: str | None = None
    axes: dict[str, tuple[int, ...]] = {}  # noqa: RUF012


def subject_of(config: Config) -> Subject:
    """What there is of a configuration's world."""
    try:
        return importlib.import_module(f"benchmarks.{config.world}").SUBJECT
    except ModuleNotFoundError:
        return Subject()
