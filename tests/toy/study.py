"""The study of the toy world: one claim needs one job, the other two."""

import dataclasses

from experiments.claim import Arm, Claim, Effect, Judgement, Reading, Scale, Seeds, below

RATES = {"learning_rates": (0.1,), "learning_rate": 0.1, "learned": None}
SEEDS = Seeds(judged=8, most=8, pilot=0)
SHORT = ("evaluation.num_contexts=8",)
LONG = (*SHORT, "train.checkpoint_every=1")
SCALES = {
    "small": Scale(world="toy", base=SHORT, steps=30, seeds=SEEDS, **RATES),
    "long": Scale(world="toy", base=LONG, steps=400, seeds=SEEDS, **RATES),
}


def distance(learner, *overrides):
    return Effect(((1, Reading(Arm(overrides), "distance", learner, "1.0", 2)),))


def claim(*overrides):
    close = distance("network") - distance("zero", *overrides)
    judgement = Judgement("published", "it finds the line", close, below(0.0, 0.1), primary=True)
    return Claim("A line can be found.", "ours", (judgement,), {"network": distance("network")})


CLAIMS = {"wang2024": ("line", "two_sizes")}


def load(name, scale):
    found = claim() if name == "line" else claim("train.batch_size=4")
    return dataclasses.replace(found, paper="wang2024")
