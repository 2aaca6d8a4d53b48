"""Controls that must come out negative: rewards removed, rewards shuffled."""

from experiments.claim import Arm, Claim, Judgement, Scale, agreement, below, regret

# The cosine below which two learners do different things.
APART = 0.2


def claim(scale: Scale) -> Claim:
    """What "tracks gradient descent" asks for must fail where the rewards say nothing."""
    full = Arm()
    removed = Arm(("+ablation=no_reward",), tuned=False)
    shuffled = Arm(("+ablation=shuffled_reward",), tuned=False)
    return Claim(
        sentence="A transformer that is shown no rewards, or shuffled ones, ranks nothing.",
        place="ours: negative controls",
        judgements=(
            Judgement(
                "controlled",
                "without rewards its answer is not gradient descent's",
                agreement(removed),
                below(APART),
            ),
            Judgement(
                "controlled",
                "with shuffled rewards neither",
                agreement(shuffled),
                below(APART),
            ),
        ),
        figure={
            "rewards shown": regret(full),
            "rewards removed": regret(removed),
            "rewards shuffled": regret(shuffled),
        },
    )
