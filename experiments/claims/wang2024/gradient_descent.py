"""The transformer does what gradient descent on the ranking loss does."""

from experiments.alignment import (
    AGREEMENT_RESOLUTION,
    AGREEMENT_THAT_COUNTS,
    ERROR_THAT_COUNTS,
    AlignmentScale,
    agreement,
    refinement_error,
)
from experiments.claim import Arm, Claim, Judgement, above, within


def claim(scale: AlignmentScale) -> Claim:
    """The errors are equal, and so are the answers, with and without reward noise."""
    full = Arm()
    descent = {"learner": "gradient_descent"}
    clean, noisy = refinement_error(full), refinement_error(full, reward_noise=0.5)
    clean_descent = refinement_error(full, **descent)
    noisy_descent = refinement_error(full, reward_noise=0.5, **descent)
    return Claim(
        sentence="The transformer tracks gradient descent on the Plackett-Luce loss.",
        place="Wang et al. (2024), Theorem 3.3 and synthetic study, (a)",
        judgements=(
            Judgement(
                "published",
                "both have the same error",
                clean - clean_descent,
                within(ERROR_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                "both give the same answer: their cosine",
                agreement(full),
                above(AGREEMENT_THAT_COUNTS, AGREEMENT_RESOLUTION),
                primary=True,
            ),
            Judgement(
                "controlled",
                "also when half of the rewards are noise",
                agreement(full, reward_noise=0.5),
                above(AGREEMENT_THAT_COUNTS, AGREEMENT_RESOLUTION),
            ),
            Judgement(
                "controlled",
                "this noise costs both the same error",
                noisy - clean - noisy_descent + clean_descent,
                within(ERROR_THAT_COUNTS),
            ),
        ),
        figure={
            "no noise": agreement(full),
            "half of the rewards noise": agreement(full, reward_noise=0.5),
            "all rewards noise": agreement(full, reward_noise=1.0),
        },
    )
