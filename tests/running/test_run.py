"""Whole runs: what they leave, and that nothing stops them for good."""

import functools
import json
import shutil
import signal

import jax
import numpy as np
import pytest
from omegaconf import OmegaConf

from icl_align.alignment.options import LEARNERS, QUANTITIES, Options
from icl_align.config import ConfigError
from icl_align.running.checkpoints import Checkpoints
from icl_align.running.compose import compose_config
from icl_align.running.errors import RunError
from icl_align.running.loop import Start
from icl_align.running.reevaluation import evaluate_again
from icl_align.running.run import run
from icl_align.running.run_folder import config_to_go_on_with, saved_config, sole_user_of
from icl_align.running.terminal import Terminal
from icl_align.running.training import init_state
from runs import OFF, TINY, finish, saved_steps, start, tiny, training_rows, wait_for

TOY = ["world=toy", OFF, "evaluation.num_contexts=8"]
LONG = ["train.steps=60", "train.checkpoint_every=10", "train.log_every=3"]


def final_state(folder, config):
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    return checkpoints.restore_newest(init_state(config))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of LONG, and its configuration."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    config = tiny(*LONG)
    run(config, folder)
    return folder, config


def assert_same_run(folder, whole):
    expected_folder, config = whole
    (step, state), (expected_step, expected) = (
        final_state(folder, config),
        final_state(expected_folder, config),
    )
    assert step == expected_step == config.train.steps
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    assert training_rows(folder) == training_rows(expected_folder)
    assert json.loads((folder / "curves.json").read_text()) == json.loads(
        (expected_folder / "curves.json").read_text()
    )


def test_a_run_leaves_what_was_promised(whole):
    folder, config = whole
    curves = json.loads((folder / "curves.json").read_text())
    assert curves["attempts"] == [0, 1, 2, 3, 4]
    assert list(curves["learners"]) == list(LEARNERS)
    for levels in curves["learners"].values():
        assert list(levels) == ["0.0", "1.0"]
        for quantities in levels.values():
            assert set(quantities) == set(QUANTITIES)
            for curve in quantities.values():
                assert len(curve["mean"]) == len(curve["low"]) == len(curve["high"]) == 5
                for low, mean, high in zip(curve["low"], curve["mean"], curve["high"], strict=True):
                    assert low <= mean <= high
    rows = training_rows(folder)
    steps = [row["step"] for row in rows if "train/loss" in row]
    assert steps == [*range(3, 60, 3), 60]
    assert {"train/loss", "train/grad_norm", "train/learning_rate"} <= set(rows[0])
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert saved_config(folder) == config
    assert not list(folder.rglob("*.partial*"))


def test_killed_at_any_moment_a_run_ends_as_if_it_had_not_been(whole, tmp_path):
    folder = tmp_path / "run"
    # Where chunks end and how often is saved makes no difference either; it takes a while.
    command = [*TINY, OFF, *LONG, "train.checkpoint_every=1", f"hydra.run.dir={folder}"]
    kept = []

    def has_more(than):
        return len(training_rows(folder)) > than

    for _ in range(2):
        process = start(*command, cwd=tmp_path)
        # It dies a moment after its first new row: while it trains, saves, or evaluates.
        wait_for(functools.partial(has_more, len(kept)), process)
        process.kill()
        finish(process)
        rows = training_rows(folder)
        assert rows[: len(kept)] == kept  # nothing already logged is lost
        kept = rows
    status, out, err = finish(start(*command, cwd=tmp_path))
    assert status == 0, err
    assert "going on at step" in out or "training was finished earlier" in out
    assert_same_run(folder, whole)


def test_sigterm_saves_and_the_run_goes_on(toy, tmp_path):
    folder = tmp_path / "run"
    command = [*TOY, "train.steps=500", "train.checkpoint_every=1"]
    process = start(*command, f"hydra.run.dir={folder}", cwd=toy, env_path=toy)
    wait_for(lambda: training_rows(folder), process)
    process.send_signal(signal.SIGTERM)
    status, _, err = finish(process)
    assert status == 128 + signal.SIGTERM
    assert len(err.strip().splitlines()) == 1
    assert "stopped by SIGTERM at step" in err
    stopped_at = int(err.split("at step ")[1].split(",")[0])
    assert max(saved_steps(folder)) == stopped_at
    again = ["train.checkpoint_every=1000", f"hydra.run.dir={folder}"]
    status, out, err = finish(start(*again, cwd=toy, env_path=toy))
    assert status == 0, err
    assert f"going on at step {stopped_at}" in out
    command = [*TOY, "train.steps=500", f"hydra.run.dir={tmp_path / 'whole'}"]
    status, _, err = finish(start(*command, cwd=toy, env_path=toy))
    assert status == 0, err
    assert training_rows(folder) == training_rows(tmp_path / "whole")
    curves, expected = (path / "curves.json" for path in (folder, tmp_path / "whole"))
    assert curves.read_text() == expected.read_text()


