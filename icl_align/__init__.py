"""icl_align: tests the theory of self-correction as in-context alignment with tiny transformers.

From Python `icl_align.train`, `load`, `sample`, `learners`, `evaluate` and `compare` do what the
commands do; `icl_align.api` says how. They are imported when they are first used, so that a command
that only prints help does not wait for JAX.
"""

import importlib
import types
from typing import Any

__version__ = "0.1.0"
__all__ = ["Run", "compare", "evaluate", "learners", "load", "sample", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("icl_align.api"), name)
    raise AttributeError(f"module 'icl_align' has no attribute {name!r}")


class CommandModule(types.ModuleType):
    """The module of a command: once it is imported it takes the place of the function of its name,
    so it can be called as well.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function of `icl_align.api`."""
        return getattr(importlib.import_module("icl_align.api"), self.__name__.rpartition(".")[2])(
            *args, **kwargs
        )


def __dir__() -> list[str]:
    return [*globals(), *__all__]
