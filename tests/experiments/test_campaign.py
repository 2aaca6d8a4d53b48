import dataclasses
import json
import os
import signal
import subprocess
import tarfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import psutil
import pytest

from experiments import alignment
from experiments import job as job_module
from experiments.__main__ import check_report, run_campaigns
from experiments.alignment import (
    LEARNED,
    SCALES,
    AlignmentScale,
    agreement,
    of_own_rounds,
    refinement_error,
    regret,
)
from experiments.campaign import JUDGED, PILOT, Campaign, Place, families
from experiments.claim import (
    Arm,
    Claim,
    Effect,
    Judgement,
    Learned,
    Seeds,
    StudyReading,
    above,
)
from experiments.dialogue import success
from experiments.engine import run_job, run_jobs
from experiments.figures import claim_figure
from experiments.judge import Family
from experiments.options import CampaignOptions, keep_seeds
from experiments.pack import pack
from experiments.page import page_of
from experiments.registration import is_late, read_registered, register
from experiments.report import IN_PART, report_text, write_report
from experiments.runs import CONFIG, Job, Run, identity, read
from experiments.verdicts import differences_from, is_changed, judged
from icl_align.attack import ASKED, NotLearnedRunError
from icl_align.config import ConfigError, WandbConfig
from icl_align.running.checkpoints import newest_state
from icl_align.running.compose import compose_config
from icl_align.running.errors import RunError
from icl_align.running.evaluation import by_configuration, compute_curves, compute_curves_together
from icl_align.running.files import write_json
from icl_align.running.loop import Start
from icl_align.running.measuring import Measuring
from icl_align.running.metrics_file import read_rows
from icl_align.running.run import run, run_together
from icl_align.running.shares import divide
from icl_align.running.terminal import Terminal
from icl_align.running.training import init_state, members_of
from runs import finish, saved_steps, start, tiny, training_rows, wait_for

OFF = WandbConfig(mode="disabled")
TINY = AlignmentScale(
    world="alignment",
    learned=LEARNED,
    base=(
        "+scale=smoke",
        "evaluation.reward_noise=[0.0]",
        "evaluation.num_contexts=4",
        "task.num_responses=4",
        "gradient_descent.steps=2",
        "gradient_descent.steps_at_full_noise=1",
        "train.log_every=1",
    ),
    steps=4,
    learning_rates=(1e-3, 2e-3),
    seeds=Seeds(judged=2, most=3, pilot=2, first=7, first_pilot=3),
    most_extensions=0,
    learning_rate=2e-3,
    depths=(1, 2, 3),
    heads=(1, 2, 4),
    width_without_mlp=28,
    width_of_one_block=24,
    steps_to_rank=4,
    steps_of_own_rounds=4,
    contexts_of_own_rounds=8,
)
FULL, ONE = Arm(), Arm(("model.num_heads=1",))
AT = {"attempts": 4}


def claim(*effects):
    judgements = tuple(
        Judgement("controlled", f"effect {n}", effect, above(0.0, 0.1), primary=n == 0)
        for n, effect in enumerate(effects)
    )
    figure = {"full": regret(FULL), "one": regret(ONE)}
    course = {"full, by attempts": regret(FULL)}
    return Claim("A claim.", "ours", judgements, figure, course=course, paper="wang2024")


def campaign(folder, *effects, scale=TINY, **claims):
    effects = effects or (regret(ONE, **AT) - regret(FULL, **AT),)
    claims = claims or {"heads": claim(*effects)}
    return Campaign(claims, scale, folder, OFF, families(claims.values()), read_registered(folder))


def run_all(found):
    """Its jobs, in this process."""
    for job in found.missing_jobs(16):
        job.write()
        job_module.run(job.file, time.time())


def run_stages(of):
    """The pilot, then what is judged; `of` makes the campaign anew."""
    run_all(of())  # trains the pilot
    run_all(of())  # evaluates it where a rate was chosen
    found = of()
    assert found.is_piloted
    register(found)
    run_all(found)
    return of()


NO_PILOT = dataclasses.replace(TINY, seeds=Seeds(judged=2, most=2, pilot=0, first=7))


# ------------------------------------------------------------------------------------ what is to do


def test_arms_that_resolve_to_the_same_configuration_are_one_run(tmp_path):
    same = Arm(("model.num_heads=2", "model.attention=softmax"))
    found = campaign(tmp_path, regret(FULL, **AT) - regret(same, **AT))
    assert len({id(run) for run in found.runs.values()}) == 2 * len(TINY.learning_rates)  # + ONE's
    for rate in TINY.learning_rates:
        assert found.places[Place(FULL, rate, PILOT)] is found.places[Place(same, rate, PILOT)]


def test_numbers_that_need_no_compiling_share_a_job(tmp_path):
    jobs = campaign(tmp_path).missing_jobs(16)
    assert sorted(len(job.runs) for job in jobs) == [2, 2]  # two rates, for each number of heads
    assert {job.networks() for job in jobs} == {4}
    assert [len(job.runs) for job in campaign(tmp_path).missing_jobs(2)] == [1, 1, 1, 1]
    assert len(campaign(tmp_path).missing_jobs(1)) == 4  # never less than one configuration


def test_a_run_is_known_by_what_it_trains_not_by_how_it_is_watched():
    assert identity(tiny()) == identity(
        tiny("evaluation.num_contexts=9", "train.keep_checkpoints=5")
    )
    others = ["seed=1", "train.learning_rate=0.1", "model.num_heads=1", "num_seeds=2"]
    assert len({identity(tiny()), *(identity(tiny(option)) for option in others)}) == 5


# -------------------------------------------------------------------------------- training together


