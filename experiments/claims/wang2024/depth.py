"""Depth helps, then saturates."""

from experiments.alignment import (
    ERROR_THAT_COUNTS,
    REGRET_THAT_COUNTS,
    AlignmentScale,
    refinement_error,
    regret,
)
from experiments.claim import Arm, Claim, Judgement, above, within


def claim(scale: AlignmentScale) -> Claim:
    """From the shallowest to the deepest of the scale; one wide block has as many parameters."""
    least, many, most = [Arm((f"model.num_layers={n}",)) for n in scale.depths]
    few, base, deep = ["1 block" if n == 1 else f"{n} blocks" for n in scale.depths]
    width = (f"model.width={scale.width_of_one_block}", "model.mlp_width=null")
    wide = Arm(("+ablation=shallow", *width))
    return Claim(
        sentence="Depth helps, then saturates.",
        place="Wang et al. (2024), synthetic study, (c)",
        judgements=(
            Judgement(
                "published",
                f"with {few} the error is larger than with {base}",
                refinement_error(least) - refinement_error(many),
                above(ERROR_THAT_COUNTS),
            ),
            Judgement(
                "published",
                f"with {deep} the error is that of {base}",
                refinement_error(many) - refinement_error(most),
                within(ERROR_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                f"with {few} it ranks worse than with {base}",
                regret(least) - regret(many),
                above(REGRET_THAT_COUNTS),
                primary=True,
            ),
            Judgement(
                "controlled",
                "so does one wide block of the base's parameters, beside the base",
                regret(wide) - regret(many),
                above(REGRET_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                f"with {deep} it ranks as with {base}",
                regret(many) - regret(most),
                within(REGRET_THAT_COUNTS),
            ),
        ),
        figure={
            few: regret(least),
            base: regret(many),
            deep: regret(most),
            "1 wide block": regret(wide),
        },
        moved_by=scale.recipes(),
    )
