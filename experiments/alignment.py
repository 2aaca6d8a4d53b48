"""The study of the alignment world: its claims, their readings, effects that count, and sizes."""

import dataclasses

from experiments.claim import (
    Arm,
    Claim,
    Effect,
    Learned,
    Reading,
    Scale,
    Seeds,
    StudyReading,
    above,
    load_claim,
)
from icl_align.alignment.options import Options

# Paper -> its claims, in the order of the report: files of its folder in `experiments/claims`.
CLAIMS = {
    "wang2024": (
        "attempts",
        "gradient_descent",
        "reward_noise",
        "depth",
        "softmax",
        "heads",
        "mlp",
        "controls",
        "ranking",
        "distribution",
        "data_process",
        "length",
        "tokens",
        "own_rounds",
    )
}
# The smallest effects that count, fixed before the campaign's seeds were trained:
# a tenth of what the published transformer gains from 3 to 15 attempts (0.370 - 0.297), rounded up,
# and a hundredth of the regret of a transformer that is shown no rewards (4.1).
ERROR_THAT_COUNTS = 0.01
REGRET_THAT_COUNTS = 0.04
# A transformer "tracks" another learner when the cosine of their answers is above this.
AGREEMENT_THAT_COUNTS = 0.9
AGREEMENT_RESOLUTION = 0.05
# Answers that agree with gradient descent's less than that have not learned to rank.
LEARNED = Learned(
    "agreement", "0.0", above(0.5), "to rank (agreement with gradient descent above 0.5)"
)


def load(name: str, scale: Scale) -> Claim:
    """The claim `name` at a scale."""
    return load_claim(CLAIMS, name, scale)


def refinement_error(arm: Arm, **which) -> Effect:
    """1 - cos(answer, W x); keywords as of `reading`."""
    return reading(arm, "refinement_error", **which)


def regret(arm: Arm, **which) -> Effect:
    """Plackett-Luce loss above its minimum; keywords as of `reading`."""
    return reading(arm, "regret", **which)


def agreement(arm: Arm, **which) -> Effect:
    """cos(answer, gradient descent's); keywords as of `reading`."""
    return reading(arm, "agreement", **which)


def reading(
    arm: Arm,
    quantity: str,
    attempts: int = Options.measures.judged_at,
    reward_noise: float = 0.0,
    learner: str = Options.measures.trained,
    under: tuple[str, ...] = (),
) -> Effect:
    """The effect that is one reading.

    Args:
      arm: which run.
      quantity: refinement_error, regret or agreement.
      attempts: how many the context holds.
      reward_noise: p in [0, 1].
      learner: one of `icl_align.alignment.options.LEARNERS`.
      under: as of `Reading`.
    """
    return Effect(
        ((1, Reading(arm, quantity, learner, str(float(reward_noise)), attempts, under)),)
    )


def of_own_rounds(
    arm: Arm, *keys: str, label: str, under: tuple[str, ...], at: int | None = None
) -> Effect:
    """The effect that is one number of `own_rounds.json`; arguments as of `StudyReading`."""
    return Effect(((1, StudyReading(arm, keys, at, under, label=label)),))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignmentScale(Scale):
    """A scale with the sizes that the claims vary.

    Attributes:
      depths: few blocks, those after which depth saturates, and more.
      heads: one, those that are enough, and more.
      width_without_mlp, width_of_one_block: widths at which these variants have the base's
        number of parameters.
      steps_to_rank: training steps after which the base has long left the plateau of averaging
        the attempts.
      steps_of_own_rounds: after which a network trained on own rounds has come to rest.
      contexts_of_own_rounds: on which they are evaluated; thirty critics at every round take long.
    """

    depths: tuple[int, int, int]
    heads: tuple[int, int, int]
    width_without_mlp: int
    width_of_one_block: int
    steps_to_rank: int
    steps_of_own_rounds: int
    contexts_of_own_rounds: int

    def recipes(self, steps: int | None = None) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """As `Scale.recipes`, and with the usual warm-up."""
        own = ("warm-up over a tenth", ("train.warmup_fraction=0.1",))
        return (*super().recipes(steps), own)


SCALES = {
    "smoke": AlignmentScale(
        world="alignment",
        base=(
            "+scale=smoke",
            "model.num_layers=2",
            "model.num_heads=4",
            "evaluation.reward_noise=[0.0,0.5,1.0]",
            "evaluation.num_contexts=8",
        ),
        steps=20,
        learning_rates=(1e-3, 2e-3),
        learned=LEARNED,
        seeds=Seeds(judged=2, most=2, pilot=0),
        most_extensions=0,
        judges=False,
        jobs_at_once=2,
        ignores=(
            "model.num_layers",
            "model.num_heads",
            "model.width",
            "train.steps",
            "loss.max_attempts",
        ),
        learning_rate=2e-3,
        depths=(1, 2, 3),
        heads=(1, 2, 4),
        width_without_mlp=28,
        width_of_one_block=24,
        steps_to_rank=20,
        steps_of_own_rounds=40,
        contexts_of_own_rounds=8,
    ),
    "small": AlignmentScale(
        world="alignment",
        base=(
            # Of what a CPU affords, small and long. With a warm-up over a tenth of the steps 15 of
            # 48 networks ended with several times the regret, with this one 3. `recipes` has both.
            "+scale=small",
            "model.width=32",
            "train.batch_size=32",
            "train.warmup_fraction=0.5",
            "evaluation.reward_noise=[0.0,0.5,1.0]",
            "evaluation.num_contexts=1024",
        ),
        steps=2000,
        learning_rates=(5e-4, 1e-3, 2e-3, 4e-3),
        learned=LEARNED,
        seeds=Seeds(judged=12, most=32, pilot=4),
        learning_rate=1e-3,
        depths=(1, 4, 6),
        heads=(1, 2, 4),
        width_without_mlp=56,
        width_of_one_block=64,
        steps_to_rank=600,
        steps_of_own_rounds=4000,
        contexts_of_own_rounds=512,
    ),
    "paper": AlignmentScale(
        world="alignment",
        base=("+experiment=paper",),
        steps=3000,
        learning_rates=(5e-5, 1e-4, 2e-4),
        learned=LEARNED,
        seeds=Seeds(judged=20, most=40, pilot=3),
        learning_rate=1e-4,
        depths=(5, 15, 20),
        heads=(1, 3, 6),
        width_without_mlp=168,
        width_of_one_block=429,
        steps_to_rank=3000,
        steps_of_own_rounds=12000,
        contexts_of_own_rounds=512,
    ),
}
