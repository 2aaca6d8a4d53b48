"""A toy world: a line through the origin, read from points."""

import dataclasses
from typing import ClassVar

from icl_align.config import EVALUATION, TRAINING, Config, EvaluationConfig, option, section
from icl_align.world import Measures, Quantity


@dataclasses.dataclass
class TaskConfig:
    """How points are drawn."""

    slope: float = option(2.0, "of the line", above=0, traced=True)


@dataclasses.dataclass
class ToyEvaluationConfig(EvaluationConfig):
    """Far from where it was trained."""

    shift: list[float] = option([0.0, 1.0], "how far")


@dataclasses.dataclass
class Options(Config):
    """The options of the toy world."""

    world: str = option("toy", "what is simulated", choices=("toy",))
    evaluation: ToyEvaluationConfig = section(ToyEvaluationConfig, EVALUATION)
    task: TaskConfig = section(TaskConfig, TRAINING, EVALUATION)

    measures: ClassVar[Measures] = Measures(
        axis="points",
        axis_label="point",
        judged_at=2,
        quantities={"distance": Quantity("distance from the line")},
        learners=("network", "zero"),
        condition="shift",
        condition_metric="shift",
    )
