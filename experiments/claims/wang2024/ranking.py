"""Ranking or regression: a monotone transform of the rewards moves no ranker."""

from experiments.alignment import REGRET_THAT_COUNTS, AlignmentScale, regret
from experiments.claim import Arm, Claim, Judgement, within

CUBED = ("task.reward_transform=power",)


def claim(scale: AlignmentScale) -> Claim:
    """Rewards are cubed at evaluation only; neither the ranking nor the loss's minimum changes."""
    softmax, linear = Arm(), Arm(("+ablation=linear_attn",))
    return Claim(
        sentence="The transformer ranks the rewards; it does not regress on their values.",
        place="ours, from the losses of Wang et al. (2024)",
        judgements=(
            Judgement(
                "controlled",
                "cubing the rewards does not change the regret of softmax attention",
                regret(softmax, under=CUBED) - regret(softmax),
                within(REGRET_THAT_COUNTS),
                primary=True,
            ),
            Judgement(
                "controlled",
                "nor that of linear attention",
                regret(linear, under=CUBED) - regret(linear),
                within(REGRET_THAT_COUNTS),
            ),
        ),
        figure={
            "softmax": regret(softmax),
            "softmax, rewards cubed": regret(softmax, under=CUBED),
            "linear": regret(linear),
            "linear, rewards cubed": regret(linear, under=CUBED),
        },
    )
