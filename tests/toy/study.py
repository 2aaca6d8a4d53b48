"""The study of the toy world: one claim needs one job, the other two."""

import dataclasses

from experiments.claim import Arm, Claim, Effect, Judgement, Reading, Scale, Seeds, below

LONG = ("train.steps=400", "train.checkpoint_every=1")
RATES = {"learning_rates": (0.1,), "learning_rate": 0.1, "learned": None}
SEEDS = Seeds(judged=8, exploratory=8, pilot=0)
SHORT = ("train.steps=30", "evaluation.num_contexts=8")
SCALES = {
    "small": Scale(world="toy", base=SHORT, seeds=SEEDS, **RATES),
    "long": Scale(world="toy", base=("evaluation.num_contexts=8", *LONG), seeds=SEEDS, **RATES),
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
