"""The calibration error falls with the uncertainty."""

from experiments.claim import Arm, Claim, Judgement, Scale, below
from experiments.dialogue import (
    ACCURACY_THAT_COUNTS,
    beyond_none,
    reading,
)

ERROR = "calibration_error_corrected"


def claim(scale: Scale) -> Claim:
    """In the default kind, and in one whose views are noisy."""
    base = Arm()
    noisy = Arm(("task=visual_question",), tuned=False)
    return Claim(
        sentence="Careful instructions lower the calibration error.",
        place="Liu et al. (2025), section 4",
        judgements=(
            Judgement(
                "published",
                "it is lower in the last round than in the first",
                reading(base, ERROR) - reading(base, ERROR, at=0),
                below(-ACCURACY_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                "and lower than under neutral instructions",
                beyond_none(base, ERROR),
                below(-ACCURACY_THAT_COUNTS),
                primary=True,
            ),
            Judgement(
                "controlled",
                "where the picture is noisy it falls too",
                reading(noisy, ERROR) - reading(noisy, ERROR, at=0),
                below(-ACCURACY_THAT_COUNTS),
            ),
        ),
        figure={
            "careful": reading(base, ERROR),
            "none": reading(base, ERROR, "none"),
        },
    )
