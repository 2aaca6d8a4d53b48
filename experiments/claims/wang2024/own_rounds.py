"""Own rounds: a learner's answers become its attempts, and a critic rewards them."""

from experiments.alignment import ERROR_THAT_COUNTS, AlignmentScale, of_own_rounds
from experiments.claim import Arm, Claim, Effect, Judgement, above, below

ROUNDS = 17  # as many as the published length of training has positions for
# Of gain and accuracy over critics: a third of what varies in one goes with the other.
CORRELATION_THAT_COUNTS = 0.6
GAIN = "gain: fall of the refinement error"


def gain(arm: Arm, under: tuple[str, ...]) -> Effect:
    """Error of the first answer less that of the last."""
    return of_own_rounds(arm, "learners", "transformer", "gain", under=under, at=-1, label=GAIN)


def claim(scale: AlignmentScale) -> Claim:
    """Trained on given attempts, and on its own; a critic blind beside the line, and one that is
    not; the correlation over some 30 critics, and one of them that guesses.
    """
    share, direction = (
        (
            f"evaluation.own_rounds={ROUNDS}",
            f"own_rounds.critic={critic}",
            f"evaluation.num_contexts={scale.contexts_of_own_rounds}",
        )
        for critic in ("share", "direction")
    )
    given = Arm()
    length = f"train.steps={scale.steps_of_own_rounds}"
    longer = Arm((length,), tuned=False)
    on_own = ("train.own_rounds_share=0.5", "own_rounds.critic=direction")
    own = Arm((length, *on_own), tuned=False)
    guessed = of_own_rounds(own, "critics", "a guess", "gain", under=direction, label=GAIN)
    return Claim(
        sentence="Whoever judges its own answers accurately makes them better, round by round.",
        place="abstract and section 4 of Wang et al. (2024)",
        judgements=(
            Judgement(
                "controlled",
                f"{ROUNDS} own rounds lower the error, rewarded by the share of the target",
                gain(given, share),
                above(ERROR_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                "so they do when the critic ranks as the error does",
                gain(given, direction),
                above(ERROR_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                "and after training on own rounds",
                gain(own, direction),
                above(ERROR_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                "which does more than training as long on given attempts",
                gain(own, direction) - gain(longer, direction),
                above(ERROR_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                "then the gain goes with the accuracy of the critic: their correlation",
                of_own_rounds(own, "correlation", under=direction, label="correlation"),
                above(CORRELATION_THAT_COUNTS, 0.1),
            ),
            Judgement(
                "controlled",
                "and a critic that guesses brings none",
                guessed,
                below(ERROR_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                "so that an accurate critic brings more than one that guesses",
                gain(own, direction) - guessed,
                above(ERROR_THAT_COUNTS),
                primary=True,
            ),
        ),
        figure={},
    )
