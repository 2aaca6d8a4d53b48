"""Controls that must come out negative."""

from experiments.claim import Arm, Claim, Judgement, Scale, above, below, within
from experiments.dialogue import (
    ACCURACY_THAT_COUNTS,
    ACTIVATION_THAT_COUNTS,
    beyond_none,
    explained,
    reading,
)

CHECKED_AT_RANDOM = ("task.critic_accuracy=[0.5]",)


def claim(scale: Scale) -> Claim:
    """No instructions, checks that say nothing, a network that was not trained, shuffled labels."""
    base, alike = Arm(), Arm(tuned=False)
    untrained = Arm(("train.steps=1",), tuned=False)
    return Claim(
        sentence="Neutral instructions activate nothing; checks that guess, no training and labels "
        "of others bring nothing.",
        place="ours: negative controls of Liu et al. (2025)",
        judgements=(
            Judgement(
                "controlled",
                "neutral instructions do not activate the concept",
                reading(base, "activation", "none") - reading(base, "activation", "none", at=0),
                below(ACTIVATION_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                "with checks that guess, neutral rounds do not raise the accuracy",
                reading(base, "accuracy", "none", under=CHECKED_AT_RANDOM)
                - reading(base, "accuracy", "none", at=0, under=CHECKED_AT_RANDOM),
                below(ACCURACY_THAT_COUNTS),
                primary=True,
            ),
            Judgement(
                "controlled",
                "careful instructions do more for a network that is trained",
                beyond_none(alike, "accuracy") - beyond_none(untrained, "accuracy"),
                above(ACCURACY_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                "and nothing for one that is not",
                beyond_none(untrained, "accuracy"),
                within(ACCURACY_THAT_COUNTS),
                of_untrained=True,
            ),
            Judgement(
                "controlled",
                "a probe of other dialogues' log-odds explains nothing",
                explained(base, "shuffled"),
                below(0.05),
            ),
        ),
        figure={
            "checks by the critic": reading(base, "accuracy", "none"),
            "checks that guess": reading(base, "accuracy", "none", under=CHECKED_AT_RANDOM),
        },
    )
