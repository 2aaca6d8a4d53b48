"""Which claims there are of a world, and the sizes at which they are run."""

import importlib
from typing import Protocol, runtime_checkable

from experiments.claim import Claim, Scale
from icl_align.config import ConfigError


@runtime_checkable
class Study(Protocol):
    """The module `experiments.WORLD` of a world that has claims.

    Attributes:
      SCALES: name -> sizes; one is called "small", the default.
      CLAIMS: names of the claims, in the order of the report.
    """

    SCALES: dict[str, Scale]
    CLAIMS: tuple[str, ...]

    def load(self, name: str, scale: Scale) -> Claim:
        """The claim `name` at a scale."""


def study_of(world: str) -> Study:
    """The claims and sizes of a world.

    Raises:
      ConfigError: there are none.
    """
    try:
        return importlib.import_module(f"experiments.{world}")
    except ModuleNotFoundError as error:
        if error.name != f"experiments.{world}":
            raise
        raise ConfigError("world", world, "has no claims yet") from error
