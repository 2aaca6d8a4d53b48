"""Performance rises, and then stays."""

from experiments.claim import Arm, Claim, Effect, Judgement, Scale, above, within
from experiments.dialogue import ACCURACY_THAT_COUNTS, LAST, beyond_none, reading


def claim(scale: Scale) -> Claim:
    """A curve that converges rises by more in its first two corrections than in its last two; one
    that is flat does not, nor one that climbs on.
    """
    base = Arm()

    def published(at: int) -> Effect:
        return reading(base, "accuracy", at=at)

    def controlled(at: int) -> Effect:
        return beyond_none(base, "accuracy", at=at)

    def slows(at) -> Effect:
        return at(2) - at(0) - at(LAST) + at(LAST - 2)

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
                primary=True,
            ),
            Judgement(
                "controlled",
                f"which from round {LAST - 2} to {LAST} bring nothing",
                controlled(LAST) - controlled(LAST - 2),
                within(ACCURACY_THAT_COUNTS),
            ),
        ),
        figure={
            "careful": reading(base, "accuracy"),
            "none": reading(base, "accuracy", "none"),
            "careful, exact reader": reading(base, "accuracy", reader="exact"),
        },
    )
