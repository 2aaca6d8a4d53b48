"""The concept drives uncertainty: steering."""

from experiments.claim import Arm, Claim, Effect, Judgement, Scale, above, below
from experiments.dialogue import (
    ACCURACY_THAT_COUNTS,
    UNCERTAINTY_THAT_COUNTS,
    inside,
)
from icl_align.dialogue.concept.steering import DOSES
from icl_align.dialogue.options import QUANTITIES

LAYER = 1  # after block 2
PLUS, MINUS = (DOSES.index(dose) for dose in (1, -1))


def steered(arm: Arm, direction: str, quantity: str, dose: int) -> Effect:
    """Change of a quantity, a mean over the rounds."""
    label = f"change of {QUANTITIES[quantity].label}"
    return inside(arm, "steering", direction, quantity, at=(LAYER, dose), label=label)


def claim(scale: Scale) -> Claim:
    """A dose along the direction in which states move with the log-odds, less one against it, which
    leaves out what any disturbance does; and beside random directions.
    """
    base = Arm()

    def swing(quantity: str) -> Effect:
        pattern, random = (
            steered(base, direction, quantity, PLUS) - steered(base, direction, quantity, MINUS)
            for direction in ("pattern", "random")
        )
        return pattern - random

    return Claim(
        sentence="The activation of the concept is a cause of the uncertainty.",
        place="Liu et al. (2025), section 5, whose regression shows no cause",
        judgements=(
            Judgement(
                "controlled",
                "uncertainty falls from a dose against the concept to one of it, beyond random",
                swing("uncertainty"),
                below(-2 * UNCERTAINTY_THAT_COUNTS),
                primary=True,
            ),
            Judgement(
                "controlled",
                "a dose of it alone lowers the uncertainty",
                steered(base, "pattern", "uncertainty", PLUS),
                below(-UNCERTAINTY_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                "accuracy rises from a dose against it to one of it, beyond random",
                swing("accuracy"),
                above(2 * ACCURACY_THAT_COUNTS),
            ),
        ),
        figure={},
    )
