"""Outside the training distribution."""

from experiments.alignment import (
    AGREEMENT_RESOLUTION,
    AGREEMENT_THAT_COUNTS,
    AlignmentScale,
    agreement,
)
from experiments.claim import Arm, Claim, Judgement, above

INDEPENDENT = ("task=independent_corruption",)
UNIT_NORM = ("task.unit_norm_queries=true",)


def claim(scale: AlignmentScale) -> Claim:
    """Trained on shared corruption of Gaussian queries, evaluated on two other tasks."""
    full = Arm()
    return Claim(
        sentence="An algorithm learned in context works outside the training distribution.",
        place="ours",
        judgements=(
            Judgement(
                "controlled",
                "it still tracks gradient descent when every response is corrupted differently",
                agreement(full, under=INDEPENDENT),
                above(AGREEMENT_THAT_COUNTS, AGREEMENT_RESOLUTION),
                primary=True,
            ),
            Judgement(
                "controlled",
                "and when all queries have norm 1",
                agreement(full, under=UNIT_NORM),
                above(AGREEMENT_THAT_COUNTS, AGREEMENT_RESOLUTION),
            ),
        ),
        figure={
            "as trained": agreement(full),
            "independent corruption": agreement(full, under=INDEPENDENT),
            "queries of norm 1": agreement(full, under=UNIT_NORM),
        },
    )
