"""Performance rises, and then stays."""

from experiments.claim import Arm, Claim, Judgement, Scale, above, within
from experiments.dialogue import (
    ACCURACY_THAT_COUNTS,
    LAST,
    beyond_none,
    reading,
)


def claim(scale: Scale) -> Claim:
    """Rounds 5 to 7 of 8: an accuracy that has converged changes no more."""
    base = Arm()
    return Claim(
        sentence="Told to be careful round by round, a model improves and then stays.",
        place="Liu et al. (2025), abstract and section 3",
        judgements=(
            Judgement(
                "published",
                "the accuracy of the last round is above that of the first answer",
                reading(base, "accuracy") - reading(base, "accuracy", at=0),
                above(ACCURACY_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                "and by more than under neutral instructions",
                beyond_none(base, "accuracy"),
                above(ACCURACY_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                f"from round {LAST - 2} to {LAST} it stays",
                reading(base, "accuracy") - reading(base, "accuracy", at=LAST - 2),
                within(ACCURACY_THAT_COUNTS),
                primary=True,
            ),
        ),
        figure={
            "careful": reading(base, "accuracy"),
            "none": reading(base, "accuracy", "none"),
            "careful, exact reader": reading(base, "accuracy", reader="exact"),
        },
    )
