import dataclasses

import pytest

from experiments import alignment as claims
from experiments.__main__ import load_all
from experiments.alignment import SCALES, regret
from experiments.campaign import Campaign, families
from experiments.claim import PAPERS, Arm, Range, StudyReading, above, below, within
from experiments.dialogue import LAST
from experiments.runs import Run
from experiments.sections import parameters_of
from experiments.studies import studies
from icl_align.config import WandbConfig, differences
from icl_align.running.compose import compose_config

EVERY = [(world, name) for world, own in studies().items() for name in own.SCALES]


@pytest.fixture(scope="module", params=EVERY, ids="-".join)
def campaign(request, tmp_path_factory):
    world, name = request.param
    scale = studies()[world].SCALES[name]
    every = load_all({world: scale})[world]
    # Without a pilot all runs are known at once, at the scale's own rate.
    seeds = dataclasses.replace(scale.seeds, pilot=0)
    scale = dataclasses.replace(scale, seeds=seeds)
    folder = tmp_path_factory.mktemp(f"{world}_{name}")
    return Campaign(
        every, scale, folder, WandbConfig(mode="disabled"), families(every.values()), {}
    )


def test_every_arm_of_every_claim_is_a_configuration_that_can_run(campaign):
    assert len(campaign.runs) > 5  # the constructor has composed and checked them all
    assert all(run.config.evaluation.own_contexts for run in campaign.runs.values())
    for run in campaign.runs.values():
        for under in run.evaluations:
            assert run.evaluated(under) != run.config


@pytest.mark.parametrize("world", ["alignment", "dialogue"])
def test_only_a_scale_that_judges_nothing_ignores_what_its_arms_differ_in(world):
    for scale in studies()[world].SCALES.values():
        assert scale.judges != bool(scale.ignores)
        asked = {
            word
            for claim in load_all({world: scale})[world].values()
            for _, reading in claim.readings()
            for override in (*reading.arm.overrides, *reading.under)
            for word in (override, override.partition("=")[0])
        }
        assert asked and not asked & set(scale.ignores)


def test_an_effect_whose_arms_differ_in_what_is_ignored_is_one_of_a_single_arm():
    one = Arm(("model.num_heads=1", "+ablation=shallow", "task=independent_corruption"))
    effect = regret(one) - regret(Arm())
    kept = effect.without(("model.num_heads", "+ablation=shallow"))
    assert [reading.arm.overrides for _, reading in kept.terms] == [
        ("task=independent_corruption",),
        (),
    ]
    assert effect.without(("model.width",)) == effect
    arms = {reading.arm for _, reading in effect.without((*one.overrides, "task")).terms}
    assert arms == {Arm()}


@pytest.mark.parametrize("world", ["alignment", "dialogue"])
def test_every_recipe_under_which_an_effect_is_shown_can_run_and_changes_the_arm(world):
    study = studies()[world]
    scale = study.SCALES["small"]
    base = f"world={world}", *scale.base, f"train.steps={scale.steps}"
    for names in study.CLAIMS.values():
        for claim in [study.load(name, scale) for name in names]:
            arms = [r.arm for j in claim.judgements if j.primary for _, r in j.effect.terms]
            for arm in dict.fromkeys(arms if claim.moved_by else ()):
                plain = compose_config([*base, *arm.overrides])
                for _, overrides in claim.moved_by:
                    assert differences(plain, compose_config([*base, *arm.overrides, *overrides]))


def test_every_reading_is_of_something_that_a_run_gives(campaign):
    measures = campaign.base.measures
    places = campaign.base.task.num_responses if measures.axis == "attempts" else LAST
    for claim in campaign.claims.values():
        for _, reading in claim.readings():
            if isinstance(reading, StudyReading):
                continue  # a test of campaigns reads them
            assert reading.quantity in measures.quantities
            assert reading.learner in measures.learners
            asked = Run(campaign.base, campaign.folder).evaluated(reading.under)
            assert reading.condition in measures.conditions(asked.evaluation)
            assert reading.at <= places


def test_no_claim_is_without_a_figure_a_place_and_one_primary_judgement(campaign):
    for name, claim in campaign.claims.items():
        assert claim.paper in PAPERS
        assert claim.sentence.endswith(".")
        assert claim.place
        assert [one.primary for one in claim.judgements].count(True) == 1
        assert all(one.predicted.resolution > 0 for one in claim.judgements)
        judged = [of for one in claim.judgements for _, of in one.effect.terms]
        studied = all(isinstance(of, StudyReading) for of in judged)
        drawn = {effect.terms[0][1].quantity for effect in claim.figure.values()}
        assert studied or (len(claim.figure) >= 2 and len(drawn) == 1), name
        predictions = [judgement.prediction for judgement in claim.judgements]
        assert len(set(predictions)) == len(predictions)


def test_names_of_claims_are_of_one_claim_each():
    names = [name for own in studies().values() for of in own.CLAIMS.values() for name in of]
    assert len({*names}) == len(names)


@pytest.mark.parametrize("name", ["depth", "softmax", "heads", "mlp"])
@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_claims_about_the_architecture_are_judged_twice_and_tuned(name, scale):
    claim = claims.load(name, scale)
    assert {judgement.how for judgement in claim.judgements} == {"published", "controlled"}
    controlled = [j.effect for j in claim.judgements if j.how == "controlled"]
    assert any(all(r.arm.tuned for _, r in effect.terms) for effect in controlled)


def test_a_comparison_reads_tuned_arms_on_both_sides_or_on_neither(campaign):
    for claim in campaign.claims.values():
        for judgement in claim.judgements:
            if judgement.how == "controlled":
                assert len({reading.arm.tuned for _, reading in judgement.effect.terms}) == 1


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_matched_variants_have_the_parameters_of_the_base(scale):
    scale = SCALES[scale]
    base = parameters_of(compose_config([*scale.base]))
    narrow = parameters_of(compose_config([*scale.base, "+ablation=no_mlp"]))
    width = f"model.width={scale.width_without_mlp}"
    wide = parameters_of(compose_config([*scale.base, "+ablation=no_mlp", width]))
    assert wide == pytest.approx(base, rel=0.05)
    assert narrow < 0.5 * base
    width = (f"model.width={scale.width_of_one_block}", "model.mlp_width=null")
    block = parameters_of(compose_config([*scale.base, "+ablation=shallow", *width]))
    assert block == pytest.approx(base, rel=0.05)


def test_the_base_is_one_of_the_depths_and_head_counts():
    for scale in SCALES.values():
        config = compose_config([*scale.base])
        assert config.model.num_layers in scale.depths
        assert config.model.num_heads in scale.heads
        assert scale.heads[0] == 1
        assert scale.learning_rate in scale.learning_rates
        assert list(scale.depths) == sorted(scale.depths)


def test_effects_add_up_and_change_sign():
    a, b = regret(Arm()), regret(Arm(("model.num_heads=1",)))
    assert (a - b).terms == (*a.terms, (-1, b.terms[0][1]))
    assert (a - (a - b)).terms == ((1, a.terms[0][1]), (-1, a.terms[0][1]), (1, b.terms[0][1]))
    assert [reading.at for _, reading in (a + b).moved_to(3).terms] == [3, 3]


def test_ranges_read_as_they_are():
    assert str(above(0.04)) == "above 0.04"
    assert str(below(0.2)) == "below 0.2"
    assert str(within(0.01)) == "-0.01 to 0.01"
    assert str(Range(0.5, 1.0)) == "0.5 to 1"
