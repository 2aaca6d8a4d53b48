"""Whole runs of the dialogue world: what they leave, and that a kill changes nothing."""

import json
import signal

import numpy as np
import pytest

import icl_align
from icl_align.config import ConfigError
from icl_align.dialogue.options import PLANS, QUANTITIES, READERS, Options
from icl_align.running.comparison import curves_figure, runs_in
from icl_align.running.compose import compose_config
from icl_align.running.loop import Start
from icl_align.running.metrics_file import read_rows
from icl_align.running.reevaluation import evaluation_config
from icl_align.running.run import run, run_together
from icl_align.running.workspace import build_workspace, dashboard_options
from runs import OFF, finish, saved_steps, start, training_rows, wait_for

NO_STUDY = "evaluation.concept=false"
SMALL = ["world=dialogue", "+scale=smoke", "evaluation.num_contexts=16", OFF]
TINY = [*SMALL, "task.rounds=3", NO_STUDY]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two seeds."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(compose_config([*TINY, "num_seeds=2", "train.log_every=5"]), folder)
    return folder


def test_a_run_leaves_readers_by_plan_and_quantity(whole):
    curves = json.loads((whole / "curves.json").read_text())
    assert curves["rounds"] == [0, 1, 2]
    assert list(curves["readers"]) == list(READERS)
    for of_reader in curves["readers"].values():
        assert list(of_reader) == list(PLANS)
        for of_plan in of_reader.values():
            assert list(of_plan) == list(QUANTITIES)
            for curve in of_plan.values():
                low, mean, high = (np.array(curve[key]) for key in ("low", "mean", "high"))
                assert low.shape == (3,)
                assert (low <= mean + 1e-9).all() and (mean <= high + 1e-9).all()
    of_seeds = curves["readers"]["language_model"]["careful"]["calibration_error"]["by_seed"]
    assert np.shape(of_seeds) == (2, 3)
    for plan in PLANS:
        excess = curves["readers"]["exact"][plan]["excess_loss"]["mean"]
        np.testing.assert_allclose(excess, 0, atol=1e-5)
    assert (whole / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert len([row for row in training_rows(whole) if "train/loss" in row]) == 4


def test_without_a_study_there_are_no_files_of_one(whole):
    assert not list(whole.glob("concept.*"))
    assert icl_align.load(whole).study is None


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """A run with a study."""
    folder = tmp_path_factory.mktemp("studied") / "run"
    outcome = run(compose_config([*SMALL, "task.rounds=5", "evaluation.plan=[careful]"]), folder)
    return folder, outcome


def numbers(value):
    """All numbers of nested JSON."""
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from numbers(one)
    elif not isinstance(value, str | None | bool):
        yield value


def test_a_study_is_left_beside_the_curves(studied):
    folder, _ = studied
    found = json.loads((folder / "concept.json").read_text())
    assert np.isfinite(list(numbers(found))).all()
    for name in ("probe", "shift", "steering", "read", "differences", "convergence",
                 "prediction", "immoral", "laws"):  # fmt: skip
        assert found[name], name
    for of in found["shift"].values():
        assert list(of) == ["careful", "careless"]
        assert np.shape(of["careful"]["cosine_pattern"]["mean"]) == (2, 5)
    assert list(found["shift"]) == ["trained", "untrained"]
    assert found["by_question"] is None  # no question of this kind is ambiguous
    assert set(found["differences"]["language_model"]) == {"careful", "immoral"}
    assert np.shape(found["probe"]["trained"]["mean"]) == (2, 5)  # layers, rounds
    assert (folder / "concept.png").read_bytes()[:4] == b"\x89PNG"
    loaded = icl_align.load(folder)
    assert loaded.study == found
    assert loaded.changed(lambda params: params).study is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["task=ambiguous_bias", "task.rounds=1", "evaluation.num_contexts=32"],
        ["task=detoxification", "task.rounds=2", "evaluation.drafts=4"],
        ["+ablation=no_causal_mask", "task.rounds=2", "task.prior=[0.2,0.3,0.5]"],
    ],
    ids=str,
)
def test_a_study_is_made_of_other_kinds_few_rounds_and_other_networks(overrides, tmp_path):
    run(compose_config([*SMALL, *overrides, "evaluation.plan=[careful]"]), tmp_path / "run")
    found = icl_align.load(tmp_path / "run").study
    assert np.isfinite(list(numbers(found))).all()
    assert (found["by_question"] is not None) == (overrides[0] == "task=ambiguous_bias")
    assert found["laws"] is None
    assert found["immoral"] is None


def test_a_damaged_study_is_made_again_the_same_and_nothing_else_is(studied, capsys):
    folder, _ = studied
    before = {name: (folder / name).read_bytes() for name in ("concept.json", "curves.json")}
    (folder / "concept.json").write_bytes(before["concept.json"][:1000])
    run(compose_config([*SMALL, "task.rounds=5", "evaluation.plan=[careful]"]), folder)
    assert "concept.json is no JSON; it was cut off or overwritten; it is made again" in " ".join(
        capsys.readouterr().err.split()
    )
    for name, content in before.items():
        assert (folder / name).read_bytes() == content, name


