"""Answers to questions settle before texts do."""

from experiments.claim import Arm, Claim, Effect, Judgement, Scale, above, below
from experiments.dialogue import ACCURACY_THAT_COUNTS, beyond_none

QUESTIONS = ("jailbreak_verdict", "visual_question")
TEXTS = ("detoxification", "commonsense_generation")


def after_first(arm: Arm) -> Effect:
    """What careful instructions bring beyond neutral ones after the first correction."""
    return beyond_none(arm, "accuracy") - beyond_none(arm, "accuracy", at=1)


def claim(scale: Scale) -> Claim:
    """Two kinds of questions, and two of texts: one is a chain, one has to cover given words."""
    arms = {kind: Arm((f"task={kind}",), tuned=False) for kind in (*QUESTIONS, *TEXTS)}
    settled = [
        Judgement(
            "controlled",
            f"after the first correction an answer of {kind} gains no more",
            after_first(arms[kind]),
            below(ACCURACY_THAT_COUNTS),
            primary=kind == QUESTIONS[0],
        )
        for kind in QUESTIONS
    ]
    later = [
        Judgement(
            "controlled",
            f"a text of {kind} does",
            after_first(arms[kind]),
            above(ACCURACY_THAT_COUNTS),
        )
        for kind in TEXTS
    ]
    return Claim(
        sentence="Question answering converges after the first correction, generation later.",
        place="Liu et al. (2025), section 3",
        judgements=(*settled, *later),
        figure={kind: beyond_none(arm, "accuracy") for kind, arm in arms.items()},
    )