def test_a_run_with_a_damaged_newest_checkpoint_goes_on_from_the_one_before(
    whole, tmp_path, capsys
):
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    (folder / "curves.json").unlink()
    newest = folder / "checkpoints" / str(max(saved_steps(folder)))
    for path in (newest / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    run(whole[1], folder)
    captured = capsys.readouterr()
    assert "checkpoint 60 is damaged" in captured.err
    assert "going on at step 50 of 60" in captured.out
    assert_same_run(folder, whole)


def test_a_finished_run_is_not_trained_or_evaluated_again(whole, capsys):
    before = {path: path.stat().st_mtime_ns for path in whole[0].glob("c*")}
    run(whole[1], whole[0])
    after = {path: path.stat().st_mtime_ns for path in whole[0].glob("c*")}
    before.pop(whole[0] / "checkpoints"), after.pop(whole[0] / "checkpoints")
    assert before == after
    assert "transformer" in capsys.readouterr().out


def test_another_configuration_is_refused_and_the_keys_are_named(whole):
    before = (whole[0] / ".hydra" / "config.yaml").read_bytes()
    with pytest.raises(RunError) as error:
        run(tiny(*LONG, "model.width=32", "seed=4"), whole[0])
    assert error.value.status == 2
    assert "model.width=32 (was 16)" in str(error.value)
    assert "seed=4 (was 0)" in str(error.value)
    assert "train.steps" not in str(error.value)
    assert (whole[0] / ".hydra" / "config.yaml").read_bytes() == before


def test_checkpoints_of_another_configuration_are_refused_without_the_saved_one(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    shutil.rmtree(folder / ".hydra")
    with pytest.raises(RunError, match=r"model\.width=32 \(was 16\)"):
        run(tiny(*LONG, "model.width=32"), folder)


def test_a_run_goes_on_under_its_own_options_unless_others_are_named():
    saved = compose_config([*TINY, "model.width=32"])
    assert config_to_go_on_with(saved, Options(), []) == saved
    asked = compose_config(["wandb.mode=disabled"])
    assert config_to_go_on_with(saved, asked, ["wandb.mode=disabled"]).wandb.mode == "disabled"
    # Naming a default is naming it, and a group names all of its options.
    other = compose_config(["task=independent_corruption"])
    assert config_to_go_on_with(other, Options(), []).task.name == "independent_corruption"
    back = config_to_go_on_with(other, Options(), ["task=shared_corruption"])
    assert back.task.name == "shared_corruption"
    named = config_to_go_on_with(saved, Options(), ["model.width=64"])
    assert named.model.width == 64


def test_the_second_process_in_a_folder_is_refused(tmp_path):
    folder = tmp_path / "run"
    with sole_user_of(folder):
        status, _, err = finish(start(*TINY, OFF, f"hydra.run.dir={folder}", cwd=tmp_path))
    assert status == 2
    assert "another process is running in this folder" in err
    assert len(err.strip().splitlines()) == 1
    assert {path.name for path in folder.iterdir()} <= {".lock"}


def test_divergence_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    config = tiny("train.steps=60", "train.checkpoint_every=5", "train.learning_rate=1e38",
                  "train.schedule=constant", "train.warmup_fraction=0.5", "train.clip_norm=null",
                  "model.norm=none")  # fmt: skip
    with pytest.raises(RunError) as error:
        run(config, tmp_path / "run")
    assert "diverged" in str(error.value)
    assert error.value.status == 1
    rows = training_rows(tmp_path / "run")
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    found = final_state(tmp_path / "run", config)
    if found is not None:
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found[1]))


def test_a_sweep_makes_one_run_for_each_value(toy, tmp_path):
    command = ["-m", *TOY, "train.steps=2", "+ablation=shallow,no_mlp"]
    command += [f"hydra.sweep.dir={tmp_path}/sweep"]
    status, _, err = finish(start(*command, cwd=toy, env_path=toy))
    assert status == 0, err
    paths = [tmp_path / "sweep" / name / ".hydra" / "config.yaml" for name in ("0", "1")]
    models = [OmegaConf.load(path).model for path in paths]
    assert [(model.num_layers, model.mlp) for model in models] == [(1, True), (4, False)]
    assert all((tmp_path / "sweep" / name / "curves.json").exists() for name in ("0", "1"))


def test_a_job_that_diverges_does_not_end_the_sweep(toy, tmp_path):
    command = ["-m", *TOY, "train.steps=6", "train.clip_norm=null", "train.schedule=constant"]
    command += ["train.learning_rate=1e38,1e-3", f"hydra.sweep.dir={tmp_path}/sweep"]
    status, _, err = finish(start(*command, cwd=toy, env_path=toy))
    assert status == 1
    assert "diverged" in err
    assert "Traceback" not in err
    assert (tmp_path / "sweep" / "1" / "curves.json").exists()


