"""Noisy rewards degrade refinement; rewards that are all noise leave nothing of it."""

from experiments.alignment import ERROR_THAT_COUNTS, AlignmentScale, refinement_error
from experiments.claim import Arm, Claim, Judgement, above, below


def claim(scale: AlignmentScale) -> Claim:
    """The transformer is trained on clean rewards, as published, and evaluated under noise."""
    full, alike = Arm(), Arm(tuned=False)  # drawn is what the primary judgement reads
    clean, half = refinement_error(full), refinement_error(full, reward_noise=0.5)
    few = refinement_error(full, reward_noise=1.0, attempts=2)
    return Claim(
        sentence="Reward noise degrades refinement, and p = 1 leaves nothing.",
        place="Wang et al. (2024), synthetic study, (b)",
        judgements=(
            Judgement(
                "published",
                "p = 0.5 has a larger error than p = 0",
                half - clean,
                above(ERROR_THAT_COUNTS),
                primary=True,
            ),
            Judgement(
                "published",
                "at p = 1 nothing is gained from 2 to 15 attempts",
                few - refinement_error(full, reward_noise=1.0),
                below(ERROR_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                "p = 0.5 has a larger error than p = 0, at the best learning rate",
                half - clean,
                above(ERROR_THAT_COUNTS),
            ),
        ),
        figure={
            "p = 0": refinement_error(alike),
            "p = 0.5": refinement_error(alike, reward_noise=0.5),
            "p = 1": refinement_error(alike, reward_noise=1.0),
            "gradient descent, p = 0.5": refinement_error(
                alike, reward_noise=0.5, learner="gradient_descent"
            ),
        },
    )
