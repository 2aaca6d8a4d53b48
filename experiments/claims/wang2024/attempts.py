"""Refinement grows with the number of attempts."""

from experiments.alignment import ERROR_THAT_COUNTS, AlignmentScale, refinement_error
from experiments.claim import Arm, Claim, Judgement, above


def claim(scale: AlignmentScale) -> Claim:
    """The error falls, and by more than averaging the attempts, without their rewards, gains."""
    full, alike = Arm(), Arm(tuned=False)
    no_reward = Arm(("+ablation=no_reward",), tuned=False)
    return Claim(
        sentence="More attempts in context give a better answer.",
        place="Wang et al. (2024), synthetic study, (a)",
        judgements=(
            Judgement(
                "published",
                "the error is lower after 15 attempts than after 2",
                refinement_error(full, attempts=2) - refinement_error(full),
                above(ERROR_THAT_COUNTS),
                primary=True,
            ),
            Judgement(
                "controlled",
                "it falls by more than without seeing rewards",
                refinement_error(alike, attempts=2)
                - refinement_error(alike)
                - refinement_error(no_reward, attempts=2)
                + refinement_error(no_reward),
                above(ERROR_THAT_COUNTS),
            ),
        ),
        figure={
            "rewards shown": refinement_error(alike),
            "no rewards shown": refinement_error(no_reward),
            "gradient descent": refinement_error(alike, learner="gradient_descent"),
        },
    )
