"""Beyond the training length."""

from experiments.claim import AGREEMENT_THAT_COUNTS, Arm, Claim, Judgement, Scale, above, agreement

TRAINED_ON = 10


def claim(scale: Scale) -> Claim:
    """Trained on answers after at most 10 attempts, judged after 15."""
    steps = f"train.steps={scale.steps_to_rank}"
    short = (f"loss.max_attempts={TRAINED_ON}", steps)
    positions = Arm(short, tuned=False)
    without = Arm((*short, "+ablation=no_positions"), tuned=False)
    return Claim(
        sentence="What is learned from few attempts holds for more.",
        place="ours",
        judgements=(
            Judgement(
                "controlled",
                "with learned positions it tracks gradient descent at half more attempts",
                agreement(positions),
                above(AGREEMENT_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                "without positions too",
                agreement(without),
                above(AGREEMENT_THAT_COUNTS),
            ),
        ),
        figure={
            "trained on all": agreement(Arm(("model.tokens=triplet", steps), tuned=False)),
            "on at most 10, learned positions": agreement(positions),
            "on at most 10, no positions": agreement(without),
        },
    )
