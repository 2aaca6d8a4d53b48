"""Controls that must come out negative: rewards removed, rewards shuffled."""

from experiments.alignment import AlignmentScale, agreement, regret
from experiments.claim import Arm, Claim, Judgement, above

# How much closer to gradient descent, in cosine, the answer is that does see the rewards.
APART = 0.5


def claim(scale: AlignmentScale) -> Claim:
    """What "tracks gradient descent" asks for must fail where the rewards say nothing."""
    full, removed = Arm(tuned=False), Arm(("+ablation=no_reward",), tuned=False)
    steps = f"train.steps={scale.steps_to_rank}"
    briefly = Arm((steps,), tuned=False)
    shuffled = Arm(("+ablation=shuffled_reward", steps), tuned=False)
    return Claim(
        sentence="A transformer that is shown no rewards, or shuffled ones, ranks nothing.",
        place="ours: negative controls",
        judgements=(
            Judgement(
                "controlled",
                "with rewards its answer is closer to gradient descent's than with none",
                agreement(full) - agreement(removed),
                above(APART),
                primary=True,
            ),
            Judgement(
                "controlled",
                f"and, after {scale.steps_to_rank} steps, closer than with shuffled rewards",
                agreement(briefly) - agreement(shuffled),
                above(APART),
            ),
        ),
        figure={
            "rewards shown": regret(full),
            "rewards removed": regret(removed),
            f"rewards shown, {scale.steps_to_rank} steps": regret(briefly),
            f"rewards shuffled, {scale.steps_to_rank} steps": regret(shuffled),
        },
    )
