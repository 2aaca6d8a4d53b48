"""Performance rises, and then stays."""

from experiments.claim import Arm, Claim, Effect, Judgement, Scale, above, within
from experiments.dialogue import ACCURACY_THAT_COUNTS, LAST, beyond_none, reading


def claim(scale: Scale) -> Claim:
    """A curve that converges has risen, by more at first, and no longer changes in its last rounds.
    Only networks that follow instructions at all are judged, so to stay is what stands for it.
    """
    base = Arm()

    def published(at: int) -> Effect:
        return reading(base, "accuracy", at=at)

    def controlled(at: int) -> Effect:
        return beyond_none(base, "accuracy", at=at)

    def slows(at) -> Effect:
        return at(2) - at(0) - at(LAST) + at(LAST - 2)

    figure = {
        "careful": reading(base, "accuracy"),
        "none": reading(base, "accuracy", "none"),
        "careful, exact reader": reading(base, "accuracy", reader="exact"),
    }
    ignoring = reading(base, "accuracy", reader="exact_own_answers_ignored")
    return Claim(
        sentence="Told to be careful round by round, a model improves and then stays.",
        place="Liu et al. (2025), abstract and section 3",
        judgements=(
            Judgement(
                "published",
                "the accuracy of the last round is above that of the first answer",
                published(LAST) - published(0),
                above(ACCURACY_THAT_COUNTS),
            ),
            Judgement(
                "published",
                "the first two corrections bring more than the last two",
                slows(published),
                above(ACCURACY_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                "it rises by more than under neutral instructions",
                controlled(LAST),
                above(ACCURACY_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                "and of that the first two corrections bring more than the last two",
                slows(controlled),
                above(ACCURACY_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                f"which from round {LAST - 2} to {LAST} change nothing",
                controlled(LAST) - controlled(LAST - 2),
                within(ACCURACY_THAT_COUNTS),
                primary=True,
            ),
        ),
        figure=figure,
        course={
            **figure,
            "careful, exact reader that ignores its own answers": ignoring,
            "careful less none": beyond_none(base, "accuracy"),
        },
    )
