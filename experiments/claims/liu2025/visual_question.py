"""Answers to visual questions get worse again after round 2."""

from experiments.claim import Arm, Claim, Judgement, Scale, above, below
from experiments.dialogue import ACCURACY_THAT_COUNTS, reading


def claim(scale: Scale) -> Claim:
    """The picture is several noisy views of an attribute: no instruction lifts that ceiling.
    Nothing in this world makes an answer worse again, as the exact reader shows; that a network
    does it would be a fault of its own. Rounds count from 0, the first answer.
    """
    arm = Arm(("task=visual_question",), tuned=False)
    figure = {
        "careful": reading(arm, "accuracy"),
        "none": reading(arm, "accuracy", "none"),
        "careful, exact reader": reading(arm, "accuracy", reader="exact"),
    }
    return Claim(
        sentence="Visual question answering improves until round 2, and then drops.",
        place="Liu et al. (2025), section 3",
        judgements=(
            Judgement(
                "published",
                "the accuracy rises from the first answer to round 2",
                reading(arm, "accuracy", at=2) - reading(arm, "accuracy", at=0),
                above(ACCURACY_THAT_COUNTS),
            ),
            Judgement(
                "published",
                "and is lower in the last round than in round 2",
                reading(arm, "accuracy") - reading(arm, "accuracy", at=2),
                below(-ACCURACY_THAT_COUNTS),
                primary=True,
            ),
            Judgement(
                "controlled",
                "so is that of the exact reader",
                reading(arm, "accuracy", reader="exact")
                - reading(arm, "accuracy", at=2, reader="exact"),
                below(-ACCURACY_THAT_COUNTS),
                of_untrained=True,
            ),
        ),
        figure=figure,
        course={
            **figure,
            "careful, confidence": reading(arm, "confidence"),
            "careful, calibration error, corrected": reading(arm, "calibration_error_corrected"),
            "none, calibration error, corrected": reading(
                arm, "calibration_error_corrected", "none"
            ),
        },
    )
