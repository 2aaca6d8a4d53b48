"""Answers to questions settle before texts do."""

from experiments.claim import Arm, Claim, Effect, Judgement, Scale, above
from experiments.dialogue import LAST, reading

ROUND = 2  # by then an answer to a question has made most of its way, as published
SHARE_THAT_COUNTS = 0.05


def late(arm: Arm) -> Effect:
    """What of the accuracy is gained after that round."""
    return reading(arm, "accuracy", at=LAST) - reading(arm, "accuracy", at=ROUND)


def claim(scale: Scale) -> Claim:
    """A question beside a text whose toxic symbols follow toxic ones."""
    question = Arm(("task=jailbreak_verdict",), tuned=False)
    text = Arm(("task=detoxification",), tuned=False)
    return Claim(
        sentence="Question answering converges after the first corrections, generation later.",
        place="Liu et al. (2025), section 3",
        judgements=(
            Judgement(
                "controlled",
                f"after round {ROUND} a text gains more than an answer to a question",
                late(text) - late(question),
                above(SHARE_THAT_COUNTS),
                primary=True,
            ),
        ),
        figure={
            "is it harmful?": reading(question, "accuracy"),
            "a text": reading(text, "accuracy"),
        },
    )
