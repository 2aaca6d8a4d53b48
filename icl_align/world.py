"""What a world is, and which worlds there are.

A world is a package `icl_align/NAME/` with two modules and a file `conf/world/NAME.yaml`:

    options.py   its class `Options`, a `config.Config`; imported for every `--help`, so without JAX
    world.py     `WORLD`, an object of the protocol `World` below

Training, checkpoints, devices, tracking, sweeps and reports see nothing else of it.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Optional, Protocol, runtime_checkable

from icl_align.config import Config

WORLDS = ("alignment", "dialogue")


@dataclasses.dataclass(frozen=True)
class Quantity:
    """One thing that is measured.

    Attributes:
      label: for the axis of a figure.
      symlog: whether figures draw it on a logarithmic axis that has a zero.
      pool: for what is no mean over contexts, such as a calibration error: a name in
        `statistics.POOLS`. Its values have a last axis of features, whose means over contexts that
        function takes.
    """

    label: str
    symlog: bool = False
    pool: Optional[str] = None


@dataclasses.dataclass(frozen=True)
class Measures:
    """The names of what a world measures: learners x conditions x quantities, against an axis.

    Attributes:
      axis: what curves are drawn against, a key of curves.json, such as "attempts".
      axis_label: the same for a figure.
      judged_at: the place on the axis where the headline numbers are taken; None is the end.
      quantities: name -> what it is.
      learners: the one that is trained first, then those that need no training.
      condition: the option `evaluation.CONDITION` that lists the conditions.
      condition_metric: what stands before a condition in the name of a metric.
      drawn_from: the first place of the axis that figures show.
      compared: what curves.json and the prose call those that are compared.
      flags: name of a share of the contexts -> what to say where it is above 0, with `{share}`.
      study: of a world that is a `StudiedWorld`, the name of the study: its files are NAME.json and
        NAME.png, and the option `evaluation.NAME` says whether it is made.
      studied: how the keys of options begin that the study reads, and curves do not.
    """

    axis: str
    axis_label: str
    judged_at: Optional[int]
    quantities: Mapping[str, Quantity]
    learners: tuple[str, ...]
    condition: str
    condition_metric: str
    drawn_from: int = 0
    compared: str = "learners"
    flags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    study: Optional[str] = None
    studied: tuple[str, ...] = ()

    @property
    def trained(self) -> str:
        """The learner that is trained."""
        return self.learners[0]

    def judged_place(self, axis: list[int]) -> int:
        """The index on a run's axis of its headline numbers: of `judged_at`, or the end."""
        return (
            len(axis) - 1 if self.judged_at is None else axis.index(min(self.judged_at, axis[-1]))
        )

    def conditions(self, evaluation: Any) -> list[str]:
        """The conditions as keys of curves.json."""
        return [str(value) for value in getattr(evaluation, self.condition)]


class Sample(NamedTuple):
    """A batch as a world draws it, arrays with a leading axis of contexts.

    Attributes:
      shown: what the network reads.
      given: what its loss reads beside its answers.
    """

    shown: Any
    given: Any


class Untrained(NamedTuple):
    """What does not depend on training, of a batch of contexts; leading axis b.

    Attributes:
      quantities: learner -> quantity -> values [b, x] against the axis, of the learners that need
        no training.
      needed: arrays [b, ...] that measuring a network needs, such as the answers it is compared
        with.
      flags: name -> which contexts have it [b]; see `Measures.flags`.
    """

    quantities: dict[str, dict[str, Any]]
    needed: Any
    flags: dict[str, Any]


@runtime_checkable
class World(Protocol):
    """What differs between worlds. All of it is pure; `keys` hold one key a context.

    Options that are marked as traced may be tracers in `config`.
    """

    def sample(self, config: Any, keys: Any) -> Sample:
        """What is drawn: the training contexts of some keys."""

    def given(self, config: Any, arrays: Any) -> Any:
        """What `sample` gives beside what is shown, from arrays of one's own with a leading axis b.

        Raises:
          ValueError: they do not fit each other or the options; says which, and what would fit.
        """

    def shown(self, config: Any, given: Any, keys: Any) -> Any:
        """What the network is shown of `given`."""

    def learners(self, config: Any) -> dict[str, Any]:
        """Learner that needs no training -> its function: (given, keys) -> answers."""

    def network(self, config: Any, rngs: Any) -> Any:
        """What reads it: a `flax.nnx.Module`, called with what is shown. Its trunk, if it has one,
        is an attribute `trunk` of `transformer.Trunk`.
        """

    def num_tokens(self, config: Any) -> int:
        """How many tokens of a training context go through the trunk."""

    def num_tokens_measured(self, config: Any) -> int:
        """How many of them do at once when a network is measured: of one that reads step by step
        fewer.
        """

    def answers(self, config: Any, network: Any, shown: Any) -> Any:
        """What of a network's answers the loss reads."""

    def loss(self, config: Any, answers: Any, given: Any) -> Any:
        """What is minimised: a scalar, of `answers` in float32."""

    def conditions(self, config: Any) -> dict[str, Any]:
        """Condition -> arrays that tell it from the others; of the same shapes for all."""

    def untrained(self, config: Any, condition: Any, keys: Any) -> Untrained:
        """What is measured without training."""

    def trained(
        self, config: Any, condition: Any, keys: Any, network: Any, needed: Any
    ) -> dict[str, Any]:
        """What is measured of a network: quantity -> values [b, x].

        Args:
          config: the options.
          condition: of one condition.
          keys: of the contexts.
          network: a trained one of `network`, what is shown -> answers.
          needed: of `untrained`, for the same contexts.
        """

    def figure(self, config: Any, curves: dict[str, Any]) -> Any:
        """How it is drawn: the `matplotlib.figure.Figure` of a run's curves."""


@runtime_checkable
class StudiedWorld(World, Protocol):
    """A world that looks into trained networks, beyond curves; see `Measures.study`."""

    def study(
        self,
        config: Any,
        network: Callable[[Any], Any],
        params: Any,
        earlier: Callable[[], dict[int, Any]],
        keys: Any,
        progress: Callable[[float], None],
    ) -> dict[str, Any]:
        """What is found of a configuration's networks, as JSON holds it.

        Its "summary" is a list of headline numbers: {"name", "mean", "low", "high"}.

        Args:
          config: the options.
          network: parameters of one seed -> its network.
          params: parameters with a leading axis of seeds, on the host.
          earlier: reads step -> the same of the checkpoints that are kept from before.
          keys: [s, b] of the contexts of each seed, or one row that all seeds share.
          progress: called with the share that is done; it may end the study by an exception.
        """

    def study_figure(self, config: Any, found: dict[str, Any]) -> Any:
        """The `matplotlib.figure.Figure` of what `study` found."""


@runtime_checkable
class ProvokingWorld(World, Protocol):
    """A world whose training contexts may depend on the network that is trained."""

    def provoked(self, config: Any, network: Any, sample: Sample, keys: Any) -> Sample:
        """What training reads in place of `sample`.

        Args:
          config: the options.
          network: as it is; whether a gradient goes through what is made with it, the world says.
          sample: what was drawn.
          keys: of the contexts.
        """


def options_of(world: str) -> type[Config]:
    """The class of a world's options."""
    return importlib.import_module(f"icl_align.{world}.options").Options


def world_of(config: Config) -> World:
    """The world that a configuration is of."""
    return importlib.import_module(f"icl_align.{config.world}.world").WORLD
