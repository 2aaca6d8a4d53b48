import json

import pytest

import icl_align
from icl_align.config import ConfigError
from icl_align.running.compose import check_figure
from icl_align.running.reevaluation import evaluate_again
from icl_align.running.run import run
from icl_align.running.terminal import Terminal
from runs import finish, start, tiny


def test_the_command_evaluates_a_finished_run_again(tmp_path):
    folder = tmp_path / "run"
    run(tiny("train.steps=2"), folder)
    first = (folder / "curves.json").read_text()
    evaluate_again(folder, [], Terminal())
    assert (folder / "curves.json").read_text() == first
    status, out, err = finish(
        start(
            f"run_dir={folder}",
            "task=independent_corruption",
            "evaluation.reward_noise=[0.1]",
            "evaluation.num_contexts=12",
            module="icl_align.evaluate",
        )
    )
    assert status == 0, err
    assert "agreement after 4 attempts, by reward noise" in out
    (other,) = folder.glob("evaluations/*/curves.json")  # one folder, named after the overrides
    curves = json.loads(other.read_text())
    assert list(curves["learners"]["transformer"]) == ["0.1"]
    assert curves["num_contexts"] == 12
    assert (other.parent / "curves.png").exists()
    assert (folder / "curves.json").read_text() == first
    status, _, err = finish(start(f"run_dir={tmp_path}/none", module="icl_align.evaluate"))
    assert status == 2
    assert len(err.splitlines()) == 1


FIRST_BYTES = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}


def test_a_figure_is_drawn_in_any_format_and_nothing_is_computed_again(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    run(tiny("train.steps=2"), folder)
    assert icl_align.load(folder).figure().axes
    with monkeypatch.context() as patched:
        patched.delattr("icl_align.running.reevaluation.compute_curves")
        for suffix, begins in FIRST_BYTES.items():
            figure = tmp_path / f"figure{suffix}"
            evaluate_again(folder, [], Terminal(), figure=figure)
            assert figure.read_bytes().startswith(begins)
    other = tmp_path / "other.svg"
    evaluate_again(folder, ["evaluation.reward_noise=[0.1]"], Terminal(), figure=other)
    assert other.exists()
    assert len(list(folder.glob("evaluations/*/curves.json"))) == 1
    with pytest.raises(ConfigError, match=r"figure=x\.gif: must end in \.png, \.pdf, \.svg"):
        check_figure("figure", "x.gif")
