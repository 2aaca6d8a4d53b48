"""The second data process: every response with a corruption of its own."""

from experiments.alignment import (
    AGREEMENT_RESOLUTION,
    AGREEMENT_THAT_COUNTS,
    ERROR_THAT_COUNTS,
    REGRET_THAT_COUNTS,
    AlignmentScale,
    agreement,
    refinement_error,
    regret,
)
from experiments.claim import Arm, Claim, Judgement, above

INDEPENDENT = "task=independent_corruption"


def claim(scale: AlignmentScale) -> Claim:
    """Responses no longer lie on a line in the reward, so no regression on a line can help."""
    softmax = Arm((INDEPENDENT,))
    linear = Arm((INDEPENDENT, "+ablation=linear_attn"))
    return Claim(
        sentence="Where responses do not lie on a line, softmax attention tracks gradient descent "
        "and beats linear attention.",
        place="ours, claims (a) and (d) of Wang et al. (2024) on another data process",
        judgements=(
            Judgement(
                "controlled",
                "softmax attention gives gradient descent's answer",
                agreement(softmax),
                above(AGREEMENT_THAT_COUNTS, AGREEMENT_RESOLUTION),
            ),
            Judgement(
                "controlled",
                "linear attention has a larger error",
                refinement_error(linear) - refinement_error(softmax),
                above(ERROR_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                "linear attention ranks worse",
                regret(linear) - regret(softmax),
                above(REGRET_THAT_COUNTS),
                primary=True,
            ),
        ),
        figure={
            "softmax": regret(softmax),
            "linear": regret(linear),
            "gradient descent": regret(softmax, learner="gradient_descent"),
            "best attempt": regret(softmax, learner="best_attempt"),
        },
        moved_by=scale.recipes(),
    )
