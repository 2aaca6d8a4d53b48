"""First answers are over-confident, and asking for uncertainty helps."""

from experiments.claim import Arm, Claim, Judgement, Scale, above
from experiments.dialogue import (
    ACCURACY_THAT_COUNTS,
    reading,
)


def claim(scale: Scale) -> Claim:
    """Trained on speakers whose first answers are surer than they are right."""
    sure = Arm(("task.first_answer_temperature=0.5",), tuned=False)
    base = Arm(tuned=False)
    first = {"plan": "none", "at": 0}
    helps = reading(sure, "accuracy", "keep_if_sure") - reading(sure, "accuracy")
    return Claim(
        sentence="First answers are over-confident, and the prompt that keeps sure answers helps.",
        place="Liu et al. (2025), summary of its page",
        judgements=(
            Judgement(
                "controlled",
                "the first answer is surer than it is right",
                reading(sure, "confidence", **first) - reading(sure, "accuracy", **first),
                above(ACCURACY_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                "keeping answers that are sure raises the last accuracy",
                helps,
                above(ACCURACY_THAT_COUNTS),
                primary=True,
            ),
            Judgement(
                "controlled",
                "more than where first answers are not over-confident",
                helps - (reading(base, "accuracy", "keep_if_sure") - reading(base, "accuracy")),
                above(ACCURACY_THAT_COUNTS),
            ),
        ),
        figure={
            "careful": reading(sure, "accuracy"),
            "keep if sure": reading(sure, "accuracy", "keep_if_sure"),
        },
    )
