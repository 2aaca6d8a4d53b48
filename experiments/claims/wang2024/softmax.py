"""Softmax attention is needed; linear attention is worse."""

from experiments.alignment import (
    ERROR_THAT_COUNTS,
    REGRET_THAT_COUNTS,
    AlignmentScale,
    refinement_error,
    regret,
)
from experiments.claim import Arm, Claim, Judgement, above


def claim(scale: AlignmentScale) -> Claim:
    """Both attentions have the same parameters, so no matched variant is needed."""
    softmax, linear = Arm(), Arm(("+ablation=linear_attn",))
    published = Arm(("+ablation=paper_linear_attn",), tuned=False)
    return Claim(
        sentence="Softmax attention beats linear attention.",
        place="Wang et al. (2024), Theorem 3.3 and synthetic study, (d)",
        judgements=(
            Judgement(
                "published",
                "the published linear variant has a larger error",
                refinement_error(published) - refinement_error(softmax),
                above(ERROR_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                "linear attention ranks worse",
                regret(linear) - regret(softmax),
                above(REGRET_THAT_COUNTS),
                primary=True,
            ),
            Judgement(
                "controlled",
                "linear attention has a larger error when half of the rewards are noise",
                refinement_error(linear, reward_noise=0.5)
                - refinement_error(softmax, reward_noise=0.5),
                above(ERROR_THAT_COUNTS),
            ),
        ),
        figure={
            "softmax": regret(softmax),
            "linear": regret(linear),
        },
        moved_by=scale.recipes(),
    )
