"""The claims about dialogues read what a run of that world leaves."""

import dataclasses

import numpy as np
import pytest

from experiments import dialogue
from experiments.claim import Arm, StudyReading
from experiments.claims.liu2025.steering import MINUS, PLUS, steered
from experiments.readings import checks, concept, guessed_checks, instructions, kinds
from experiments.runs import Run, read
from icl_align.dialogue.concept.steering import DOSES
from icl_align.running.compose import compose_config
from icl_align.running.run import run

OPTIONS = ("world=dialogue", "+scale=smoke", "model.num_layers=2", "num_seeds=2")
OWN = ("evaluation.own_contexts=true", "evaluation.num_contexts=32", "wandb.mode=disabled")


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    config = compose_config([*OPTIONS, *OWN, *dialogue.STUDIED])
    folder = tmp_path_factory.mktemp("studied") / "run"
    run(config, folder)
    return Run(config, folder)


def test_everything_that_is_read_of_a_study_is_there_once_a_seed(studied):
    small = dialogue.SCALES["small"]
    names = [name for of_paper in dialogue.CLAIMS.values() for name in of_paper]
    readings = [r for name in names for _, r in dialogue.load(name, small).readings()]
    of_study = [r for r in readings if isinstance(r, StudyReading) and not r.of_attack]
    assert len(of_study) > 20
    for reading in of_study:
        values = read(studied, dataclasses.replace(reading, arm=Arm(), under=()))
        assert values.shape == (2,), reading


def test_what_is_read_beside_the_judged_is_there_once_a_seed(studied):
    scales = {"dialogue": dialogue.SCALES["small"]}
    sections = (instructions(), guessed_checks(), concept(), kinds(), checks(scales))
    labelled = [pair for section in sections for pair in section]
    assert len(labelled) == len({label for label, _ in labelled})
    plans = {"none", "careful", "once"}  # of the run
    for label, effect in labelled:
        for _, of in effect.terms:
            if isinstance(of, StudyReading) and of.of_attack:
                continue
            if isinstance(of, StudyReading) or of.condition in plans:
                values = read(studied, dataclasses.replace(of, arm=Arm(), under=()))
                assert values.shape == (2,), label


def test_steering_is_read_one_dose_along_and_one_against(studied):
    assert [DOSES[place] for place in (PLUS, MINUS)] == [1, -1]
    for dose in (PLUS, MINUS):
        [(_, reading)] = steered(Arm(), "pattern", "uncertainty", dose).terms
        assert np.all(read(studied, dataclasses.replace(reading, under=())) != 0)
