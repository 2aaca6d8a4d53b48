"""The options of the alignment world, and the names of what it measures."""

import dataclasses
from typing import ClassVar, Optional

from icl_align.config import (
    EVALUATION,
    TRAINING,
    Config,
    ConfigError,
    EvaluationConfig,
    TrunkConfig,
    option,
    section,
)
from icl_align.world import Measures, Quantity

TASKS = ("shared_corruption", "independent_corruption")
REWARD_TRANSFORMS = ("identity", "power", "rank")
SHOWN_REWARDS = ("given", "none", "shuffled")
TOKENS = ("triplet", "triplet_norm", "interleaved")
LOSSES = ("plackett_luce", "bradley_terry", "squared", "cosine")
RANKING_LOSSES = ("plackett_luce", "bradley_terry")
SCORES = ("cosine", "negative_squared_distance")
OPTIMIZERS = ("adam", "sgd")
INITIAL_POLICIES = ("torch", "zero")
LEARNERS = (
    "transformer",
    "gradient_descent",
    "plackett_luce_optimum",
    "best_attempt",
    "weighted_average",
    "least_squares",
)
QUANTITIES = {
    "refinement_error": Quantity("refinement error  1 − cos(ŷ, Wx)"),
    "regret": Quantity("Plackett–Luce regret", symlog=True),
    "agreement": Quantity("agreement with gradient descent"),
}


@dataclasses.dataclass
class TaskConfig:
    """How contexts are drawn."""

    name: str = option("shared_corruption", "how responses are corrupted", choices=TASKS)
    dim: int = option(5, "dimension d of queries and responses", least=1, of=(TRAINING,))
    num_responses: int = option(20, "attempts N in a context; 2 is the Bradley-Terry case", least=2)
    reward_noise: float = option(
        0.0,
        "probability that a reward is replaced by a fresh U(0, 1) draw",
        least=0,
        most=1,
        traced=True,
    )
    reward_transform: str = option(
        "identity", "monotone map of the rewards", choices=REWARD_TRANSFORMS
    )
    reward_power: float = option(3.0, "exponent of reward_transform=power", above=0)
    unit_norm_queries: bool = option(False, "scale every query to norm 1")
    shown_rewards: str = option(
        "given",
        "what the transformer is shown of the rewards; losses always use the given ones",
        choices=SHOWN_REWARDS,
    )


@dataclasses.dataclass
class ModelConfig(TrunkConfig):
    """The transformer: its trunk, and what of a context it reads."""

    sees_future: bool = option(
        False, "one unmasked pass that also reads later attempts (the published variants' leak)"
    )
    tokens: str = option(
        "triplet",
        "one token an attempt; the same with ||y||^2 beside it; or three as published",
        choices=TOKENS,
    )


@dataclasses.dataclass
class LossConfig:
    """What training minimises, averaged over the predictions after min..max attempts."""

    name: str = option(
        "plackett_luce", "a ranking of the attempts, or regression to the target", choices=LOSSES
    )
    score: str = option(
        "cosine",
        "score of a response given a prediction",
        choices=SCORES,
    )
    min_attempts: int = option(2, "first prediction that is trained on", least=0)
    max_attempts: Optional[int] = option(
        None, "last prediction that is trained on; null is task.num_responses", least=0
    )


@dataclasses.dataclass
class GradientDescentConfig:
    """The learner `gradient_descent`; the defaults are the published baseline's."""

    optimizer: str = option("adam", "update rule", choices=OPTIMIZERS)
    learning_rate: float = option(0.1, "step size", above=0)
    steps: int = option(50, "steps at reward noise 0", least=0)
    steps_at_full_noise: int = option(
        25, "steps at reward noise 1; linear in between, rounded down", least=0
    )
    init: str = option(
        "torch", "initial policy: PyTorch's Linear, or zero", choices=INITIAL_POLICIES
    )


@dataclasses.dataclass
class AlignmentEvaluationConfig(EvaluationConfig):
    """Learners x attempts x reward noise."""

    reward_noise: list[float] = option(
        [0.0, 0.25, 0.5, 0.75, 1.0], "reward-noise levels", least=0, most=1
    )


@dataclasses.dataclass
class Options(Config):
    """The options of the alignment world."""

    world: str = option("alignment", "what is simulated", choices=("alignment",))
    model: ModelConfig = section(ModelConfig, TRAINING)
    evaluation: AlignmentEvaluationConfig = section(AlignmentEvaluationConfig, EVALUATION)
    task: TaskConfig = section(TaskConfig, TRAINING, EVALUATION)
    loss: LossConfig = section(LossConfig, TRAINING)
    gradient_descent: GradientDescentConfig = section(GradientDescentConfig, EVALUATION)

    measures: ClassVar[Measures] = Measures(
        axis="attempts",
        axis_label="attempts in context",
        judged_at=15,  # where the published curves end
        quantities=QUANTITIES,
        learners=LEARNERS,
        condition="reward_noise",
        condition_metric="noise",
        drawn_from=1,
        flags={
            "optimum_not_converged": "the Plackett-Luce optimum has not converged in {share:.2%} "
            "of the contexts"
        },
    )

    @property
    def last_attempts(self) -> int:
        """Attempts that the last trained prediction sees."""
        most = self.loss.max_attempts
        return self.task.num_responses if most is None else most

    def check_together(self, trained: Optional[Config] = None) -> None:
        """As `Config.check_together`."""
        super().check_together(trained)
        if self.model.sees_future and self.model.causal:
            raise ConfigError("model.sees_future", True, "needs model.causal=false")
        if trained is None:
            self._check_loss()
        elif self.model.positions and self.task.num_responses > trained.task.num_responses:
            raise ConfigError(
                "task.num_responses",
                self.task.num_responses,
                f"must be at most {trained.task.num_responses}, the learned positions of this run",
            )

    def _check_loss(self) -> None:
        loss, attempts = self.loss, self.task.num_responses
        last = self.last_attempts
        if self.task.dim == 1 and loss.score == "cosine":
            raise ConfigError(
                "task.dim", 1, "must be at least 2 with loss.score=cosine, which sees a sign only"
            )
        if last > attempts:
            raise ConfigError(
                "loss.max_attempts", last, f"must be at most task.num_responses={attempts}"
            )
        if loss.name in RANKING_LOSSES and loss.min_attempts < 2:
            raise ConfigError(
                "loss.min_attempts",
                loss.min_attempts,
                "must be at least 2: one attempt has no ranking",
            )
        if loss.min_attempts > last:
            raise ConfigError(
                "loss.min_attempts",
                loss.min_attempts,
                f"must be at most the last prediction, {last}",
            )
