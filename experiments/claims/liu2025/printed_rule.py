"""The printed rule describes the posterior."""

from experiments.claim import Arm, Claim, Judgement, Scale, within
from experiments.dialogue import ACCURACY_THAT_COUNTS, ACTIVATION_THAT_COUNTS, reading


def claim(scale: Scale) -> Claim:
    """Products of probabilities beside Bayes' rule, on the same dialogues of the speakers and on
    the rule's own under careful instructions. Arithmetic, which no training changes.
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
                of_untrained=True,
            ),
            Judgement(
                "controlled",
                "whoever speaks by the rule is as accurate as the exact reader",
                reading(base, "accuracy", reader="printed_rule")
                - reading(base, "accuracy", reader="exact"),
                within(ACCURACY_THAT_COUNTS),
                of_untrained=True,
            ),
        ),
        figure={"printed rule": printed, "exact": exact},
    )
