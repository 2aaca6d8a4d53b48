"""The MLP is needed."""

from experiments.alignment import (
    ERROR_THAT_COUNTS,
    REGRET_THAT_COUNTS,
    AlignmentScale,
    refinement_error,
    regret,
)
from experiments.claim import Arm, Claim, Judgement, above


def claim(scale: AlignmentScale) -> Claim:
    """Without the MLP a block has a third of its parameters; a wider one has them all."""
    full, without = Arm(), Arm(("+ablation=no_mlp",))
    wide = Arm(("+ablation=no_mlp", f"model.width={scale.width_without_mlp}"))
    published = Arm(("+ablation=paper_no_mlp",), tuned=False)
    return Claim(
        sentence="Removing the MLP hurts.",
        place="Wang et al. (2024), Theorem 3.3 and synthetic study, (f)",
        judgements=(
            Judgement(
                "published",
                "the published variant without MLP has a larger error",
                refinement_error(published) - refinement_error(full),
                above(ERROR_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                "without MLP it ranks worse",
                regret(without) - regret(full),
                above(REGRET_THAT_COUNTS),
                primary=True,
            ),
            Judgement(
                "controlled",
                "also with as many parameters",
                regret(wide) - regret(full),
                above(REGRET_THAT_COUNTS),
            ),
        ),
        figure={
            "with MLP": regret(full),
            "without": regret(without),
            "without, as many parameters": regret(wide),
        },
        moved_by=scale.recipes(),
    )
