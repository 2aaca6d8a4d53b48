"""Runs side by side: which options differ, in which order, and that the numbers are the curves'."""

import json
import re
import shutil

import pytest
from omegaconf import OmegaConf

import icl_align
from icl_align.config import ConfigError
from icl_align.running.comparison import curves_figure, differing_options, label, runs_in, table
from icl_align.running.loop import Start
from icl_align.running.reevaluation import evaluate_again
from icl_align.running.run import run
from icl_align.running.terminal import Terminal
from runs import finish, start, tiny


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Runs 0, 2 and 10, which differ in their heads, and one that was not evaluated."""
    folder = tmp_path_factory.mktemp("sweep")
    for name, heads in (("0", 2), ("2", 1)):
        run(tiny("train.steps=2", f"model.num_heads={heads}"), folder / name)
        overrides = [] if name == "0" else ["+ablation=single_head"]
        OmegaConf.save(overrides, folder / name / ".hydra" / "overrides.yaml")
    for name in ("10", "11"):
        shutil.copytree(folder / "2", folder / name)
    (folder / "11" / "curves.json").unlink()
    return folder


def test_a_sweep_is_its_runs_in_the_order_of_their_numbers(sweep):
    runs = runs_in([sweep])
    assert [one.folder.name for one in runs] == ["0", "2", "10", "11"]
    assert runs_in([sweep / "2", sweep])[0].folder.name == "2"
    assert len(runs_in([sweep / "2", sweep])) == 4
    assert differing_options(runs) == ["model.num_heads"]
    assert label(runs[0], ["model.num_heads"]) == "model.num_heads=2"
    assert label(runs[0], []) == "0"


def test_the_numbers_are_those_of_the_curves(sweep):
    title, header, rows = table(runs_in([sweep]))
    assert title == "transformer, after 4 attempts, reward noise 0.0"
    numbers = ["refinement error", "regret", "agreement"]
    assert header == ["run", "ablation", "model.num_heads", *numbers, "seeds"]
    curve = json.loads((sweep / "2" / "curves.json").read_text())["learners"]["transformer"]["0.0"]
    half = (curve["regret"]["high"][4] - curve["regret"]["low"][4]) / 2
    assert rows[1][4] == f"{curve['regret']['mean'][4]:z.3f} ± {half:.3f}"
    assert rows[0][:3] == ["0", "–", "2"]
    assert rows[1][:3] == ["2", "single_head", "1"]
    assert rows[1][1:] == rows[2][1:]
    assert rows[3] == ["11", "single_head", "1", "–", "–", "–", "1"]
    assert icl_align.compare(sweep) == (header, rows)
    _, _, at_two = table(runs_in([sweep]), at=2, condition="1.0")
    assert at_two[0][3:] != rows[0][3:]


def test_what_no_run_has_is_one_error(sweep, tmp_path):
    with pytest.raises(ConfigError, match="no run here is evaluated"):
        table(runs_in([sweep / "11"]))
    with pytest.raises(ConfigError, match="holds no run"):
        runs_in([tmp_path])


def test_the_figure_has_a_line_for_each_run_that_has_curves(sweep):
    figure = curves_figure(runs_in([sweep]))
    assert [len(axes.lines) for axes in figure.axes] == [3, 3, 3]


@pytest.mark.parametrize(
    ("suffix", "begins"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")]
)
def test_the_command_prints_the_table_and_draws(sweep, tmp_path, suffix, begins):
    picture = tmp_path / f"picture.{suffix}"
    status, out, err = finish(start(str(sweep), f"figure={picture}", module="icl_align.compare"))
    assert (status, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[3:7]] == ["0", "2", "10", "11"]
    assert picture.read_bytes().startswith(begins)


def test_ablations_are_named_and_the_base_comes_first(sweep):
    shutil.copytree(sweep / "0", sweep / "12")
    try:
        status, out, err = finish(start(str(sweep), module="experiments.ablations"))
    finally:
        shutil.rmtree(sweep / "12")
    assert (status, err) == (0, "")
    names = re.findall(r"^\| `(.*?)`", out, re.M)
    assert names == ["none", "none", "single_head", "single_head", "single_head"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["nothing"], "RUN=nothing: no such"), (["at=3"], "name folders"),
     ([".", "figure=a.gif"], "must end in .png"), ([".", "width=3"], "no such option")],
)  # fmt: skip
def test_a_wrong_argument_is_one_line(tmp_path, arguments, words):
    status, _, err = finish(start(*arguments, module="icl_align.compare", cwd=tmp_path))
    assert status == 2
    assert len(err.splitlines()) == 1
    assert words in err


def test_ablations_are_named_and_so_is_the_base(tmp_path):
    for name in ("none", "no_mlp"):
        folder = tmp_path / name
        run(tiny(f"+ablation={name}", "train.steps=2"), folder, Start([f"+ablation={name}"], {}))
    _, header, rows = table(runs_in([tmp_path]))
    assert header[:3] == ["run", "ablation", "model.mlp"]
    assert [row[:3] for row in rows] == [["no_mlp", "no_mlp", "false"], ["none", "none", "true"]]


def test_an_evaluation_in_a_folder_of_its_own_is_compared_under_its_options(tmp_path):
    folder = tmp_path / "run"
    run(tiny("train.steps=2"), folder)
    evaluate_again(folder, ["task.reward_transform=power"], Terminal())
    [other] = (folder / "evaluations").iterdir()
    _, header, rows = table(runs_in([folder, other]))
    assert header[1] == "task.reward_transform"
    assert [row[1] for row in rows] == ["identity", "power"]


def test_what_cannot_be_compared_is_said(sweep):
    runs = runs_in([sweep])
    with pytest.raises(ConfigError, match="at=99: must be on the axis: 0 to 4 attempts"):
        table(runs, at=99)
    with pytest.raises(ConfigError, match=r"condition=7: must be one of 0\.0, 1\.0"):
        table(runs, condition="7")
    with pytest.raises(ConfigError, match="name folders of runs"):
        runs_in([])
