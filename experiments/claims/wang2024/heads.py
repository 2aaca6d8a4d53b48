"""Several heads are needed."""

from experiments.alignment import (
    ERROR_THAT_COUNTS,
    REGRET_THAT_COUNTS,
    AlignmentScale,
    refinement_error,
    regret,
)
from experiments.claim import Arm, Claim, Judgement, above, within


def claim(scale: AlignmentScale) -> Claim:
    """The heads share the width, so every arm has the same parameters."""
    one, enough, most = [Arm((f"model.num_heads={heads}",)) for heads in scale.heads]
    return Claim(
        sentence="One head is worst, and a few are enough.",
        place="Wang et al. (2024), Theorem 3.3 and synthetic study, (e)",
        judgements=(
            Judgement(
                "published",
                f"one head has a larger error than {scale.heads[-1]}",
                refinement_error(one) - refinement_error(most),
                above(ERROR_THAT_COUNTS),
            ),
            Judgement(
                "published",
                f"{scale.heads[1]} heads have the error of {scale.heads[-1]}",
                refinement_error(enough) - refinement_error(most),
                within(ERROR_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                f"one head ranks worse than {scale.heads[-1]}",
                regret(one) - regret(most),
                above(REGRET_THAT_COUNTS),
                primary=True,
            ),
            Judgement(
                "controlled",
                f"{scale.heads[1]} heads rank as {scale.heads[-1]} do",
                regret(enough) - regret(most),
                within(REGRET_THAT_COUNTS),
            ),
        ),
        figure={
            "1 head": regret(one),
            f"{scale.heads[1]} heads": regret(enough),
            f"{scale.heads[-1]} heads": regret(most),
        },
        moved_by=scale.recipes(),
    )