def test_runs_trained_together_are_the_runs_trained_alone(tmp_path):
    options = ["num_seeds=2", "train.steps=6", "evaluation.own_contexts=true"]
    configs = [
        tiny(*options, "train.learning_rate=0.001"),
        tiny(*options, "train.learning_rate=0.01", "train.clip_norm=0.5", "task.reward_noise=0.3"),
    ]
    together = run_together(
        [(config, tmp_path / f"together{n}", Start()) for n, config in enumerate(configs)]
    )
    for n, config in enumerate(configs):
        alone = run(config, tmp_path / f"alone{n}")
        assert together[n]["options"] == alone["options"]
        for learner in ("transformer", "least_squares"):
            a, b = (
                curves["learners"][learner]["1.0"]["refinement_error"]["by_seed"]
                for curves in (together[n], alone)
            )
            np.testing.assert_allclose(a, b, atol=1e-3)
        states = [
            newest_state(tmp_path / f"{how}{n}", config, print)[1] for how in ("together", "alone")
        ]
        for a, b in zip(*map(jax.tree.leaves, states), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)
        rows = [training_rows(tmp_path / f"{how}{n}") for how in ("together", "alone")]
        for a, b in zip(*rows, strict=True):
            assert a["step"] == b["step"]
            if "train/loss" in a:
                assert a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-4)
    assert together[0]["learners"]["transformer"] != together[1]["learners"]["transformer"]


def test_configurations_that_need_two_programs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="share a program"):
        run_together(
            [
                (tiny(), tmp_path / "a", Start()),
                (tiny("model.num_heads=1"), tmp_path / "b", Start()),
            ]
        )


def test_one_that_diverges_does_not_stop_the_others(tmp_path):
    options = ["model.norm=none", "train.clip_norm=null", "train.steps=8"]
    rates = ("0.001", "1e30")
    configs = [tiny(*options, f"train.learning_rate={rate}") for rate in rates]
    good, bad = run_together(
        [(config, tmp_path / rate, Start()) for config, rate in zip(configs, rates, strict=True)]
    )
    assert isinstance(bad, RunError)
    assert "diverged" in str(bad)
    assert good["step"] == 8
    assert Run(configs[1], tmp_path / "1e30").diverged()
    assert Run(configs[1], tmp_path / "1e30").finished()
    assert Run(configs[1], tmp_path / "1e30").training_loss() == float("inf")
    assert Run(configs[0], tmp_path / "0.001").training_loss() < float("inf")


def test_every_seed_on_contexts_of_its_own_is_that_seed_alone():
    options = ["evaluation.own_contexts=true", "evaluation.num_contexts=6"]
    config = tiny(*options, "num_seeds=2", "seed=3")
    curves = compute_curves(config, init_state(config))
    for place, seed in enumerate((3, 4)):
        one = tiny(*options, f"seed={seed}")
        alone = compute_curves(one, init_state(one))
        for learner in ("transformer", "gradient_descent", "best_attempt"):
            for quantity in ("refinement_error", "agreement"):
                both = curves["learners"][learner]["0.0"][quantity]["by_seed"]
                mean = alone["learners"][learner]["0.0"][quantity]["mean"]
                np.testing.assert_allclose(both[place], mean, atol=1e-4)
    best = curves["learners"]["best_attempt"]["0.0"]["refinement_error"]["by_seed"]
    assert abs(best[0][2] - best[1][2]) > 1e-3  # other contexts


def test_curves_of_several_configurations_are_those_of_each():
    configs = [tiny("num_seeds=2"), tiny("num_seeds=2", "train.learning_rate=0.5")]
    states = [init_state(config) for config in configs]
    states[1] = states[1]._replace(params=jax.tree.map(lambda leaf: 1.1 * leaf, states[1].params))
    params = jax.tree.map(lambda a, b: np.concatenate([a, b]), *(s.params for s in states))
    measuring = Measuring(configs[0], by_configuration(configs, params))
    together = compute_curves_together(configs, 0, measuring)
    for config, state, found in zip(configs, states, together, strict=True):
        alone = compute_curves(config, state)
        for learner, levels in alone["learners"].items():
            for bound in ("mean", "low", "high"):
                np.testing.assert_allclose(
                    found["learners"][learner]["1.0"]["refinement_error"][bound],
                    levels["1.0"]["refinement_error"][bound],
                    atol=1e-4,
                )
    assert members_of(*configs).values["train.learning_rate"].tolist() == pytest.approx(
        [2e-3, 2e-3, 0.5, 0.5]
    )


def test_what_an_attack_found_is_read_by_seed_and_nothing_of_networks_that_have_not_learned(
    tmp_path, monkeypatch
):
    options, asked = ("num_requests=4", "attacks=[gcg]"), []
    [(_, reading)] = success(Arm(("task=request",)), "gcg", "none", options).terms
    run_of = Run(compose_config(["world=dialogue", "task=request", "num_seeds=2"]), tmp_path)
    monkeypatch.setattr(Run, "is_evaluated", lambda run, under: True)
    run_of.attacks.add(options)
    assert not run_of.finished()

    def attacked(config):
        asked.append((config.num_requests, config.attacks))
        numbers = {"mean": 0.5, "high": 1.0, "by_seed": [0.4, 0.6]}
        found = {"step": 1, "behind": [0.0], "flaw": {"none": {"none": 0.1}}}
        found["options"] = {key: getattr(config, key) for key in ASKED}
        found["success"] = {"exact": {"none": {"none": numbers}}}
        found["success"]["language_model"] = {"gcg": {"none": numbers}}
        write_json(Path(config.folder) / "attacks.json", found)

    monkeypatch.setattr(job_module, "attack", attacked)
    job_module.attack_run(run_of, options, Terminal())
    job_module.attack_run(run_of, options, Terminal())  # once is enough
    assert asked == [(4, ["gcg"])]
    assert run_of.finished()
    np.testing.assert_allclose(read(run_of, reading), [0.4, 0.6])

    def refused(config):
        raise NotLearnedRunError("has not learned")

    monkeypatch.setattr(job_module, "attack", refused)
    other = Run(run_of.config, tmp_path / "other")
    other.attacks.add(options)
    job_module.attack_run(other, options, Terminal())
    assert other.finished() and np.isnan(read(other, reading)).all()

    def impossible(config):
        raise RunError("cannot be asked so")

    monkeypatch.setattr(job_module, "attack", impossible)
    third = Run(run_of.config, tmp_path / "third")
    third.attacks.add(options)
    with pytest.raises(RunError, match="asked so"):
        job_module.attack_run(third, options, Terminal())
    assert not third.finished()  # another try may be allowed to


