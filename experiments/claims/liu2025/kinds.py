"""Answers to questions settle before texts do."""

from experiments.claim import Arm, Claim, Effect, Judgement, Scale, above, within
from experiments.dialogue import ACCURACY_THAT_COUNTS, beyond_none, reading

QUESTIONS = ("jailbreak_verdict", "visual_question")
TEXTS = ("detoxification", "commonsense_generation")
COURSES = {
    "careful": ("careful", "language_model"),
    "none": ("none", "language_model"),
    "careful, exact reader": ("careful", "exact"),
    "careful, exact reader that ignores its own answers": ("careful", "exact_own_answers_ignored"),
}


def after_first(arm: Arm) -> Effect:
    """What careful instructions bring beyond neutral ones after the first correction."""
    return beyond_none(arm, "accuracy") - beyond_none(arm, "accuracy", at=1)


def claim(scale: Scale) -> Claim:
    """Two kinds of questions, and two of texts: one is a chain, one has to cover given words. In
    this world evidence adds up in every kind, so an exact reader's answers to questions gain later
    too; what stands for the claim is that texts gain more then.
    """
    arms = {kind: Arm((f"task={kind}",), tuned=False) for kind in (*QUESTIONS, *TEXTS)}
    settled = [
        Judgement(
            "controlled",
            f"after the first correction an answer of {kind} no longer changes",
            after_first(arms[kind]),
            within(ACCURACY_THAT_COUNTS),
        )
        for kind in QUESTIONS
    ]
    later = [
        Judgement(
            "controlled",
            f"a text of {kind} gains",
            after_first(arms[kind]),
            above(ACCURACY_THAT_COUNTS),
        )
        for kind in TEXTS
    ]
    first, second = (after_first(arms[kind]) for kind in TEXTS)
    one, other = (after_first(arms[kind]) for kind in QUESTIONS)
    more = Judgement(
        "controlled",
        "after it the two kinds of texts together gain more than the two of questions",
        first + second - one - other,
        above(2 * ACCURACY_THAT_COUNTS),
        primary=True,
    )
    return Claim(
        sentence="Question answering converges after the first correction, generation later.",
        place="Liu et al. (2025), section 3",
        judgements=(*settled, *later, more),
        figure={kind: beyond_none(arm, "accuracy") for kind, arm in arms.items()},
        course={
            f"{kind}, {label}": reading(arm, "accuracy", plan, reader=reader)
            for kind, arm in arms.items()
            for label, (plan, reader) in COURSES.items()
        },
    )
