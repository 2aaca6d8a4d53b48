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
    """A dose along the direction in which states move with the log-odds, beside random ones."""
    base = Arm()

    def beyond_random(quantity, dose):
        return steered(base, "pattern", quantity, dose) - steered(base, "random", quantity, dose)

    return Claim(
        sentence="The activation of the concept is a cause of the uncertainty.",
        place="Liu et al. (2025), section 5, whose regression shows no cause",
        judgements=(
            Judgement(
                "controlled",
                "a dose of the concept lowers the uncertainty more than a random one",
                beyond_random("uncertainty", PLUS),
                below(-UNCERTAINTY_THAT_COUNTS),
                primary=True,
            ),
            Judgement(
                "controlled",
                "a dose against it raises it more",
                beyond_random("uncertainty", MINUS),
                above(UNCERTAINTY_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                "a dose of the concept raises the accuracy more",
                beyond_random("accuracy", PLUS),
                above(ACCURACY_THAT_COUNTS),
            ),
        ),
        figure={},
    )
