"""The activation of the concept rises and stays."""

from experiments.claim import Arm, Claim, Effect, Judgement, Scale, above
from experiments.dialogue import (
    ACTIVATION_THAT_COUNTS,
    LAST,
    beyond_none,
    explained,
    inside,
    reading,
)

COSINE_THAT_COUNTS = 0.05
EXPLAINED_THAT_COUNTS = 0.05
LABELS = {"reading": "what the probe reads (log-odds)", "cosine": "cosine with the probe"}


def claim(scale: Scale) -> Claim:
    """What a held-out probe of the last layer reads; the published cosine; and the log-odds that
    explain the answers best, which are drawn.
    """
    base = Arm()

    def read(quantity: str, at: int = LAST) -> Effect:
        careful, none = (
            inside(base, "read", quantity, plan, at=at, label=LABELS[quantity])
            for plan in ("careful", "none")
        )
        return careful - none

    return Claim(
        sentence="Careful instructions activate the concept, and it stays activated.",
        place="Liu et al. (2025), section 5",
        judgements=(
            Judgement(
                "controlled",
                "in the last round the probe reads more than under neutral instructions",
                read("reading"),
                above(ACTIVATION_THAT_COUNTS),
                primary=True,
            ),
            Judgement(
                "controlled",
                f"from round {LAST - 2} to {LAST} that does not fall",
                read("reading") - read("reading", LAST - 2),
                above(-ACTIVATION_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                "the cosine of the state with the probe is larger too",
                read("cosine"),
                above(COSINE_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                "the probe explains more than that of a network that is not trained",
                explained(base, "trained") - explained(base, "untrained"),
                above(EXPLAINED_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                "answers are more careful than under neutral instructions, in log-odds",
                beyond_none(base, "activation"),
                above(ACTIVATION_THAT_COUNTS),
            ),
        ),
        figure={
            "careful": reading(base, "activation"),
            "none": reading(base, "activation", "none"),
            "careful, exact reader": reading(base, "activation", reader="exact"),
        },
    )
