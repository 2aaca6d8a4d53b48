"""Which claims there are of a world, and the sizes at which they are run."""

import functools
import importlib
from typing import Protocol, runtime_checkable

from experiments.claim import Claim, Scale
from icl_align.world import WORLDS


@runtime_checkable
class Study(Protocol):
    """The module `experiments.WORLD` of a world that has claims.

    Attributes:
      SCALES: name -> sizes; one is called "small", the default.
      CLAIMS: paper -> names of its claims, in the order of the report.
    """

    SCALES: dict[str, Scale]
    CLAIMS: dict[str, tuple[str, ...]]

    def load(self, name: str, scale: Scale) -> Claim:
        """The claim `name` at a scale."""


@functools.cache
def studies() -> dict[str, Study]:
    """World -> its claims and sizes, of the worlds that have some."""
    found = {}
    for world in WORLDS:
        try:
            found[world] = importlib.import_module(f"experiments.{world}")
        except ModuleNotFoundError as error:
            if error.name != f"experiments.{world}":
                raise
    return found
