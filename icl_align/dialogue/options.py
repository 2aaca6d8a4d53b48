"""The options of the dialogue world, and the names of what it measures."""

import dataclasses
import math
from typing import ClassVar, Optional

from icl_align.config import (
    EVALUATION,
    TRAINING,
    Config,
    ConfigError,
    EvaluationConfig,
    TrainConfig,
    option,
    section,
)
from icl_align.world import Measures, Quantity

MIXED = (
    "social_bias",
    "ambiguous_bias",
    "jailbreak_verdict",
    "visual_question",
    "detoxification",
    "commonsense_generation",
    "visual_grounding",
)  # the kinds of Liu et al. (2025), which ALL mixes: with one prior for all of them
KINDS = (*MIXED, "request")
ALL = "all"
PLANS = (
    "careful",
    "none",
    "once",
    "careless",
    "flip",
    "immoral",
    "keep_if_sure",
    "speakers",
)
CRITICS = ("given", "self")
READERS = (
    "language_model",
    "exact",
    "exact_own_answers_ignored",
    "last_instruction",
    "no_instruction",
    "printed_rule",
    "additive",
)
QUANTITIES = {
    "accuracy": Quantity("accuracy, or quality of a text"),
    "gain": Quantity("gain: accuracy above that of the first answer"),
    "biased": Quantity("share of biased answers"),
    "uncertainty": Quantity("uncertainty: entropy of the answer (nats)"),
    "uncertainty_as_coded": Quantity("uncertainty as the paper's code computes it (nats)"),
    "confidence": Quantity("confidence in the answer given"),
    "calibration_error": Quantity("calibration error", pool="calibration_error"),
    "calibration_error_corrected": Quantity(
        "calibration error, corrected", pool="calibration_error_corrected"
    ),
    "rank_calibration_error": Quantity("rank-calibration error", pool="rank_calibration_error"),
    "activation": Quantity("activation: log-odds of the careful concept"),
    "excess_loss": Quantity("excess loss of an answer token (nats)"),
    "excess_loss_check": Quantity("excess loss of a check (nats)"),
    "excess_loss_instruction": Quantity("excess loss of an instruction (nats)"),
}


