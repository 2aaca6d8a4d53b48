"""`python -m experiments` with claims of the toy world: one needs one job, the other two."""

from experiments import alignment, claims
from experiments.claim import Arm, Claim, Effect, Judgement, Reading, Scale, below

LONG = ("train.steps=120", "train.checkpoint_every=1")
SCALES = {
    "toy": Scale("toy", ("train.steps=30", "evaluation.num_contexts=8"), (0.1,), 0.1, None),
    "long": Scale("toy", ("evaluation.num_contexts=8", *LONG), (0.1,), 0.1, None),
}


def distance(learner, *overrides):
    return Effect(((1, Reading(Arm(overrides), "distance", learner, "1.0", 2)),))


def claim(*overrides):
    close = distance("network") - distance("zero", *overrides)
    judgement = Judgement("published", "it finds the line", close, below(0.0))
    return Claim("A line can be found.", "ours", (judgement,), {"network": distance("network")})


CLAIMS = {"line": claim(), "two_sizes": claim("train.batch_size=4")}
alignment.SCALES = SCALES
claims.NAMES = tuple(CLAIMS)
claims.load = lambda name, scale: CLAIMS[name]

if __name__ == "__main__":
    from experiments.__main__ import main

    main()
