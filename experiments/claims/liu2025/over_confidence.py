"""First answers are over-confident, and a rule that keeps those that are sure helps."""

from experiments.claim import Arm, Claim, Effect, Judgement, Scale, above
from experiments.dialogue import ACCURACY_THAT_COUNTS, reading

FIRST = {"plan": "none", "at": 0}


def over_confidence(arm: Arm) -> Effect:
    """How much surer the first answer is than right."""
    return reading(arm, "confidence", **FIRST) - reading(arm, "accuracy", **FIRST)


def helps(arm: Arm, reader: str = "language_model") -> Effect:
    """What a rule that keeps sure answers adds to careful instructions, in the last round."""
    return reading(arm, "accuracy", "keep_if_sure", reader=reader) - reading(
        arm, "accuracy", reader=reader
    )


def claim(scale: Scale) -> Claim:
    """Where the speakers' first answers are sharpened, and where views are noisy. There the
    speakers themselves are over-confident, and so is by construction who learned from them: what is
    open is whether the rule helps. Where views are noisy it does not help an exact reader.
    """
    noisy = Arm(("task=visual_question",), tuned=False)
    sharpened = Arm(("task.first_answer_temperature=0.5",), tuned=False)
    return Claim(
        sentence="First answers are over-confident, and keeping those that are sure helps.",
        place="Liu et al. (2025), summary of its page",
        judgements=(
            Judgement(
                "controlled",
                "the first answer is surer than it is right where speakers sharpen it",
                over_confidence(sharpened),
                above(ACCURACY_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                "so it is where views are noisy",
                over_confidence(noisy),
                above(ACCURACY_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                "a rule that keeps sure answers raises the last accuracy after sharpened ones",
                helps(sharpened),
                above(ACCURACY_THAT_COUNTS),
                primary=True,
            ),
            Judgement(
                "controlled",
                "it does so where views are noisy",
                helps(noisy),
                above(ACCURACY_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                "after sharpened ones it does for the exact reader",
                helps(sharpened, "exact"),
                above(ACCURACY_THAT_COUNTS),
                of_untrained=True,
            ),
        ),
        figure={
            "sharpened, careful": reading(sharpened, "accuracy"),
            "sharpened, keep if sure": reading(sharpened, "accuracy", "keep_if_sure"),
            "noisy, careful": reading(noisy, "accuracy"),
            "noisy, keep if sure": reading(noisy, "accuracy", "keep_if_sure"),
        },
    )