def test_an_attack_that_fails_keeps_no_other_from_being_made(tmp_path, monkeypatch):
    attacked = []

    def attack_run(run, options, terminal):
        attacked.append(options)
        if options == ("first",):
            raise RunError("cannot be asked so")
        if options == ("last",):
            raise RunError("stopped by SIGTERM", 128 + signal.SIGTERM)

    monkeypatch.setattr(job_module, "attack_run", attack_run)
    monkeypatch.setattr(job_module, "train", lambda runs, group: [])
    config = compose_config(["world=dialogue", "task=request"])
    own = Run(config, tmp_path / "run", attacks={("first",), ("second",)})
    job = Job((own,), tmp_path / "jobs" / "job.json")
    job.write()
    with pytest.raises(SystemExit, match="1"):  # so the campaign names it and its log
        job_module.run(job.file, time.time())
    assert attacked == [("first",), ("second",)]
    own.attacks.add(("last",))
    job.write()
    with pytest.raises(SystemExit, match="143"):
        job_module.run(job.file, time.time())
    assert attacked[2:] == [("first",), ("last",)]


# ------------------------------------------------------------------------------- the whole campaign


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("campaign")
    cubed = {"under": ("task.reward_transform=power",), **AT}
    effects = (
        regret(ONE, **AT) - regret(FULL, **AT),
        agreement(FULL, **cubed),
        refinement_error(FULL, learner="best_attempt", **AT),
    )
    run_stages(lambda: campaign(folder, *effects))
    return folder, effects


def test_nothing_is_left_of_a_finished_campaign_and_a_larger_one_runs_only_what_is_new(finished):
    folder, effects = finished
    assert campaign(folder, *effects).missing_jobs(16) == []
    linear = regret(Arm(("+ablation=linear_attn",), tuned=False), **AT)
    (job,) = campaign(folder, *effects, linear).missing_jobs(16)
    assert [run.config.model.attention for run in job.runs] == ["linear"]
    assert [run.config.seed for run in job.runs] == [3]  # the pilot first
    more = dataclasses.replace(TINY, seeds=dataclasses.replace(TINY.seeds, judged=4, most=4))
    assert len(campaign(folder, *effects, scale=more).missing_jobs(16)) == 2  # other runs


def test_the_pilot_chooses_the_rate_and_other_seeds_are_judged(finished):
    folder, effects = finished
    found = campaign(folder, *effects)
    pilots = {rate: found.places[Place(FULL, rate, PILOT)] for rate in TINY.learning_rates}
    losses = {rate: run.training_loss() for rate, run in pilots.items()}
    best = min(losses, key=losses.get)
    assert found.training_losses("controlled", FULL) == losses
    assert found.chosen_rate("controlled", FULL) == best
    assert found.chosen_rate("published", FULL) == TINY.learning_rate
    assert {run.config.seed for run in pilots.values()} == {3}
    # What is evaluated beside curves is so at the chosen rate only.
    assert {rate for rate, run in pilots.items() if run.evaluations} == {best}
    run = found.run_of("controlled", FULL)
    assert run.config.train.learning_rate == best
    assert (run.config.seed, run.config.num_seeds) == (7, 3)
    rows = training_rows(pilots[best].folder)
    assert losses[best] == pytest.approx(
        np.mean([row["train/loss"] for row in rows if "train/loss" in row and row["step"] > 3.6])
    )


def test_effects_are_read_from_the_curves_of_the_chosen_run(finished):
    folder, effects = finished
    found = campaign(folder, *effects)
    values = [found.values("controlled", effect) for effect in effects]
    assert [value.shape for value in values] == [(3,)] * 3  # the arm is primary somewhere
    curves = json.loads((found.run_of("controlled", FULL).folder / "curves.json").read_text())
    mine = np.array(curves["learners"]["transformer"]["0.0"]["regret"]["by_seed"])[:, 4]
    np.testing.assert_allclose(found.values("controlled", regret(FULL, **AT)), mine)
    np.testing.assert_allclose(values[0], found.values("controlled", regret(ONE, **AT)) - mine)
    # A monotone transform leaves the best attempt where it was, and moves what the transformer sees.
    assert np.abs(values[1] - found.values("controlled", agreement(FULL, **AT))).max() > 0
    pilot = found.values("controlled", effects[0], PILOT)
    assert pilot.shape == (2,) and not np.allclose(pilot, values[0][:2])


