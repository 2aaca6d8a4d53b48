"""Runs a claim of the toy world in the folder named on the command line, and writes its report."""

import sys
from pathlib import Path

from experiments.campaign import Campaign
from experiments.claim import Arm, Claim, Effect, Judgement, Reading, Scale, below
from experiments.engine import run_job
from experiments.report import write_report
from icl_align.config import WandbConfig

SCALE = Scale("toy", ("train.steps=30", "evaluation.num_contexts=8"), (0.1,), 0.1, None)


def distance(learner):
    return Effect(((1, Reading(Arm(), "distance", learner, "1.0", 2)),))


def main():
    close = distance("network") - distance("zero")
    judgement = Judgement("published", "it finds the line", close, below(0.0))
    claim = Claim("A line can be found.", "ours", (judgement,), {"network": distance("network")})
    off = WandbConfig(mode="disabled")
    campaign = Campaign({"line": claim}, SCALE, Path(sys.argv[1]), 0, 5, off)
    campaign.register(campaign.claims)
    for job in campaign.missing_jobs(16):
        job.write()
        run_job(job.file)
    assert not campaign.missing_jobs(16)
    write_report(campaign, off, "the command", campaign.claims)


if __name__ == "__main__":
    main()
