"""What a claim is: arms to train, effects to read off them, and where each effect must lie.

    one, four = Arm("model.num_heads=1"), Arm()
    Judgement("controlled", "one head ranks worse", regret(one) - regret(four), above(0.04))

An effect is a sum of readings of trained runs, each one number a seed. Arms share their seeds, so a
difference is paired. Nothing here trains or reads a file.
"""

import dataclasses
import math
from typing import Literal

from icl_align.tracking import JUDGED_ATTEMPTS

# The smallest effects that count, fixed before the campaign's seeds were trained:
# a tenth of what the published transformer gains from 3 to 15 attempts (0.370 - 0.297), rounded up,
# and a hundredth of the regret of a transformer that is shown no rewards (4.1).
ERROR_THAT_COUNTS = 0.01
REGRET_THAT_COUNTS = 0.04
# A transformer "tracks" another learner when the cosine of their answers is above this.
AGREEMENT_THAT_COUNTS = 0.9


@dataclasses.dataclass(frozen=True)
class Scale:
    """The size at which all claims are run.

    Args:
      base: overrides of every run of the campaign.
      learning_rates: the grid over which every tuned arm is trained.
      learning_rate: the one of the grid that untuned arms take, as the published study took one.
      depths: few blocks, those after which depth saturates, and more.
      heads: one, those that are enough, and more.
      width_without_mlp, width_of_one_block: widths at which these variants have the base's
        number of parameters.
      steps_to_rank: training steps after which the base has long left the plateau of averaging
        the attempts.
    """

    base: tuple[str, ...]
    learning_rates: tuple[float, ...]
    learning_rate: float
    depths: tuple[int, int, int]
    heads: tuple[int, int, int]
    width_without_mlp: int
    width_of_one_block: int
    steps_to_rank: int


SCALES = {
    "smoke": Scale(
        base=(
            "+scale=smoke",
            "model.num_layers=2",
            "model.num_heads=4",
            "evaluation.reward_noise=[0.0,0.5,1.0]",
            "evaluation.num_contexts=8",
        ),
        learning_rates=(1e-3, 2e-3),
        learning_rate=2e-3,
        depths=(1, 2, 3),
        heads=(1, 2, 4),
        width_without_mlp=28,
        width_of_one_block=24,
        steps_to_rank=20,
    ),
    "small": Scale(
        base=(
            "+scale=small",
            "evaluation.reward_noise=[0.0,0.5,1.0]",
            "evaluation.num_contexts=1024",
        ),
        learning_rates=(1e-3, 2e-3, 4e-3),
        learning_rate=2e-3,
        depths=(1, 4, 6),
        heads=(1, 2, 4),
        width_without_mlp=112,
        width_of_one_block=128,
        steps_to_rank=200,
    ),
    "paper": Scale(
        base=("+experiment=paper",),
        learning_rates=(5e-5, 1e-4, 2e-4),
        learning_rate=1e-4,
        depths=(5, 15, 20),
        heads=(1, 3, 6),
        width_without_mlp=168,
        width_of_one_block=429,
        steps_to_rank=3000,
    ),
}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One configuration: the scale's base with these overrides, trained with every seed.

    Args:
      overrides: as on the command line of `icl_align.train`.
      tuned: trained at every learning rate of the grid, not only at the scale's own.
    """

    overrides: tuple[str, ...] = ()
    tuned: bool = True


@dataclasses.dataclass(frozen=True)
class Reading:
    """One number a seed: a quantity of a learner on the evaluation contexts of an arm.

    Args:
      arm: which run.
      quantity: refinement_error, regret or agreement.
      attempts: how many the context holds.
      reward_noise: p in [0, 1].
      learner: one of `icl_align.config.LEARNERS`.
      under: overrides of another evaluation of the same run, as for `icl_align.evaluate`.
    """

    arm: Arm
    quantity: str
    attempts: int = JUDGED_ATTEMPTS
    reward_noise: float = 0.0
    learner: str = "transformer"
    under: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Effect:
    """A sum of signed readings; built with +, - and the three functions below."""

    terms: tuple[tuple[int, Reading], ...]

    def __add__(self, other: "Effect") -> "Effect":
        return Effect(self.terms + other.terms)

    def __sub__(self, other: "Effect") -> "Effect":
        return Effect(self.terms + tuple((-sign, reading) for sign, reading in other.terms))

    def after(self, attempts: int) -> "Effect":
        """The same effect at another number of attempts, for a curve."""
        return Effect(
            tuple((sign, dataclasses.replace(r, attempts=attempts)) for sign, r in self.terms)
        )


def refinement_error(arm: Arm, **which) -> Effect:
    """1 - cos(answer, W x); keywords as `Reading`'s."""
    return Effect(((1, Reading(arm, "refinement_error", **which)),))


def regret(arm: Arm, **which) -> Effect:
    """Plackett-Luce loss above its minimum; keywords as `Reading`'s."""
    return Effect(((1, Reading(arm, "regret", **which)),))


def agreement(arm: Arm, **which) -> Effect:
    """cos(answer, gradient descent's); keywords as `Reading`'s."""
    return Effect(((1, Reading(arm, "agreement", **which)),))


@dataclasses.dataclass(frozen=True)
class Range:
    """The open interval in which a predicted effect lies."""

    low: float = -math.inf
    high: float = math.inf

    def __str__(self) -> str:
        if self.low == -math.inf:
            return f"below {self.high:g}"
        if self.high == math.inf:
            return f"above {self.low:g}"
        return f"{self.low:g} to {self.high:g}"


def above(low: float) -> Range:
    """Larger than `low`."""
    return Range(low=low)


def below(high: float) -> Range:
    """Smaller than `high`."""
    return Range(high=high)


def within(size: float) -> Range:
    """No further than `size` from 0: an effect too small to count."""
    return Range(-size, size)


@dataclasses.dataclass(frozen=True)
class Judgement:
    """One prediction of a claim, judged by one number.

    Args:
      how: "published" reads every arm at the scale's one learning rate, with the paper's
        quantity and confounds; "controlled" changes one thing, and reads a tuned arm at the rate
        of its lowest training loss. A comparison has tuned arms only, or none.
      prediction: in words, as the claim's authors would have it.
      effect: what is read.
      predicted: where it must lie.
    """

    how: Literal["published", "controlled"]
    prediction: str
    effect: Effect
    predicted: Range


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim: its sentence, its source, its predictions and its figure.

    Args:
      sentence: the claim.
      place: where it is made.
      judgements: what is judged, and how; they name the arms.
      figure: label -> the effect that is drawn against the attempts.
    """

    sentence: str
    place: str
    judgements: tuple[Judgement, ...]
    figure: dict[str, Effect]

    def readings(self) -> list[tuple[str, Reading]]:
        """(how, reading) of everything that is judged or drawn."""
        judged = [(j.how, reading) for j in self.judgements for _, reading in j.effect.terms]
        drawn = [("controlled", r) for effect in self.figure.values() for _, r in effect.terms]
        return judged + drawn