def test_arms_with_fewer_seeds_are_compared_on_those_that_both_have(tmp_path, monkeypatch):
    wanted = lambda of, name, judgement: 3 if judgement.primary else 2  # noqa: E731
    monkeypatch.setattr(Campaign, "_wanted_seeds", wanted)
    none = refinement_error(Arm(("+ablation=no_reward",), tuned=False), **AT)
    effects = regret(FULL, **AT), refinement_error(FULL, **AT) - none
    found = campaign(tmp_path, *effects, scale=NO_PILOT)
    run_all(found)
    assert found.values("controlled", effects[0]).shape == (3,)
    assert found.values("controlled", effects[1]).shape == (2,)


def test_the_grid_grows_until_no_best_rate_is_at_its_edge(tmp_path, monkeypatch):
    # Whatever is trained, the loss is least at 5e-4.
    monkeypatch.setattr(Run, "finished", lambda run: True)
    off = lambda run: abs(np.log(run.config.train.learning_rate / 5e-4))  # noqa: E731
    monkeypatch.setattr(Run, "training_loss", off)
    growing = dataclasses.replace(TINY, most_extensions=4)
    found = campaign(tmp_path, scale=growing)
    assert found.grid == (2.5e-4, 5e-4, 1e-3, 2e-3)
    assert found.chosen_rate("controlled", FULL) == 5e-4
    assert campaign(tmp_path).grid == TINY.learning_rates


def test_the_effect_is_shown_under_other_recipes_too(tmp_path):
    moved = dataclasses.replace(
        claim(regret(ONE, **AT) - regret(FULL, **AT)),
        moved_by=(("half as many steps", ("train.steps=2",)),),
    )
    found = run_stages(lambda: campaign(tmp_path, heads=moved))
    effect = moved.judgements[0].effect
    assert found.values_moved("controlled", effect, ("train.steps=2",)).shape == (2,)
    for rate in TINY.learning_rates:
        assert found.values_at(effect, rate).shape == (2,)
    of_moved = [run.config for run in found.runs.values() if run.config.train.steps == 2]
    assert {config.seed for config in of_moved} == {3}
    write_report({"alignment": found}, OFF, "the command")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| half as many steps |" in text and "| all at 0.001 |" in text


def test_effects_are_read_from_studies_which_are_made_where_they_are_missing(tmp_path, monkeypatch):
    under = ("evaluation.own_rounds=2",)
    own = Arm((), tuned=False)
    gain = of_own_rounds(own, "learners", "transformer", "gain", under=under, at=-1, label="gain")
    guess = of_own_rounds(own, "critics", "a guess", "gain", under=under, label="gain")
    found = campaign(tmp_path, gain, guess, scale=NO_PILOT)
    [run] = [run for run in found.runs.values() if run.evaluations]
    monkeypatch.setattr(job_module, "is_studied", lambda config: False)
    run_all(found)
    assert run.curves(under) is not None and not run.finished()  # as one that was stopped between
    monkeypatch.undo()
    run_all(found)
    assert run.finished() and found.missing_jobs(16) == []
    study = json.loads((run.evaluation_folder(under) / "own_rounds.json").read_text())
    of_gain = np.array(study["learners"]["transformer"]["gain"]["by_seed"])
    np.testing.assert_allclose(found.values("controlled", gain), of_gain[:, -1])
    [row] = [row for row in study["critics"] if row["name"] == "a guess"]
    np.testing.assert_allclose(found.values("controlled", guess - gain),
                               np.array(row["gain"]["by_seed"]) - of_gain[:, -1])  # fmt: skip
    found.learned(found.claims["heads"].judgements[0])  # reads curves at the usual place
    # What the claims read of a study is there.
    small, names = alignment.SCALES["small"], alignment.CLAIMS["wang2024"]
    claims = [alignment.load(name, small) for name in names]
    readings = [reading for claim in claims for _, reading in claim.readings()]
    studied = [one for one in readings if isinstance(one, StudyReading)]
    assert len(studied) > 5
    for one in studied:
        mine = Effect(((1, dataclasses.replace(one, arm=own, under=under)),))
        assert found.values("controlled", mine).shape == (2,)


def reported(folder, *effects, **how):
    """Its report is written; the text, the page and the rows."""
    found = campaign(folder, *effects, **how)
    page = write_report({"alignment": found}, OFF, "the command")
    text = (folder / "report" / "report.md").read_text()
    return text, page.read_text(), json.loads((folder / "report" / "verdicts.json").read_text())


def test_the_report_is_whole_and_needs_no_network(finished):
    folder, effects = finished
    (folder / "report").mkdir(exist_ok=True)
    (folder / "report" / "of_another.png").write_bytes(b"stale")
    text, html, rows = reported(folder, *effects)
    assert not (folder / "report" / "of_another.png").exists()
    assert text.index("What is open") < text.index("| verdict |") < text.index("## heads")
    assert text.count("**undecided**") == 6  # few seeds decide nothing; table and section
    assert "http" not in html
    assert html.count("data:image/png;base64,") == 2
    assert '<h2 id="heads">' in html
    assert '<a href="#heads">' in html
    assert [row["verdict"] for row in rows] == ["undecided"] * 3
    assert all("fewer than 8" in row["reason"] for row in rows)
    assert [row["primary"] for row in rows] == [True, False, False]
    for row in rows:
        assert len(row["values"]) == 3 and np.mean(row["values"]) == pytest.approx(row["effect"])
        assert all((folder / "runs" / run["run"]).is_dir() for run in row["runs"])
    for word in ("jax 0", "7 to 9", "3 to 4", "parameters", "minutes of jobs", "the command",
                 "registered.json", read_registered(folder)["heads"]["hash"]):  # fmt: skip
        assert word in text, word


