"""Runs side by side: which options differ, in which order, and that the numbers are the curves'."""

import json
import re
import shutil

import pytest
from omegaconf import OmegaConf

import icl_align
from icl_align.config import ConfigError
from icl_align.running.comparison import curves_figure, differing_options, label, runs_in, table
from icl_align.running.run import run
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
    assert header == ["run", "model.num_heads", "refinement error", "regret", "agreement", "seeds"]
    curve = json.loads((sweep / "2" / "curves.json").read_text())["learners"]["transformer"]["0.0"]
    half = (curve["regret"]["high"][4] - curve["regret"]["low"][4]) / 2
    assert rows[1][3] == f"{curve['regret']['mean'][4]:z.3f} ± {half:.3f}"
    assert rows[1][:2] == ["2", "1"]
    assert rows[1][1:] == rows[2][1:]
    assert rows[3] == ["11", "1", "–", "–", "–", "1"]
    assert icl_align.compare(sweep) == (header, rows)
    _, _, at_two = table(runs_in([sweep]), at=2, condition="1.0")
    assert at_two[0][2:] != rows[0][2:]


def test_what_no_run_has_is_one_error(sweep, tmp_path):
    with pytest.raises(ConfigError, match="no run has curves"):
        table(runs_in([sweep]), condition="0.3")
    with pytest.raises(ConfigError, match="no run has curves"):
        table(runs_in([sweep]), at=9)
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
    [(["nothing"], "folder=nothing: no such"), (["at=3"], "name folders"),
     ([".", "figure=a.gif"], "must end in .png"), ([".", "width=3"], "no such option")],
)  # fmt: skip
def test_a_wrong_argument_is_one_line(tmp_path, arguments, words):
    status, _, err = finish(start(*arguments, module="icl_align.compare", cwd=tmp_path))
    assert status == 2
    assert len(err.splitlines()) == 1
    assert words in err
