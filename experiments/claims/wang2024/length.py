"""Beyond the training length."""

from experiments.alignment import AlignmentScale, agreement
from experiments.claim import Arm, Claim, Judgement, below

TRAINED_ON = 10
# The loss of cosine with gradient descent's answers that counts.
LOSS_THAT_COUNTS = 0.05


def claim(scale: AlignmentScale) -> Claim:
    """Trained on answers after at most 10 attempts, judged after 15 beside training on all."""
    steps = f"train.steps={scale.steps_to_rank}"
    short = (f"loss.max_attempts={TRAINED_ON}", steps)
    full = Arm((steps,), tuned=False)
    positions = Arm(short, tuned=False)
    without = Arm((*short, "+ablation=no_positions"), tuned=False)
    return Claim(
        sentence="What is learned from few attempts holds for more.",
        place="ours",
        judgements=(
            Judgement(
                "controlled",
                "with learned positions it loses little of its agreement with gradient descent",
                agreement(full) - agreement(positions),
                below(LOSS_THAT_COUNTS),
                primary=True,
            ),
            Judgement(
                "controlled",
                "without positions neither",
                agreement(full) - agreement(without),
                below(LOSS_THAT_COUNTS),
            ),
        ),
        figure={
            "trained on all": agreement(full),
            "on at most 10, learned positions": agreement(positions),
            "on at most 10, no positions": agreement(without),
        },
    )