def test_the_report_says_where_a_course_begins_ends_and_settles(finished):
    folder, effects = finished
    text, _, _ = reported(folder, *effects)
    found = campaign(folder, *effects)
    first, last = found.axis()[0], found.axis()[-1]
    at_first, at_last = (
        found.values("controlled", regret(FULL, attempts=n)) for n in (first, last)
    )
    cells = next(line for line in text.splitlines() if line.startswith("| full, by attempts"))
    for cell, values in zip(
        cells.split(" | ")[1:4], (at_first, at_last, at_last - at_first), strict=True
    ):
        assert float(cell.split()[0]) == pytest.approx(values.mean(), abs=6e-4)
    seeds, settled, samples = cells.removesuffix(" |").split(" | ")[4:]
    assert int(seeds) == len(at_first)
    assert all(int(n) in found.axis() for n in (settled, *samples.split(" to ")))


def test_what_was_judged_is_computed_anew_from_the_runs(finished):
    folder, effects = finished
    reported(folder, *effects)
    found = campaign(folder, *effects)
    path = folder / "report" / "verdicts.json"
    assert differences_from(path, {"alignment": found}) == []
    rows = json.loads(path.read_text())
    rows[1]["effect"] += 1e-6
    path.write_text(json.dumps(rows))
    [line] = differences_from(path, {"alignment": found})
    assert line.startswith("heads, controlled: effect 1: effect is")
    reported(folder, *effects)
    found.registered["heads"]["judgements"][0]["seeds"] += 1
    found.registered["heads"]["judgements"][0]["learning_rates"] = {}
    lines = differences_from(path, {"alignment": found})
    assert any("as registered: seeds is 4, the pilot gives 3" in line for line in lines)
    assert any("changed_since is False, the run folders give True" in line for line in lines)


def test_a_packed_campaign_is_reported_as_the_campaign_itself_and_holds_no_network(
    finished, tmp_path
):
    folder, effects = finished
    rows = reported(folder, *effects)[2]
    path = pack(folder, ("report/verdicts.json",))
    with tarfile.open(path) as archive:
        names = archive.getnames()
        archive.extractall(tmp_path, filter="data")
    assert not any("checkpoints" in name or name.endswith(".png") for name in names)
    other = tmp_path / folder.name
    found = campaign(other, *effects)
    assert found.missing_jobs(16) == []
    assert differences_from(other / "report" / "verdicts.json", {"alignment": found}) == []
    assert reported(other, *effects)[2] == rows


def test_a_folder_belongs_to_one_choice_of_seeds(tmp_path):
    keep_seeds(tmp_path, CampaignOptions(num_seeds=9))
    keep_seeds(tmp_path, CampaignOptions(num_seeds=9))
    with pytest.raises(ConfigError, match="is a campaign of num_seeds=9; name another folder="):
        keep_seeds(tmp_path, CampaignOptions(num_seeds=8))
    with pytest.raises(ConfigError, match="is a campaign of scale=small; name another folder="):
        keep_seeds(tmp_path, CampaignOptions(scale="smoke", num_seeds=9))
    (tmp_path / "seeds.json").write_text("{")
    with pytest.raises(ConfigError, match="is no JSON"):
        keep_seeds(tmp_path, CampaignOptions(num_seeds=9))
    assert (tmp_path / "seeds.json").read_text() == "{"


def test_without_a_pilot_all_seeds_can_be_judged():
    own = SCALES["smoke"].seeds
    assert own.pilot == 0
    scales = CampaignOptions(scale="smoke", seed=own.first_pilot - 1).scales()
    assert scales["alignment"].seeds.first == own.first_pilot - 1


def test_figures_draw_the_seeds_that_are_judged(finished, monkeypatch):
    folder, effects = finished
    found = campaign(folder, *effects)
    values = found.values

    def with_a_seed_more_of_one_arm(how, effect, stage=JUDGED):
        own = values(how, effect, stage)
        is_alone = [reading.arm for _, reading in effect.terms] == [FULL]
        return np.append(own, 1e3) if is_alone else own

    monkeypatch.setattr(found, "values", with_a_seed_more_of_one_arm)
    one = judged({"alignment": campaign(folder, *effects)})[0]
    axes = claim_figure([one._replace(campaign=found)]).axes[0]
    assert axes.get_legend().get_title().get_text() == "3 seeds"
    drawn = {line.get_label(): line for line in axes.lines}
    for label, effect in one.claim.figure.items():
        for at, height in zip(*drawn[label].get_data(), strict=True):
            own = values("controlled", effect.moved_to(int(at)))
            assert height == pytest.approx(own.mean())


def test_the_report_tells_our_questions_from_the_papers_and_what_holds_from_what_does_in_part(
    finished,
):
    folder, effects = finished
    found = judged({"alignment": campaign(folder, *effects)})
    verdicts = ("supported", "contradicted", "undecided")
    found = [
        one._replace(finding=one.finding._replace(verdict=verdict))
        for one, verdict in zip(found, verdicts, strict=True)
    ]
    campaigns = {"alignment": found[0].campaign}
    text = report_text(campaigns, found, "the command")
    assert f"**Our own questions. {IN_PART}**" in text
    assert 'exploratory: 1 contradicted, 1 undecided. It stands for: "A claim." (ours)' in text
    theirs = [
        one._replace(claim=dataclasses.replace(one.claim, place="section 3")) for one in found
    ]
    assert f"**{IN_PART}**" in report_text(campaigns, theirs, "the command")
    agreed = [one._replace(finding=found[0].finding) for one in found]
    assert IN_PART not in report_text(campaigns, agreed, "the command")


