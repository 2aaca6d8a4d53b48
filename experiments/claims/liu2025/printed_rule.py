"""The printed rule describes the posterior."""

from experiments.claim import Arm, Claim, Judgement, Scale, within
from experiments.dialogue import (
    ACCURACY_THAT_COUNTS,
    ACTIVATION_THAT_COUNTS,
    reading,
)


def claim(scale: Scale) -> Claim:
    """Products of probabilities beside Bayes' rule, under careful instructions."""
    base = Arm()
    printed, additive, exact = (
        reading(base, "activation", reader=name) for name in ("printed_rule", "additive", "exact")
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
                "those of a weighted sum of the evidence are",
                additive - exact,
                within(ACTIVATION_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                "whoever speaks by the rule is as accurate as the exact reader",
                reading(base, "accuracy", reader="printed_rule")
                - reading(base, "accuracy", reader="exact"),
                within(ACCURACY_THAT_COUNTS),
            ),
        ),
        figure={"printed rule": printed, "weighted sum": additive, "exact": exact},
    )
