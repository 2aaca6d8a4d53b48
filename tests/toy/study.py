"""The study of the toy world: one claim needs one job, the other two."""

from experiments.claim import Arm, Claim, Effect, Judgement, Reading, Scale, below

LONG = ("train.steps=400", "train.checkpoint_every=1")
SCALES = {
    "small": Scale("toy", ("train.steps=30", "evaluation.num_contexts=8"), (0.1,), 0.1, None),
    "long": Scale("toy", ("evaluation.num_contexts=8", *LONG), (0.1,), 0.1, None),
}


def distance(learner, *overrides):
    return Effect(((1, Reading(Arm(overrides), "distance", learner, "1.0", 2)),))


def claim(*overrides):
    close = distance("network") - distance("zero", *overrides)
    judgement = Judgement("published", "it finds the line", close, below(0.0))
    return Claim("A line can be found.", "ours", (judgement,), {"network": distance("network")})


CLAIMS = ("line", "two_sizes")


def load(name, scale):
    return claim() if name == "line" else claim("train.batch_size=4")
