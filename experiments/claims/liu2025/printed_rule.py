"""The printed rule describes the posterior."""

from experiments.claim import Arm, Claim, Judgement, Scale, above, within
from experiments.dialogue import (
    ACCURACY_THAT_COUNTS,
    ACTIVATION_THAT_COUNTS,
    inside,
    reading,
)

EXPLAINED = 0.9


def claim(scale: Scale) -> Claim:
    """Products of probabilities beside Bayes' rule, on the same dialogues of the speakers and on
    the rule's own under careful instructions.
    """
    base = Arm()
    printed, exact = (
        reading(base, "activation", "speakers", reader=name) for name in ("printed_rule", "exact")
    )
    return Claim(
        sentence="The printed rule describes how belief in the concept builds up.",
        place="Liu et al. (2025), the formula of p(C|q_k)",
        judgements=(
            Judgement(
                "controlled",
                "in the last round its log-odds are those of the exact reader",
                printed - exact,
                within(ACTIVATION_THAT_COUNTS),
                primary=True,
            ),
            Judgement(
                "controlled",
                "of the exact reader's later log-odds a weighted sum of the evidence explains most",
                inside(base, "laws", "additive", "exact", "careful", "explained", label="$R^2$"),
                above(EXPLAINED, 0.1),
            ),
            Judgement(
                "controlled",
                "whoever speaks by the rule is as accurate as the exact reader",
                reading(base, "accuracy", reader="printed_rule")
                - reading(base, "accuracy", reader="exact"),
                within(ACCURACY_THAT_COUNTS),
            ),
        ),
        figure={"printed rule": printed, "exact": exact},
    )
