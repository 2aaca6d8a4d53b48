"""An immoral instruction lasts one round."""

from experiments.claim import Arm, Claim, Judgement, Scale, below, within
from experiments.dialogue import (
    ACTIVATION_THAT_COUNTS,
    inside,
)
from icl_align.dialogue.concept.study import HAZARDS
from icl_align.dialogue.options import Options

LABEL = "change of the concept's log-odds"


def claim(scale: Scale) -> Claim:
    """What the probe reads, less what it reads without the careless instruction of round 2. An
    exact reader forgets as fast as concepts are drawn anew: in one round only with a hazard of 1.
    Who reads the last instruction alone forgets at once.
    """
    base = Arm()
    at_once, later = (
        inside(base, "immoral", "language_model", "reading", at=n, label=LABEL) for n in (0, 1)
    )
    hazard = HAZARDS.index(Options().task.hazard)
    by_bayes = inside(base, "immoral", "exact", at=(hazard, 1), label=LABEL)
    return Claim(
        sentence="An immoral instruction changes the concept at once, and for one round only.",
        place="Liu et al. (2025), section 5",
        judgements=(
            Judgement(
                "controlled",
                "the concept falls in that round",
                at_once,
                below(-ACTIVATION_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                "a round later nothing is left of it",
                later,
                within(ACTIVATION_THAT_COUNTS),
                primary=True,
            ),
            Judgement(
                "controlled",
                "nor in the exact reader",
                by_bayes,
                within(ACTIVATION_THAT_COUNTS),
                of_untrained=True,
            ),
        ),
        figure={},
    )
