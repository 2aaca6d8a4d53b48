"""The calibration error falls with the uncertainty."""

from experiments.claim import Arm, Claim, Judgement, Scale, below
from experiments.dialogue import ACCURACY_THAT_COUNTS, beyond_none, reading

ERROR = "calibration_error_corrected"


def claim(scale: Scale) -> Claim:
    """In the default kind whoever is careful knows the right answer for certain, so the error falls
    with every answer that gets surer and righter. The test is a kind whose views are noisy.
    """
    base, noisy = Arm(tuned=False), Arm(("task=visual_question",), tuned=False)
    figure = {
        "noisy views, careful": reading(noisy, ERROR),
        "noisy views, none": reading(noisy, ERROR, "none"),
        "careful": reading(base, ERROR),
        "none": reading(base, ERROR, "none"),
    }
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
                "published",
                "also where views are noisy",
                reading(noisy, ERROR) - reading(noisy, ERROR, at=0),
                below(-ACCURACY_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                "it is lower than under neutral instructions",
                beyond_none(base, ERROR),
                below(-ACCURACY_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                "and there lower than under neutral instructions",
                beyond_none(noisy, ERROR),
                below(-ACCURACY_THAT_COUNTS),
                primary=True,
            ),
        ),
        figure=figure,
        course=figure,
    )
