"""More steps than a run was trained for: what the new run takes over, and what stays as it was."""

import hashlib
import re
import shutil

import jax
import numpy as np
import pytest

from icl_align.config import ConfigError
from icl_align.running.checkpoints import Checkpoints
from icl_align.running.cli import _with_absolute_extend
from icl_align.running.errors import RunError
from icl_align.running.loop import Start
from icl_align.running.new_folder import command_to_extend
from icl_align.running.run import run
from icl_align.running.training import init_state, learning_rate_schedule
from runs import tiny, training_rows, wandb_records

CONSTANT = ["train.schedule=constant", "train.warmup_fraction=0.0", "train.log_every=2"]


def contents(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def final_state(folder, config):
    return Checkpoints(folder / "checkpoints", read_only=True).restore_newest(init_state(config))


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A finished run of 20 steps at a constant learning rate."""
    folder = tmp_path_factory.mktemp("short") / "run"
    run(tiny(*CONSTANT), folder)
    return folder


def longer(short, *overrides):
    return tiny(*CONSTANT, f"extend={short}", "train.steps=31", *overrides)


def test_at_a_constant_rate_an_extended_run_is_the_longer_run(short, tmp_path):
    before = contents(short)
    run(longer(short), tmp_path / "extended")
    config = tiny(*CONSTANT, "train.steps=31")
    run(config, tmp_path / "whole")
    (step, state), (_, expected) = (
        final_state(tmp_path / name, config) for name in ("extended", "whole")
    )
    assert step == 31
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    # The short run's last row has a step of its own, 20, which the longer run logs too.
    assert training_rows(tmp_path / "extended") == training_rows(tmp_path / "whole")
    assert contents(short) == before


def test_the_schedule_is_that_of_all_steps_and_the_rest_goes_on_without_the_old_folder(
    short, tmp_path, monkeypatch
):
    source = shutil.copytree(short, tmp_path / "source")
    schedule = ["train.schedule=cosine", "train.warmup_fraction=0.5"]
    config, start = longer(source, *schedule), Start(overrides=schedule)

    def fails(*_):
        raise RunError("stopped before its first step")

    with monkeypatch.context() as patched:
        patched.setattr("icl_align.running.run.train", fails)
        with pytest.raises(RunError, match="stopped"):
            run(config, tmp_path / "run", start)
    shutil.rmtree(source)
    run(config, tmp_path / "run")
    rate = learning_rate_schedule(config.train)
    rows = [row for row in training_rows(tmp_path / "run") if "train/loss" in row]
    assert [row["step"] for row in rows] == [*range(2, 31, 2), 31]
    for row in rows:
        expected = rate(row["step"] - 1) if row["step"] > 20 else config.train.learning_rate
        assert row["train/learning_rate"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["train.steps=20"], "train.steps=20: must be above 20, which extend="),
        (["model.width=32"], r"model.width=32: fixed by extend=.* \(16 there\); .* train\.\*"),
        (["seed=7"], "seed=7: fixed by extend="),
    ],
)
def test_what_cannot_be_extended_is_refused_and_leaves_no_folder(
    overrides, message, short, tmp_path
):
    with pytest.raises(ConfigError, match=message):
        run(longer(short, *overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_run_cannot_be_extended(tmp_path):
    with pytest.raises(ConfigError, match=r"extend=.*: must be the folder of a run"):
        run(tiny(f"extend={tmp_path}"), tmp_path / "run")


def test_more_steps_in_the_same_folder_are_refused_with_the_command_that_extends(short):
    with pytest.raises(RunError, match=re.escape(command_to_extend(short, 31))):
        run(tiny(*CONSTANT, "train.steps=31"), short)


def test_the_history_of_an_extended_run_is_whole_in_wandb(short, tmp_path):
    config = longer(short, "wandb.mode=offline")
    run(config, tmp_path / "run", Start(overrides=["wandb.mode=offline"]))
    steps = [
        int(items["_step"])
        for record in wandb_records(tmp_path / "run")
        if "train/loss"
        in (
            items := {
                item.key or "/".join(item.nested_key): item.value_json
                for item in record.history.item
            }
        )
    ]
    assert steps == [*range(2, 31, 2), 31]


def test_the_name_of_the_extended_run_holds_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _with_absolute_extend(["extend=a", "seed=1"]) == [f"extend={tmp_path}/a", "seed=1"]
    assert _with_absolute_extend(["extend=null"]) == ["extend=null"]
