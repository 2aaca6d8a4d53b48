"""The activation of the concept rises and stays."""

from experiments.claim import Arm, Claim, Judgement, Scale, above
from experiments.dialogue import (
    ACTIVATION_THAT_COUNTS,
    LAST,
    beyond_none,
    reading,
)


def claim(scale: Scale) -> Claim:
    """Log-odds of the careful concept, those that explain the network's answers best."""
    base = Arm()
    return Claim(
        sentence="Careful instructions activate the concept, and it stays activated.",
        place="Liu et al. (2025), section 5",
        judgements=(
            Judgement(
                "controlled",
                "in the last round it is above that under neutral instructions",
                beyond_none(base, "activation"),
                above(ACTIVATION_THAT_COUNTS),
                primary=True,
            ),
            Judgement(
                "controlled",
                f"from round {LAST - 2} to {LAST} it does not fall",
                reading(base, "activation") - reading(base, "activation", at=LAST - 2),
                above(-ACTIVATION_THAT_COUNTS),
            ),
        ),
        figure={
            "careful": reading(base, "activation"),
            "none": reading(base, "activation", "none"),
            "careful, exact reader": reading(base, "activation", reader="exact"),
        },
    )
