"""Token layout: one token an attempt, or three as published."""

from experiments.alignment import REGRET_THAT_COUNTS, AlignmentScale, regret
from experiments.claim import Arm, Claim, Judgement, above


def claim(scale: AlignmentScale) -> Claim:
    """Compared after the same steps, each of which costs three times as much with three tokens."""
    steps = f"train.steps={scale.steps_to_rank}"
    triplet = Arm(("model.tokens=triplet", steps), tuned=False)
    interleaved = Arm(("model.tokens=interleaved", steps), tuned=False)
    return Claim(
        sentence="One token an attempt learns to rank sooner than three.",
        place="ours; the layout of Wang et al. (2024) has three",
        judgements=(
            Judgement(
                "controlled",
                f"after the same {scale.steps_to_rank} steps three tokens rank worse",
                regret(interleaved) - regret(triplet),
                above(REGRET_THAT_COUNTS),
                primary=True,
            ),
        ),
        figure={"one token": regret(triplet), "three tokens": regret(interleaved)},
        moved_by=scale.recipes(scale.steps_to_rank),
    )
