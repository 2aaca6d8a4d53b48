"""Self-correction over rounds needs several heads."""

from experiments.claim import Arm, Claim, Judgement, Scale, above
from experiments.dialogue import (
    ACCURACY_THAT_COUNTS,
    RECIPES,
    beyond_none,
    reading,
)


def claim(scale: Scale) -> Claim:
    """What careful instructions bring, with and without the part; both at their best rates."""
    base, without = Arm(), Arm(("+ablation=single_head",))
    return Claim(
        sentence="Self-correction over rounds needs several heads.",
        place="Wang et al. (2024), Theorem 3.3, on the dialogues of Liu et al. (2025)",
        judgements=(
            Judgement(
                "controlled",
                "with one head careful instructions bring less accuracy",
                beyond_none(base, "accuracy") - beyond_none(without, "accuracy"),
                above(ACCURACY_THAT_COUNTS),
                primary=True,
            ),
            Judgement(
                "controlled",
                "and the last answer is less often right",
                reading(base, "accuracy") - reading(without, "accuracy"),
                above(ACCURACY_THAT_COUNTS),
            ),
        ),
        figure={
            "all parts": reading(base, "accuracy"),
            "one head": reading(without, "accuracy"),
        },
        moved_by=RECIPES,
    )
