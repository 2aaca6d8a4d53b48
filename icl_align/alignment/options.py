"""The options of the alignment world, and the names of what it measures."""

import dataclasses
from typing import ClassVar, Optional

from icl_align.config import (
    EVALUATION,
    TRAINING,
    Config,
    ConfigError,
    EvaluationConfig,
    TrainConfig,
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
FORMULAS = ("share", "distance", "direction")
LEARNED = "learned"
CRITICS = (*FORMULAS, LEARNED)
SCALES = ("attempts_norm", "as_is")
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
    critic_weight: float = option(
        0.0, "of the squared error of a learned critic; 0 has none", least=0
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
class OwnRoundsConfig:
    """How a learner's own answers become its next attempts, in training and in evaluation."""

    given_attempts: int = option(2, "attempts that are given before the learner's own", least=0)
    critic: str = option(
        "share",
        "rewards own answers: by their share of the target, their distance to it, their direction; "
        "or the transformer's second read-out",
        choices=CRITICS,
    )
    critic_noise: float = option(
        0.0, "probability that a reward of the critic is replaced by U(0, 1)", least=0, most=1
    )
    critic_power: float = option(
        1.0, "exponent of all rewards, of given attempts and of own ones", above=0
    )
    critic_bias: float = option(0.0, "what the critic adds for own answers", least=-1, most=1)
    critic_clipped: bool = option(True, "whether the critic's rewards are clipped to [0, 1]")
    scale: str = option(
        "attempts_norm",
        "of an answer that is put back: the mean norm of the given attempts, or its own",
        choices=SCALES,
    )


@dataclasses.dataclass
class AlignmentTrainConfig(TrainConfig):
    """The training loop."""

    own_rounds_share: float = option(
        0.0,
        "share of the training contexts whose attempts after the given ones are the network's own",
        least=0,
        most=1,
    )
    own_rounds_gradient: bool = option(
        False, "whether the gradient goes through the making of own attempts"
    )


@dataclasses.dataclass
class AlignmentEvaluationConfig(EvaluationConfig):
    """Learners x attempts x reward noise."""

    reward_noise: list[float] = option(
        [0.0, 0.25, 0.5, 0.75, 1.0], "reward-noise levels", least=0, most=1
    )
    own_rounds: int = option(
        0, "rounds of own answers: own_rounds.json and own_rounds.png; 0 makes none", least=0
    )
    own_rounds_first: bool = option(
        False, "whether the transformer reads its own attempts before the given ones"
    )


@dataclasses.dataclass
class Options(Config):
    """The options of the alignment world."""

    world: str = option("alignment", "what is simulated", choices=("alignment",))
    model: ModelConfig = section(ModelConfig, TRAINING)
    train: AlignmentTrainConfig = section(AlignmentTrainConfig, TRAINING)
    evaluation: AlignmentEvaluationConfig = section(AlignmentEvaluationConfig, EVALUATION)
    task: TaskConfig = section(TaskConfig, TRAINING, EVALUATION)
    loss: LossConfig = section(LossConfig, TRAINING)
    gradient_descent: GradientDescentConfig = section(GradientDescentConfig, EVALUATION)
    own_rounds: OwnRoundsConfig = section(OwnRoundsConfig, TRAINING, EVALUATION)

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
        study="own_rounds",
        studied=("own_rounds.", "evaluation.own_rounds"),
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
        self._check_own_rounds(trained)
        if trained is None:
            self._check_loss()
        elif self.model.positions and self.task.num_responses > trained.task.num_responses:
            raise ConfigError(
                "task.num_responses",
                self.task.num_responses,
                f"must be at most {trained.task.num_responses}, the learned positions of this run",
            )

    def _check_own_rounds(self, trained: Optional["Options"]) -> None:
        rounds = self.evaluation.own_rounds
        share = 0.0 if trained else self.train.own_rounds_share
        given, attempts = self.own_rounds.given_attempts, self.task.num_responses
        asked = {"train.own_rounds_share": share, "evaluation.own_rounds": rounds}
        for key, value in asked.items():
            if not value:
                continue
            if self.model.sees_future:
                raise ConfigError(key, value, "needs model.sees_future=false")
            if self.task.shown_rewards == "shuffled":
                raise ConfigError(key, value, "needs task.shown_rewards=given or none")
            if self.task.reward_transform == "rank":
                raise ConfigError(key, value, "needs task.reward_transform=identity or power")
            if self.task.dim == 1:
                raise ConfigError(key, value, "needs task.dim of 2 at least")
        if rounds and given + rounds > attempts:
            most = f"task.num_responses={attempts} with own_rounds.given_attempts={given}"
            room = f"; at most {attempts - given}" if given < attempts else ""
            raise ConfigError("evaluation.own_rounds", rounds, f"goes beyond {most}{room}")
        last = (trained or self).last_attempts
        if rounds and self.model.positions and given + rounds > last:
            most = f"{last} attempts, as far as learned positions are trained (loss.max_attempts)"
            raise ConfigError("evaluation.own_rounds", rounds, f"goes beyond {most}")
        if share and self.loss.min_attempts == self.last_attempts:
            reason = "needs a larger task.num_responses or loss.max_attempts: there is no room"
            raise ConfigError("train.own_rounds_share", share, reason)
        if share and not self.loss.min_attempts <= given < self.last_attempts:
            within = f"[{self.loss.min_attempts}, {self.last_attempts - 1}]"
            reason = f"must be in {within}, where train.own_rounds_share trains predictions"
            raise ConfigError("own_rounds.given_attempts", given, reason)
        if self.train.own_rounds_gradient and not trained and not share:
            reason = "needs train.own_rounds_share above 0"
            raise ConfigError("train.own_rounds_gradient", True, reason)
        if share and self.loss.critic_weight:
            for name, plain in (("critic_power", 1.0), ("critic_bias", 0.0)):
                if (value := getattr(self.own_rounds, name)) != plain:
                    reason = "needs loss.critic_weight=0: what is learned would hold it twice"
                    raise ConfigError(f"own_rounds.{name}", value, reason)
        if self.own_rounds.critic == LEARNED:
            if share:
                reason = "cannot reward what it is trained on; needs another own_rounds.critic"
                raise ConfigError("own_rounds.critic", LEARNED, reason)
            if self.evaluation.own_rounds_first:
                reason = "reads in the order of the rounds; needs evaluation.own_rounds_first=false"
                raise ConfigError("own_rounds.critic", LEARNED, reason)
            if not self.loss.critic_weight:
                reason = "needs loss.critic_weight above 0"
                if trained:
                    reason = "this run was trained without one; needs loss.critic_weight above 0"
                raise ConfigError("own_rounds.critic", LEARNED, reason)

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
        if loss.critic_weight and not self.model.causal:
            raise ConfigError("loss.critic_weight", loss.critic_weight, "needs model.causal=true")
        if loss.min_attempts > last:
            raise ConfigError(
                "loss.min_attempts",
                loss.min_attempts,
                f"must be at most the last prediction, {last}",
            )