@pytest.mark.slow
def test_configurations_that_differ_in_numbers_train_as_one_program(tmp_path):
    configs = [compose_config([*TINY, f"task.hazard={hazard}"]) for hazard in (0.0, 0.5)]
    together = [(one, tmp_path / str(n), Start()) for n, one in enumerate(configs)]
    run_together(together)
    run(configs[1], tmp_path / "alone")
    both = [tmp_path / name for name in ("1", "alone")]
    losses = [
        [row["train/loss"] for row in training_rows(one) if "train/loss" in row] for one in both
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    exact = [icl_align.load(one).curves["readers"]["exact"] for one in both]
    assert exact[0] == exact[1]
    other = icl_align.load(tmp_path / "0").curves["readers"]["exact"]
    assert other != exact[0]


def test_the_dashboard_shows_readers_by_round_and_plan(whole):
    measures = Options.measures
    options = dashboard_options("dialogue")(entity="me", world="dialogue")
    workspace = build_workspace(options)
    lines = workspace.sections[1].panels
    assert {panel.x for panel in lines} == {"rounds"}
    names = {name for panel in lines for name in panel.y}
    rows = [row for row in read_rows(whole / "metrics.jsonl") if "rounds" in row]
    assert names <= set(rows[0])
    assert len(lines) == 2 * len(measures.quantities)


def test_its_quantities_are_compared_in_rows_of_four(whole):
    panels = curves_figure(runs_in([whole]), "careful").axes
    assert len(panels) == len(QUANTITIES)
    assert [axes.get_subplotspec().colspan.start for axes in panels[:6]] == [0, 1, 2, 3, 0, 1]
    assert all(axes.lines for axes in panels)


def test_from_python_it_reads_tokens_of_ones_own(whole):
    loaded = icl_align.load(whole)
    tokens = icl_align.sample(loaded.config, num_contexts=3)
    logits = loaded.predict(tokens, seed=1)
    assert logits.shape[:2] == tokens.shape
    np.testing.assert_array_equal(loaded.read(tokens, seed=1), logits)
    rows = icl_align.learners(loaded.config)["exact"](tokens)
    assert rows.shape == logits.shape


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_as_if_it_had_not_been(tmp_path):
    long = [*TINY, "train.steps=60", "train.checkpoint_every=10", "train.log_every=3"]
    folders = [tmp_path / name for name in ("whole", "killed")]
    status, _, err = finish(start(*long, f"hydra.run.dir={folders[0]}"))
    assert status == 0, err
    process = start(*long, f"hydra.run.dir={folders[1]}")
    wait_for(lambda: saved_steps(folders[1]), process)
    process.send_signal(signal.SIGKILL)
    finish(process)
    status, _, err = finish(start(f"hydra.run.dir={folders[1]}"))
    assert status == 0, err
    assert training_rows(folders[0]) == training_rows(folders[1])
    whole, killed = (json.loads((one / "curves.json").read_text()) for one in folders)
    assert whole == killed


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task.prior=[0.5]"], "task.prior=[0.5]: needs two concepts at least"),
        (["task.prior=[0.5,0.6]"], "must sum to 1"),
        (["task.critic_accuracy=[0.5,0.6,0.7]"], "must be one number, or one for each of 2"),
        (["task.name=riddles"], "must be one of social_bias"),
        (["evaluation.plan=[careful,nice]"], "must be a list of some of careful"),
        (["evaluation.kind=detoxification"], "must be of task.name=social_bias"),
        (["evaluation.immoral_at=[0]"], "must be a list of whole numbers, at least 1"),
        (["+ablation=no_reward"], "is not of world=dialogue"),
        (["loss=squared"], "world=dialogue has no loss"),
        (["task=shared_corruption"], "is not of world=dialogue"),
    ],
    ids=str,
)
def test_a_wrong_option_is_named_with_what_is_allowed(overrides, words):
    with pytest.raises(ConfigError) as error:
        compose_config(["world=dialogue", *overrides])
    assert words in str(error.value)


def test_it_is_evaluated_in_other_worlds_and_checks_itself(whole):
    careful = "evaluation.plan=[careful]"
    base = icl_align.load(whole).curves["readers"]
    other, alone = (
        icl_align.evaluate(whole, careful, *overrides)["readers"]
        for overrides in (
            ["task.hazard=0.5", "task.critic_accuracy=[0.5]", "task.rounds=2"],
            ["evaluation.critic=self"],
        )
    )
    of = [one["exact"]["careful"]["accuracy"]["mean"] for one in (base, other, alone)]
    assert of[0][:2] != of[1]
    assert len(of[1]) == 2
    # The exact reader knows what is right, so it checks itself as the critic does.
    assert of[0] == of[2]
    of = [one["language_model"]["careful"]["uncertainty"]["mean"] for one in (base, alone)]
    assert of[0] != of[1]


def test_more_rounds_than_were_trained_on_need_a_run_without_positions():
    trained = compose_config(["world=dialogue"])
    with pytest.raises(ConfigError, match=r"task.rounds=10: must be at most 8, .*positions=false"):
        evaluation_config(trained, ["task.rounds=10"])
    without = compose_config(["world=dialogue", "+ablation=no_positions"])
    assert evaluation_config(without, ["task.rounds=10"]).task.rounds == 10
    with pytest.raises(ConfigError, match="must have 2 concepts, as trained"):
        evaluation_config(trained, ["task.prior=[0.2,0.3,0.5]"])
    with pytest.raises(ConfigError, match="task=ambiguous_bias: fixed by the trained run"):
        evaluation_config(trained, ["task=ambiguous_bias"])