def test_a_report_that_is_not_made_leaves_the_one_before(finished, monkeypatch):
    folder, effects = finished
    before = reported(folder, *effects)

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("experiments.report.write_json", full)
    with pytest.raises(OSError, match="No space"):
        reported(folder, *effects)
    monkeypatch.undo()
    report = folder / "report"
    assert (report / "report.md").read_text() == before[0]
    assert json.loads((report / "verdicts.json").read_text()) == before[2]
    assert reported(folder, *effects)[2] == before[2]
    assert not (folder / "report.new").exists()


def test_what_is_said_of_untrained_networks_needs_none_that_has_learned(finished):
    folder, effects = finished
    found = campaign(folder, *effects)
    [one, *_] = found.claims["heads"].judgements
    assert not found.learned(one)  # after four steps
    assert found.learned(dataclasses.replace(one, of_untrained=True))
    attacked = StudyReading(FULL, ("success",), None, ("budget=1",), of_attack=True)
    assert found.learned(dataclasses.replace(one, effect=Effect(((1, attacked),))))


def test_who_has_learned_does_so_beyond_another_condition(tmp_path):
    base = tuple(text.replace("reward_noise=[0.0]", "reward_noise=[0.0,1.0]") for text in TINY.base)
    scale = dataclasses.replace(NO_PILOT, base=base)
    of_noise = [refinement_error(FULL, attempts=2, reward_noise=p) for p in (0.0, 1.0)]
    run_all(campaign(tmp_path, *of_noise, scale=scale))

    def learned(beyond, wanted):
        rule = Learned("refinement_error", "1.0", wanted, "words", beyond=beyond, at=2)
        found = campaign(tmp_path, *of_noise, scale=dataclasses.replace(scale, learned=rule))
        return found.learned(found.claims["heads"].judgements[0])

    found = campaign(tmp_path, *of_noise, scale=scale)
    clean, noisy = (float(np.mean(found.values("controlled", effect))) for effect in of_noise)
    for beyond, value in ((None, noisy), ("0.0", noisy - clean), ("1.0", 0.0)):
        assert learned(beyond, above(value - 1e-6))
        assert not learned(beyond, above(value + 1e-6))


def test_a_claim_that_was_registered_after_its_runs_is_said_to_be_late(finished):
    folder, effects = finished
    found = campaign(folder, *effects)
    assert not is_late(found, "heads")
    about = found.registered["heads"]
    found.registered = {"heads": about | {"written": "2999-01-01 00:00:00 UTC"}}
    assert is_late(found, "heads")


def test_what_a_pilot_gives_no_spread_of_keeps_its_seeds_once_registered(tmp_path):
    found = campaign(tmp_path)
    [one] = found.claims["heads"].judgements
    said = {"how": one.how, "prediction": one.prediction, "spread": None, "needed_seeds": None}
    found.registered = {"heads": {"judgements": [said]}}
    assert found._wanted_seeds("heads", one) == TINY.seeds.judged
    said["spread"] = 0.1  # more than any number that was tried would be needed
    assert found._wanted_seeds("heads", one) == TINY.seeds.most


def test_a_damaged_registration_is_said_and_stays(tmp_path):
    (tmp_path / "registered.json").write_text("{")
    with pytest.raises(ConfigError, match="is no JSON"):
        read_registered(tmp_path)
    assert (tmp_path / "registered.json").read_text() == "{"


def test_what_was_registered_says_the_spread_and_the_power_of_the_pilot(finished):
    folder, effects = finished
    found = campaign(folder, *effects)
    about = read_registered(folder)["heads"]["judgements"]
    spread = np.std(found.values("controlled", effects[0], PILOT), ddof=1)
    assert about[0]["spread"] == pytest.approx(spread)
    # The pilot asks for more than the scale affords; the others read the same arm.
    assert [one["seeds"] for one in about] == [3, 3, 3]
    assert about[0]["needed_seeds"] is None or about[0]["needed_seeds"] > 3
    assert 0 <= about[0]["power"] <= 1


def test_a_scale_that_cannot_judge_says_so_and_judges_nothing(finished):
    folder, effects = finished
    text, _, rows = reported(folder, *effects, scale=dataclasses.replace(TINY, judges=False))
    assert "**This scale judges nothing.**" in text
    assert "one run here" not in text
    ignoring = dataclasses.replace(TINY, ignores=("model.width",))
    assert (
        "one run here, whatever their labels say: `model.width`."
        in reported(folder, *effects, scale=ignoring)[0]
    )
    assert {row["reason"] for row in rows} == {"runs of this scale judge nothing"}


def test_seeds_that_another_claim_adds_are_not_judged(finished, monkeypatch):
    folder, effects = finished
    before = judged({"alignment": campaign(folder, *effects)})
    found = campaign(folder, *effects)
    values, more = found.values, np.array([100.0, 200.0])

    def of_more_seeds(how, effect, stage=JUDGED):
        own = values(how, effect, stage)
        return np.append(own, more) if stage == JUDGED else own

    monkeypatch.setattr(found, "values", of_more_seeds)
    for one, other in zip(before, judged({"alignment": found}), strict=True):
        np.testing.assert_array_equal(one.values, other.values)


def test_a_registered_claim_is_another_one_among_more_judgements(finished):
    folder, effects = finished
    found = campaign(folder, *effects)
    assert not any(map(is_changed, judged({"alignment": found})))
    more = {True: found.families[True], False: Family(0.01, 50)}
    found = Campaign(found.claims, TINY, folder, OFF, more, read_registered(folder))
    assert all(map(is_changed, judged({"alignment": found})))


