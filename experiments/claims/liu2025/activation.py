"""The activation of the concept rises and stays."""

from experiments.claim import Arm, Claim, Effect, Judgement, Scale, above
from experiments.dialogue import (
    ACTIVATION_THAT_COUNTS,
    LAST,
    PLANS,
    explained,
    inside,
    reading,
)

ONCE_AT = 1  # the round whose instruction is careful under the plan `once`
COSINE_THAT_COUNTS = 0.05
EXPLAINED_THAT_COUNTS = 0.05
LABELS = {"reading": "what the probe reads (log-odds)", "cosine": "cosine with the probe"}


def claim(scale: Scale) -> Claim:
    """What a held-out probe of the last layer reads, and the published cosine. States are read at
    the instruction, and whoever sees that one alone reads it too: so the probe has to tell an
    earlier one, at one that is neutral.
    """
    base = Arm()

    def read(quantity: str, plan: str = "careful", at: int = LAST) -> Effect:
        instructed, none = (
            inside(base, "read", quantity, name, at=at, label=LABELS[quantity])
            for name in (plan, "none")
        )
        return instructed - none

    return Claim(
        sentence="Careful instructions activate the concept, and it stays activated.",
        place="Liu et al. (2025), section 5",
        judgements=(
            Judgement(
                "controlled",
                "a round after a careful instruction, at a neutral one, the probe still reads more",
                read("reading", "once", ONCE_AT + 1),
                above(ACTIVATION_THAT_COUNTS),
                primary=True,
            ),
            Judgement(
                "controlled",
                "told to be careful again and again it reads more in the last round",
                read("reading"),
                above(ACTIVATION_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                f"from round {LAST - 2} to {LAST} that does not fall",
                read("reading") - read("reading", at=LAST - 2),
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
        ),
        figure={},
        course={
            f"{plan}, log-odds that explain the answers best{words}": reading(
                base, "activation", plan, reader=reader
            )
            for words, reader in (("", "language_model"), (", exact reader", "exact"))
            for plan in PLANS
        },
    )
