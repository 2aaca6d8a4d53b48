import json
import os

import pytest

from icl_align.cli import compose_config
from icl_align.config import ConfigError, WandbConfig
from icl_align.run import Start, run
from icl_align.tracking import MetricsFile, Tracker, first_not_finite, read_rows
from runs import TINY, training_rows, wandb_records


def test_rows_are_read_back_as_they_were_logged(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    rows = [{"step": 1, "train/loss": 0.1}, {"step": 1, "attempts": 2, "curves/x": 0.3}]
    for row in rows:
        metrics.log(row)
    assert read_rows(path) == rows  # before closing: every row is handed over at once
    metrics.close()


def test_a_line_cut_off_by_a_kill_is_dropped_and_written_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "train/loss": 1.0}\n{"step": 2, "tra')
    metrics = MetricsFile(path)
    metrics.log({"step": 2, "train/loss": 2.0})
    metrics.close()
    assert [row["step"] for row in read_rows(path)] == [1, 2]


def test_a_row_that_is_there_is_not_written_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    metrics.log({"step": 1, "train/loss": 1.0})
    metrics.close()
    again = MetricsFile(path)
    again.log({"step": 1, "train/loss": 9.0})
    again.log({"step": 2, "train/loss": 2.0})
    again.close()
    assert [row["train/loss"] for row in read_rows(path)] == [1.0, 2.0]


def test_the_first_number_that_is_not_finite_is_found():
    rows = [{"step": 1, "a": 1.0}, {"step": 2, "a": 1.0, "b": float("inf")}]
    assert first_not_finite(rows) == (2, "b", float("inf"))
    assert first_not_finite(rows[:1]) is None


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A run stopped in the middle and resumed, tracked by the real W&B client offline."""
    folder = tmp_path_factory.mktemp("tracked") / "run"
    config = compose_config([*TINY, "+ablation=no_mlp", "wandb.name=a name"])
    start = Start(tags=["no_mlp"], group="a sweep")
    run(config, folder, start)
    return folder, config


def test_wandb_wrote_offline_what_metrics_jsonl_holds(tracked):
    folder, _ = tracked
    history = []
    for record in wandb_records(folder):
        if record.HasField("history"):
            history.append(
                {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }
            )
    written = [row for row in history if "train/loss" in row]
    rows = [row for row in training_rows(folder) if "train/loss" in row]
    assert [row["_step"] for row in written] == [row["step"] for row in rows]
    for ours, theirs in zip(rows, written, strict=True):
        for name in ("train/loss", "train/grad_norm", "train/learning_rate"):
            assert theirs[name] == pytest.approx(ours[name], rel=1e-6)
        assert theirs["perf/contexts_per_second"] > 0
    curves = [row for row in history if "attempts" in row]
    assert [row["attempts"] for row in curves] == [0, 1, 2, 3, 4]
    ours = [row for row in training_rows(folder) if "attempts" in row]
    name = "curves/refinement_error/transformer/noise_1.0"
    assert [row[name] for row in curves] == pytest.approx([row[name] for row in ours])


def test_wandb_has_the_configuration_tags_group_name_and_picture(tracked):
    folder, config = tracked
    records = wandb_records(folder)
    (about,) = [record.run for record in records if record.HasField("run")][:1]
    assert list(about.tags) == ["no_mlp"]
    assert about.run_group == "a sweep"
    assert about.display_name == "a name"
    assert about.project == "icl_align"
    values = {item.key: json.loads(item.value_json) for item in about.config.update}
    assert values["model"]["mlp"] is False
    assert values["train"]["steps"] == config.train.steps
    assert list(folder.glob("wandb/offline-run-*/files/media/images/**/*.png"))


def test_a_resumed_run_continues_the_same_wandb_run(tmp_path):
    ids = []
    for resumed in (False, True):
        # The second time the call names no ablation: the run is still the same.
        tracker = Tracker(tmp_path, WandbConfig(), {}, [] if resumed else ["no_mlp"], None)
        tracker.log({"step": 1, "train/loss": 1.0})
        tracker.close()
    for record in wandb_records(tmp_path):
        if record.HasField("run"):
            ids.append(record.run.run_id)
            assert list(record.run.tags) == ["no_mlp"]
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) >= 1
    assert len(set(ids)) == 1
    assert set(ids) == {json.loads((tmp_path / "wandb" / "identity.json").read_text())["id"]}


def test_disabled_leaves_no_wandb_folder_and_the_same_metrics(tmp_path):
    tracker = Tracker(tmp_path, WandbConfig(mode="disabled"), {}, [], None)
    tracker.log({"step": 1, "train/loss": 1.0})
    tracker.close()
    assert sorted(os.listdir(tmp_path)) == ["metrics.jsonl"]


def test_online_without_an_account_is_one_clear_error_and_no_prompt(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    config = compose_config([*TINY, "wandb.mode=online"])
    with pytest.raises(ConfigError, match=r"wandb\.mode=online: .*WANDB_API_KEY"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