def test_a_new_claim_whose_pilot_fails_leaves_the_others_judged(tmp_path, monkeypatch):
    new, old, kept = (
        SimpleNamespace(is_piloted=p, missing_jobs=lambda *_: ["job"]) for p in (0, 1, 1)
    )
    found = {"alignment": new, "dialogue": old}
    reported = []

    def campaigns_of(names, *_):
        return dict(found) if names else {"alignment": kept}

    def write(campaigns, *_):
        reported.append(campaigns)
        return tmp_path / "index.html"

    monkeypatch.setattr("experiments.__main__.campaigns_of", campaigns_of)
    monkeypatch.setattr("experiments.engine.run_jobs", lambda *_: ["job"])
    monkeypatch.setattr("experiments.report.write_report", write)
    options = CampaignOptions(scale="smoke", folder=str(tmp_path), wandb=OFF)
    every = {"alignment": {"heads": claim(regret(ONE, **AT))}}
    status = run_campaigns(("heads",), every, {}, options, "", None)
    assert status == 1
    assert reported == [{"alignment": kept, "dialogue": old}]


def test_what_is_checked_is_of_the_folders_scale(tmp_path):
    write_json(tmp_path / "seeds.json", {"scale": "smoke"})
    (tmp_path / "report").mkdir()
    write_json(tmp_path / "report" / "verdicts.json", [])
    options = CampaignOptions(scale="small", folder=str(tmp_path))
    with pytest.raises(ConfigError, match="is a campaign of scale=smoke"):
        check_report({}, {}, options)


def test_a_missing_run_is_said_and_does_not_stop_the_report(tmp_path):
    text, page, rows = reported(tmp_path)
    assert "a run is missing" in text
    assert "missing" in page
    assert [row["effect"] for row in rows] == [None]


def test_a_prediction_that_was_changed_after_the_first_run_is_said(tmp_path):
    before = campaign(tmp_path, scale=NO_PILOT)
    other = regret(FULL, **AT)
    after = campaign(tmp_path, other, scale=NO_PILOT)
    register(before)
    register(after)  # changes nothing any more
    assert "changed since" not in reported(tmp_path, scale=NO_PILOT)[0]
    text, _, rows = reported(tmp_path, other, scale=NO_PILOT)
    assert "except for heads" in text and "**changed since**" in text
    assert rows[0]["changed_since"]


def test_a_job_that_fails_is_reported_and_repaired_by_running_again(tmp_path, capfd):
    found = campaign(tmp_path, scale=NO_PILOT)
    broken = next(iter(found.runs.values())).folder
    broken.parent.mkdir(parents=True)
    broken.write_text("a file where a folder should be")
    for job in found.missing_jobs(16):
        job.write()
        if broken in [run.folder for run in job.runs]:
            run_job(job.file, lambda: False)
            assert "exit status" in capfd.readouterr().err
        else:
            job_module.run(job.file, time.time())
    (failed,) = tmp_path.glob("jobs/*.failed")
    assert failed.with_suffix(".log").read_text()
    assert sum(run.finished() for run in found.runs.values()) == 1  # the other job went on
    broken.unlink()
    run_all(campaign(tmp_path, scale=NO_PILOT))
    assert campaign(tmp_path, scale=NO_PILOT).missing_jobs(16) == []


def start_toy(toy, folder, *options, **how):
    """A campaign of the toy world, in processes."""
    options = [*options, "num_seeds=2", "seed=3", f"folder={folder}", "wandb.mode=disabled"]
    return start("world=toy", *options, module="experiments", cwd=toy, env_path=toy, **how)


# Many checkpoints: there is time to stop it.
LONG = ["line", "scale=long"]


@pytest.mark.slow
def test_a_killed_campaign_goes_on_and_gives_the_same(toy, tmp_path):
    folder = tmp_path / "killed"
    process = start_toy(toy, folder, *LONG)
    wait_for(lambda: any(saved_steps(run) for run in folder.glob("runs/*")), process)
    process.kill()
    process.communicate()
    jobs = {str(job) for job in folder.glob("jobs/*.json")}
    wait_for(lambda: not _processes_of(jobs))  # they save and stop by themselves
    status, out, err = finish(start_toy(toy, folder, *LONG))
    assert status == 0, err
    assert "report: " in out
    logs = "".join(log.read_text() for log in folder.glob("jobs/*.log"))
    assert "going on at step" in logs
    rows = json.loads((folder / "report" / "verdicts.json").read_text())
    assert [row["claim"] for row in rows] == ["line"]
    assert all(np.isfinite(row["effect"]) for row in rows)
    status, out, err = finish(start_toy(toy, folder, *LONG))
    assert status == 0
    assert "jobs" not in err  # nothing was left to do
    assert json.loads((folder / "report" / "verdicts.json").read_text()) == rows
    check = ["check", "scale=long", f"folder={folder}", "wandb.mode=disabled"]
    status, out, err = finish(start(*check, module="experiments", cwd=toy, env_path=toy))
    assert status == 0, err
    assert "is that of the run folders" in out


def _processes_of(files):
    lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [line for line in lines if set(line) & files]