def test_a_look_at_a_run_in_the_middle_is_not_taken_for_its_result(whole, tmp_path, capsys):
    folder, config = tmp_path / "run", whole[1]
    shutil.copytree(whole[0], folder)
    shutil.rmtree(folder / "checkpoints" / "60")
    (folder / "curves.json").unlink()
    evaluate_again(folder, [], Terminal())
    assert "step 50 of 60" in capsys.readouterr().err
    assert (folder / "evaluations" / "step_50" / "curves.json").exists()
    assert not (folder / "curves.json").exists()
    assert run(config, folder)["step"] == 60


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    status, _, err = finish(start(*TINY, OFF, f"hydra.run.dir={tmp_path}/file", cwd=tmp_path))
    assert status == 2
    assert len(err.splitlines()) == 1
    assert "hydra.run.dir" in err


def test_runs_from_another_folder_with_conf_inside_the_package(toy, tmp_path):
    # As an installed wheel has it: conf/ in the package, no checkout around.
    shutil.copytree(toy / "icl_align", tmp_path / "site" / "icl_align")
    shutil.copytree(toy / "conf", tmp_path / "site" / "icl_align" / "conf")
    (tmp_path / "elsewhere").mkdir()
    process = start(*TOY, "train.steps=2", cwd=tmp_path / "elsewhere",
                    env_path=tmp_path / "site")  # fmt: skip
    status, out, err = finish(process)
    assert status == 0, err
    assert list((tmp_path / "elsewhere").glob("runs/*/*/curves.json"))


def test_a_signal_that_was_ignored_at_the_start_stays_ignored(toy, tmp_path):
    folder = tmp_path / "run"
    command = [*TOY, "train.steps=1000000", "train.log_every=1", f"hydra.run.dir={folder}"]
    process = start(*command, cwd=toy, env_path=toy, ignoring=True)
    wait_for(lambda: training_rows(folder), process)
    process.send_signal(signal.SIGINT)
    before = len(training_rows(folder))
    wait_for(lambda: len(training_rows(folder)) > before + 1000, process)  # it goes on
    process.send_signal(signal.SIGTERM)
    status, _, err = finish(process)
    assert status == 128 + signal.SIGTERM
    assert "stopped by SIGTERM at step" in err


def test_a_run_of_before_there_were_worlds_goes_on_and_is_evaluated(whole, tmp_path, capsys):
    folder, config = tmp_path / "run", whole[1]
    shutil.copytree(whole[0], folder)
    written = folder / ".hydra" / "config.yaml"
    lines = written.read_text().splitlines(keepends=True)
    written.write_text("".join(line for line in lines if not line.startswith("world:")))
    assert len(lines) - len(written.read_text().splitlines()) == 1
    assert saved_config(folder) == config
    run(config, folder)
    assert "training was finished earlier" in capsys.readouterr().out
    evaluate_again(folder, [], Terminal())
    assert_same_run(folder, whole)


def test_a_run_of_a_version_with_other_options_is_refused_in_one_line(tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / "checkpoints").mkdir()
    for text, word in (("model: {gates: 3}", "model.gates"), ("world: flat", "world=flat")):
        (tmp_path / ".hydra" / "config.yaml").write_text(f"{text}\nnum_seeds: 1\n")
        status, _, err = finish(start(f"run_dir={tmp_path}", module="icl_align.evaluate"))
        assert (status, len(err.splitlines())) == (2, 1), err
        assert word in err


def test_a_full_disk_is_one_line_and_what_was_saved_stays(tmp_path, monkeypatch):
    import errno

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("icl_align.running.run.save_figure", full)
    config = tiny("train.steps=4")
    with pytest.raises(RunError, match="No space left on device"):
        run(config, tmp_path / "run", Start())
    monkeypatch.undo()
    run(config, tmp_path / "run", Start())
    assert (tmp_path / "run" / "curves.json").exists()


def test_curves_of_a_finished_run_are_not_replaced_by_others(whole):
    folder, config = whole
    before = (folder / "curves.json").read_bytes()
    other = tiny(*LONG, "evaluation.num_contexts=9")
    with pytest.raises(
        RunError, match=r"icl_align.evaluate run_dir=\S+ evaluation.num_contexts=9$"
    ):
        run(other, folder, Start(overrides=["evaluation.num_contexts=9"]))
    assert (folder / "curves.json").read_bytes() == before
    assert saved_config(folder) == config
    with pytest.raises(ConfigError, match="output_dir"):
        evaluate_again(folder, ["evaluation.num_contexts=9"], Terminal(), output_dir=folder)
