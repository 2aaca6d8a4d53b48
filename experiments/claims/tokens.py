"""Token layout: one token an attempt, or three as published."""

from experiments.claim import REGRET_THAT_COUNTS, Arm, Claim, Judgement, Scale, above, regret


def claim(scale: Scale) -> Claim:
    """Compared after the same steps, each of which costs three times as much with three tokens."""
    triplet = Arm(("model.tokens=triplet",), tuned=False)
    interleaved = Arm(("model.tokens=interleaved",), tuned=False)
    return Claim(
        sentence="One token an attempt learns to rank sooner than three.",
        place="ours; the layout of Wang et al. (2024) has three",
        judgements=(
            Judgement(
                "published",
                "after the same steps three tokens rank worse",
                regret(interleaved) - regret(triplet),
                above(REGRET_THAT_COUNTS),
            ),
        ),
        figure={"one token": regret(triplet), "three tokens": regret(interleaved)},
    )