@pytest.mark.parametrize(
    ("number", "options", "jobs"),
    [
        (signal.SIGINT, ["line"], 1),
        (signal.SIGTERM, ["two_sizes", "jobs_at_once=2"], 2),
        (signal.SIGTERM, ["line", "-m", "hydra/launcher=processes"], 1),
    ],
)
def test_a_campaign_that_is_told_to_stop_saves_first(
    toy, tmp_path, monkeypatch, number, options, jobs
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # its shares are not those of another campaign
    process = start_toy(toy, tmp_path, "scale=long", *options)
    # A row: before the first step there is nothing to save.
    metrics = lambda: tmp_path.glob("runs/*/metrics.jsonl")  # noqa: E731
    wait_for(lambda: sum(bool(read_rows(path)) for path in metrics()) == jobs, process)
    process.send_signal(number)
    status, _, err = finish(process)
    assert status == 128 + number
    assert "Traceback" not in err
    if "-m" not in options:  # a launcher's jobs are stopped beside it, and say so
        assert "exit status" not in err
        assert not [*tmp_path.glob("jobs/*.failed")]
    logs = [log.read_text() for log in tmp_path.glob("jobs/*.log")]
    assert len(logs) == jobs
    for log in logs:
        assert "stopped by SIGTERM" in log
        assert "which is saved" in log
    assert all(saved_steps(run) for run in tmp_path.glob("runs/*"))


def test_a_campaign_goes_on_through_a_signal_that_was_ignored_at_its_start(toy, tmp_path):
    process = start_toy(toy, tmp_path, "two_sizes", ignoring=True)
    wait_for(lambda: any(tmp_path.glob("runs/*/metrics.jsonl")), process)
    process.send_signal(signal.SIGINT)
    wait_for(lambda: len(list(tmp_path.glob("runs/*/metrics.jsonl"))) > 1, process)  # it goes on
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] in (0, 128 + signal.SIGTERM)


def test_jobs_side_by_side_have_each_its_share_and_all_are_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)  # asked for anew
    both, shares = threading.Barrier(2), []

    class Process(subprocess.Popen):
        """Of a job that ends once the other one has begun too."""

        def __init__(self, command, env=None, **_):
            shares.append(os.sched_getaffinity(0))

        def wait(self, timeout=None):
            both.wait(60.0)
            return 0

    monkeypatch.setattr("subprocess.Popen", Process)
    found = campaign(tmp_path, scale=dataclasses.replace(NO_PILOT, jobs_at_once=2))
    jobs = found.missing_jobs(1)[:2]
    assert run_jobs(found, jobs, None) == jobs  # they have left nothing
    halves = [divide(slot, 2, sorted(os.sched_getaffinity(0)), []).cores for slot in range(2)]
    assert sorted(map(sorted, shares)) == sorted(map(sorted, halves))


@pytest.mark.slow
def test_a_narrower_campaign_trains_nothing_and_reports_what_the_folder_has(toy, tmp_path):
    reports = []
    for name in ("two_sizes", "line"):
        status, _, err = finish(start_toy(toy, tmp_path, name))
        assert status == 0, err
        rows = json.loads((tmp_path / "report" / "verdicts.json").read_text())
        reports.append({row["claim"]: row["effect"] for row in rows})
    assert reports[1].items() > reports[0].items() and [*reports[1]] == ["line", "two_sizes"]
    assert len([*tmp_path.glob("runs/*")]) == 2
    assert "runs" not in err  # nothing was left to do


def test_runs_that_have_come_equally_far_go_on_together_and_the_others_apart(tmp_path, capsys):
    found = campaign(tmp_path)
    (first, *_) = found.missing_jobs(1)
    first.write()
    job_module.run(first.file, time.time())
    capsys.readouterr()
    config = first.runs[0].folder / CONFIG
    os.utime(config, (1.0, 1.0))
    (first.runs[0].folder / "curves.json").unlink()
    (job, _) = found.missing_jobs(16)
    assert len(job.runs) == 2
    job.write()
    job_module.run(job.file, time.time())
    out = capsys.readouterr().out
    assert "training was finished earlier" in out
    assert out.count("trained 4 steps") == 1
    assert all(run.finished() for run in job.runs)
    assert config.stat().st_mtime == 1.0  # when it was begun


# --------------------------------------------------------------------------------------- the command


def test_without_arguments_the_claims_are_listed():
    status, out, _ = finish(start(module="experiments"))
    assert status == 0
    assert "One head is worst" in out
    assert "Wang et al. (2024)" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["head"], ["claim=head", "did you mean heads"]),
        (["chek", "scale=small"], ["claim=chek", "did you mean check"]),
        (["heads", "scale=huge"], ["scale=huge", "smoke, small, paper"]),
        (["scale=smoke"], ["claim=", "name some of"]),
        (["heads", "hydra/launcher=joblib"], ["need -m"]),
        (["heads", "jobs_at_once=2", "-m"], ["jobs_at_once=2", "a launcher"]),
        (["heads", "num_seed=3"], ["num_seed=3"]),
        (["check", "scale=smoke"], ["campaigns/smoke", "holds no report"]),
        (["check", "heads"], ["claim=heads", "check is of all"]),
        (["pack", "world=alignment"], ["claim=world=alignment", "pack is of all"]),
        (["heads", "seed=50"], ["seed=50", "the pilot has seeds 50 to 53"]),
        (["heads", "pilot_seeds=60"], ["50 to 109", "100 to 131 are judged", "fewer pilot_seeds="]),
        (["heads", "num_seeds=1"], ["num_seeds=1"]),
        (["heads", "-m", "hydra/sweeper=learning_rate"], ["hydra/sweeper=learning_rate"]),
        (["heads", "-m", "hydra/launcher=nix"], ["hydra/launcher=nix", "processes"]),
    ],
)
def test_a_wrong_argument_ends_in_one_line(tmp_path, arguments, words):
    status, _, err = finish(start(*arguments, module="experiments", cwd=tmp_path))
    assert status == 2
    assert len(err.splitlines()) == 1
    assert all(word in err for word in words)
    assert not list(tmp_path.iterdir())


def test_the_page_shows_what_the_text_says(tmp_path):
    page = page_of(
        "# A\n\n| a | b |\n| --- | --- |\n| 1 | **supported** |\n\n## reward noise\n", tmp_path
    )
    assert '<strong class="supported">supported</strong>' in page
    assert '<h2 id="reward-noise">reward noise</h2>' in page
