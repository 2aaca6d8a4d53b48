"""The options of the dialogue world, and the names of what it measures."""

import dataclasses
import math

from icl_align.config import (
    ConfigError,
    option,
)

KINDS = (
    "social_bias",
    "ambiguous_bias",
    "jailbreak_verdict",
    "visual_question",
    "detoxification",
    "commonsense_generation",
    "visual_grounding",
)
ALL = "all"


@dataclasses.dataclass
class TaskConfig:
    """How dialogues are drawn."""

    name: str = option(
        "social_bias", "kind of the dialogues, or a mixture of all", choices=(*KINDS, ALL)
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
    neutral_share: float = option(
        0.2, "share of neutral instructions after the first round", least=0, most=1, traced=True
    )
    keep_fine: float = option(
        0.9, "probability to keep an answer that was found fine", least=0, most=1, traced=True
    )
    keep_flawed: float = option(
        0.1, "probability to keep an answer that was found flawed", least=0, most=1, traced=True
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
        return KINDS if self.name == ALL else (self.name,)

    def check_together(self) -> None:
        """Raises ConfigError if options that are allowed alone do not go together."""
        if len(self.prior) < 2:
            raise ConfigError("task.prior", self.prior, "needs two concepts at least")
        if not math.isclose(sum(self.prior), 1, abs_tol=1e-6):
            raise ConfigError("task.prior", self.prior, f"must sum to 1, not to {sum(self.prior)}")
        if len(self.critic_accuracy) not in (1, len(self.prior)):
            raise ConfigError(
                "task.critic_accuracy",
                self.critic_accuracy,
                f"must be one number, or one for each of {len(self.prior)} concepts",
            )
