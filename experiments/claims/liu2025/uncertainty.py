"""Uncertainty falls over the rounds."""

from experiments.claim import Arm, Claim, Judgement, Scale, below
from experiments.dialogue import (
    UNCERTAINTY_THAT_COUNTS,
    beyond_none,
    reading,
)


def claim(scale: Scale) -> Claim:
    """Answers are kept under every plan, so only the difference to neutral instructions counts."""
    base = Arm()
    figure = {
        "careful": reading(base, "uncertainty"),
        "none": reading(base, "uncertainty", "none"),
        "careful, exact reader": reading(base, "uncertainty", reader="exact"),
    }
    return Claim(
        sentence="Careful instructions lower the uncertainty.",
        place="Liu et al. (2025), section 4",
        judgements=(
            Judgement(
                "published",
                "the last answer is less uncertain than the first",
                reading(base, "uncertainty") - reading(base, "uncertainty", at=0),
                below(-UNCERTAINTY_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                "and less than under neutral instructions",
                beyond_none(base, "uncertainty"),
                below(-UNCERTAINTY_THAT_COUNTS),
                primary=True,
            ),
        ),
        figure=figure,
        course=figure,
    )