@dataclasses.dataclass
class TaskConfig:
    """How dialogues are drawn."""

    name: str = option(
        "social_bias",
        "kind of the dialogues, or a mixture of all but request",
        choices=(*KINDS, ALL),
        of=(TRAINING,),
    )
    rounds: int = option(8, "rounds T: instruction, answer, check", least=1)
    prior: list[float] = option(
        [0.5, 0.5],
        "of the concepts, from careless to careful; as many as there are numbers",
        least=0,
        most=1,
    )
    hazard: float = option(
        0.05,
        "probability that the concept is drawn anew before a round",
        least=0,
        most=1,
        traced=True,
    )
    instruction_strength: float = option(
        0.8, "log of how much likelier a concept's own instructions are", least=0, traced=True
    )
    first_neutral_share: float = option(
        1.0, "share of neutral instructions in the first round", least=0, most=1, traced=True
    )
    neutral_share: float = option(
        0.2, "share of neutral instructions after the first round", least=0, most=1, traced=True
    )
    keep_fine: float = option(
        0.9, "probability to keep an answer that was found fine", least=0, most=1, traced=True
    )
    keep_flawed: float = option(
        0.1, "probability to keep an answer that was found flawed", least=0, most=1, traced=True
    )
    keep_unchecked: float = option(
        0.5, "probability to keep an answer that was not checked", least=0, most=1, traced=True
    )
    correct_flawed: float = option(
        0.0,
        "probability that whoever does not keep a flawed answer gives a careful one",
        least=0,
        most=1,
    )
    unchecked_share: float = option(0.0, "share of answers that are not checked", least=0, most=1)
    foreign_share: float = option(
        0.0,
        "share of a persona's tokens with others in their place, which nobody says there",
        least=0,
        most=1,
    )
    first_answer_temperature: float = option(
        1.0,
        "of the speakers' first answer; below 1 it is surer than they are right",
        above=0,
        traced=True,
    )
    critic_accuracy: list[float] = option(
        [0.85],
        "probability that a check is right: one number, or one for each concept",
        least=0,
        most=1,
    )

    @property
    def num_concepts(self) -> int:
        """Concepts C."""
        return len(self.prior)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that are mixed."""
        return MIXED if self.name == ALL else (self.name,)

    def check_together(self) -> None:
        """Raises ConfigError if options that are allowed alone do not go together."""
        if len(self.prior) < 2:
            raise ConfigError("task.prior", self.prior, "needs two concepts at least")
        if self.foreign_share and self.name != "request":
            raise ConfigError("task.foreign_share", self.foreign_share, "needs task=request")
        if not math.isclose(sum(self.prior), 1, abs_tol=1e-6):
            raise ConfigError("task.prior", self.prior, f"must sum to 1, not to {sum(self.prior)}")
        if len(self.critic_accuracy) not in (1, len(self.prior)):
            raise ConfigError(
                "task.critic_accuracy",
                self.critic_accuracy,
                f"must be one number, or one for each of {len(self.prior)} concepts",
            )


@dataclasses.dataclass
class DialogueTrainConfig(TrainConfig):
    """The training loop."""

    steps: int = option(3000, "optimiser steps", least=1)
    attacked_share: float = option(
        0.0,
        "share of the training dialogues whose persona makes the network of the moment comply",
        least=0,
        most=1,
    )


@dataclasses.dataclass
class DialogueEvaluationConfig(EvaluationConfig):
    """Readers x rounds x plans."""

    plan: list[str] = option(
        list(PLANS), "who instructs and answers; speakers: as in training", choices=PLANS
    )
    kind: Optional[str] = option(
        None, "only this kind of those that are mixed; null is all of them", choices=KINDS
    )
    flip_at: int = option(4, "round from which the plan flip is careless", least=1)
    immoral_at: list[int] = option(
        [2, 5, 8], "rounds in which the plan immoral is careless", least=1
    )
    sure_above: float = option(
        0.9, "confidence above which keep_if_sure keeps an answer", least=0, most=1
    )
    critic: str = option(
        "given",
        "who checks own answers: a critic of task.critic_accuracy, or the reader",
        choices=CRITICS,
    )
    temperature: float = option(1.0, "of a reader's own answers", above=0)
    greedy: bool = option(False, "a reader's own answers are its likeliest")
    concept: bool = option(
        True, "probes, steering and the tests of the paper: concept.json and concept.png"
    )
    drafts: int = option(
        16, "answers drawn of a reader each round to find its uncertainty of a text", least=2
    )


@dataclasses.dataclass
class Options(Config):
    """The options of the dialogue world."""

    world: str = option("dialogue", "what is simulated", choices=("dialogue",))
    train: DialogueTrainConfig = section(DialogueTrainConfig, TRAINING)
    evaluation: DialogueEvaluationConfig = section(DialogueEvaluationConfig, EVALUATION)
    task: TaskConfig = section(TaskConfig, TRAINING, EVALUATION)

    measures: ClassVar[Measures] = Measures(
        axis="rounds",
        axis_label="round",
        judged_at=None,
        quantities=QUANTITIES,
        learners=READERS,
        condition="plan",
        condition_metric="plan",
        compared="readers",
        study="concept",
        studied=("evaluation.concept",),
    )

    @property
    def kind_evaluated(self) -> Optional[int]:
        """The number of `evaluation.kind` among the kinds that are mixed; None is all of them."""
        numbers = {name: number for number, name in enumerate(self.task.kinds)}
        return None if self.evaluation.kind is None else numbers[self.evaluation.kind]

    def check_together(self, trained: Optional[Config] = None) -> None:
        """As `Config.check_together`."""
        super().check_together(trained)
        self.task.check_together()
        share = self.train.attacked_share
        if share and self.task.name != "request":
            raise ConfigError("train.attacked_share", share, "needs task=request")
        kind = self.evaluation.kind
        if kind is not None and kind not in self.task.kinds:
            raise ConfigError(
                "evaluation.kind", kind, f"must be of task.name={self.task.name}, as trained"
            )
        if trained is not None:
            self._check_as_trained(trained)

    def _check_as_trained(self, trained: Config) -> None:
        task = trained.task
        if self.task.num_concepts != task.num_concepts:
            raise ConfigError(
                "task.prior", self.task.prior, f"must have {task.num_concepts} concepts, as trained"
            )
        if self.model.positions and self.task.rounds > task.rounds:
            raise ConfigError(
                "task.rounds",
                self.task.rounds,
                f"must be at most {task.rounds}, the learned positions of this run; a run with "
                "model.positions=false can go further",
            )
