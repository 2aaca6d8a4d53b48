"""The concept drives uncertainty: the published regression."""

from experiments.claim import Arm, Claim, Effect, Judgement, Scale, above
from experiments.dialogue import inside

SHARE_THAT_COUNTS = 0.05


def claim(scale: Scale) -> Claim:
    """The change of the cosine predicts, held out, whether uncertainty did not rise."""
    base = Arm()

    def right(name: str, reader: str = "language_model") -> Effect:
        return inside(base, "prediction", reader, name, label="share of rounds")

    return Claim(
        sentence="The change of the concept predicts whether uncertainty rises.",
        place="Liu et al. (2025), section 5: 83.18%",
        judgements=(
            Judgement(
                "published",
                "it is right in more than 0.78 of the rounds",
                right("concept"),
                above(0.78, SHARE_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                "and more often than always saying that it does not",
                right("concept") - right("commonest"),
                above(SHARE_THAT_COUNTS),
                primary=True,
            ),
            Judgement(
                "controlled",
                "with the number of the round it is right more often than that alone",
                right("both") - right("round"),
                above(SHARE_THAT_COUNTS),
            ),
            Judgement(
                "controlled",
                "for the exact reader the concept is right more often than always saying so",
                right("concept", "exact") - right("commonest", "exact"),
                above(SHARE_THAT_COUNTS),
                of_untrained=True,
            ),
        ),
        figure={},
    )
