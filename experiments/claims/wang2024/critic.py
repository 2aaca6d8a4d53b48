"""The gain of self-correction grows with the accuracy of the critic."""

from experiments.claim import Arm, Claim, Effect, Judgement, above
from experiments.dialogue import ACCURACY_THAT_COUNTS, DialogueScale, reading

SELF = ("evaluation.critic=self",)


def given(accuracy: float) -> tuple[str, ...]:
    """An evaluation whose checks come from a critic of that accuracy."""
    return (f"task.critic_accuracy=[{accuracy}]",)


def claim(scale: DialogueScale) -> Claim:
    """One network under checks of two critics; and two networks that check themselves, one trained
    where checks are nearly always right, one where they seldom say much.
    """
    base = Arm()
    able, poor = (
        Arm((f"task.critic_accuracy=[{accuracy}]",), tuned=False) for accuracy in (0.95, 0.6)
    )

    def gain(arm: Arm, plan: str, under: tuple[str, ...]) -> Effect:
        return reading(arm, "gain", plan, under=under)

    return Claim(
        sentence="The more accurate the checks, the more a model gains by correcting itself.",
        place="Wang et al. (2024), section 5",
        judgements=(
            Judgement(
                "controlled",
                "a network that checks itself gains more if it was trained on accurate checks",
                gain(able, "careful", SELF) - gain(poor, "careful", SELF),
                above(ACCURACY_THAT_COUNTS),
                primary=True,
            ),
            Judgement(
                "controlled",
                "one network gains more under the accurate of two critics",
                gain(base, "careful", given(0.95)) - gain(base, "careful", given(0.6)),
                above(ACCURACY_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                "also under neutral instructions, beside a critic that guesses",
                gain(base, "none", ()) - gain(base, "none", given(0.5)),
                above(ACCURACY_THAT_COUNTS),
            ),
        ),
        figure={
            "own checks, trained with 0.95": gain(able, "careful", SELF),
            "own checks, trained with 0.6": gain(poor, "careful", SELF),
        },
    )
