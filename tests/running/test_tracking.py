import json
import os
import time

import pytest
from matplotlib.figure import Figure

from icl_align.alignment.options import Options
from icl_align.config import ConfigError, WandbConfig
from icl_align.dialogue import options as dialogue
from icl_align.running.compose import compose_config
from icl_align.running.loop import Start
from icl_align.running.metrics_file import MetricsFile, read_rows
from icl_align.running.run import run
from icl_align.running.tracking import Tracker, first_not_finite, log_verdicts
from runs import TINY, training_rows, wandb_records


def ended_records(folder):
    """Every record of the runs in `folder`; the client ends a file a moment after the run's end."""
    deadline = time.monotonic() + 20
    while True:
        records = wandb_records(folder)
        missing = len(list(folder.glob("wandb/offline-run-*")))
        missing -= sum(record.HasField("exit") for record in records)
        if missing <= 0:
            return records
        assert time.monotonic() < deadline, "the W&B client has not ended its file"
        time.sleep(0.05)


def wandb_history(folder):
    """The rows that the W&B client wrote in offline mode, oldest first."""
    return [
        {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row.item}
        for row in (
            record.history for record in ended_records(folder) if record.HasField("history")
        )
    ]


def wandb_summary(folder):
    """The summary at the end of what the W&B client wrote in offline mode."""
    return {
        ".".join(item.nested_key) or item.key: json.loads(item.value_json)
        for record in ended_records(folder)
        for item in record.summary.update
    }


def wandb_definitions(folder):
    """Metric or pattern -> its last definition."""
    metrics = [record.metric for record in ended_records(folder) if record.HasField("metric")]
    return {metric.name or metric.glob_name: metric for metric in metrics}


def wandb_runs(folder):
    """What each W&B run that was started in `folder` says of itself."""
    return [record.run for record in ended_records(folder) if record.HasField("run")]


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
    """A run, tracked by the real W&B client offline."""
    folder = tmp_path_factory.mktemp("tracked") / "run"
    config = compose_config([*TINY, "+ablation=no_mlp", "wandb.name=a name"])
    start = Start(tags=["no_mlp"], group="a sweep")
    run(config, folder, start)
    return folder, config


def test_the_headline_numbers_of_a_study_are_a_summary_of_the_wandb_run(tmp_path):
    picture = tmp_path / "concept.png"
    Figure().savefig(picture)
    measures = dialogue.Options.measures
    tracker = Tracker(tmp_path, WandbConfig(mode="offline"), {}, [], None, measures)
    tracker.log_study({"summary": [{"name": "R^2 of 1.5", "mean": 0.25}]}, picture)
    tracker.close()
    assert wandb_summary(tmp_path)["concept/R^2 of 1_5"] == 0.25
    assert any("concept_picture" in name for row in wandb_history(tmp_path) for name in row)


def test_wandb_wrote_offline_what_metrics_jsonl_holds(tracked):
    folder, _ = tracked
    history = wandb_history(folder)
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
    for written, row in zip(curves, ours, strict=True):
        logged = {name: value for name, value in written.items() if not name.startswith("_")}
        assert logged == pytest.approx({name: row[name] for name in row if name != "step"})


def test_the_headline_numbers_are_the_transformers_curves_where_they_are_judged(tracked):
    folder, config = tracked
    curves = json.loads((folder / "curves.json").read_text())["learners"]["transformer"]
    summary = wandb_summary(folder)
    place = min(Options.measures.judged_at, config.task.num_responses)
    names = set()
    for noise, quantities in curves.items():
        for quantity, curve in quantities.items():
            name = f"final/{quantity}/noise_{noise.replace('.', '_')}"
            names.add(name)
            assert summary[name] == pytest.approx(curve["mean"][place])
            (row,) = [row for row in training_rows(folder) if name in row]
            assert (row["attempts"], row[name]) == (place, pytest.approx(curve["mean"][place]))
    assert "final/regret/noise_0_0" in names
    assert {name for name in summary if name.startswith("final/")} == names


def test_headline_numbers_are_taken_at_the_judged_attempts_of_a_longer_context(tmp_path):
    curve = {"mean": [float(attempts) for attempts in range(21)]}
    curves = {
        "attempts": list(range(21)),
        "learners": {"transformer": {"0.5": {"regret": curve}}},
    }
    tracker = Tracker(tmp_path, WandbConfig(mode="disabled"), {}, [], None, Options.measures)
    tracker.log_curves(7, curves, tmp_path / "none.png")
    tracker.close()
    (row,) = [
        row for row in read_rows(tmp_path / "metrics.jsonl") if "final/regret/noise_0_5" in row
    ]
    assert row["attempts"] == row["final/regret/noise_0_5"] == Options.measures.judged_at == 15


def test_the_summary_has_the_last_training_row_and_no_value_of_a_curve(tracked):
    folder, _ = tracked
    summary = wandb_summary(folder)
    last = [row for row in read_rows(folder / "metrics.jsonl") if "train/loss" in row][-1]
    assert {name: summary[name] for name in last if name != "step"} == pytest.approx(
        {name: value for name, value in last.items() if name != "step"}
    )
    assert not [name for name in summary if name.startswith("curves/")]
    assert "attempts" not in summary


def test_wandb_draws_the_transformers_curves_against_attempts_and_hides_the_others(tracked):
    folder, _ = tracked
    definitions = wandb_definitions(folder)
    shown = set()
    for name in {name for row in wandb_history(folder) for name in row}:
        if name.startswith("curves/"):
            assert definitions[name].step_metric == "attempts"
            if not definitions[name].options.hidden:
                shown.add(name)
    assert shown == {
        f"curves/{quantity}/transformer/noise_{noise}"
        for quantity in ("refinement_error", "regret", "agreement")
        for noise in ("0_0", "1_0")
    }
    assert definitions["attempts"].options.hidden


def test_every_metric_has_a_name_and_a_definition_that_wandb_takes_as_meant(tracked):
    # A dot is taken for nesting; of two definitions that match, W&B takes either.
    folder, _ = tracked
    definitions = wandb_definitions(folder)
    for name in {name for row in training_rows(folder) for name in row}:
        assert "." not in name
        matching = [
            known
            for known in definitions
            if name == known or (known.endswith("*") and name.startswith(known[:-1]))
        ]
        assert len(matching) <= 1


def test_wandb_has_the_configuration_tags_group_name_and_picture(tracked):
    folder, config = tracked
    records = ended_records(folder)
    (about,) = [record.run for record in records if record.HasField("run")][:1]
    assert list(about.tags) == ["no_mlp"]
    assert about.run_group == "a sweep"
    assert about.display_name == "a name"
    assert about.project == "icl_align"
    assert about.job_type == "train"
    values = {item.key: json.loads(item.value_json) for item in about.config.update}
    assert values["ablation"] == "no_mlp"
    assert values["model"]["mlp"] is False
    assert values["train"]["steps"] == config.train.steps
    assert list(folder.glob("wandb/offline-run-*/files/media/images/**/*.png"))


def test_a_resumed_run_continues_the_same_wandb_run(tmp_path):
    # The second time the call names neither ablation nor group: the run is still the same.
    for tags, group in ((["no_mlp"], "a sweep"), ([], None)):
        tracker = Tracker(tmp_path, WandbConfig(), {}, tags, group, Options.measures)
        tracker.log({"step": 1, "train/loss": 1.0})
        tracker.close()
    runs = wandb_runs(tmp_path)
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) >= 1
    known = json.loads((tmp_path / "wandb" / "identity.json").read_text())["id"]
    for about in runs:
        assert (about.run_id, list(about.tags), about.run_group) == (known, ["no_mlp"], "a sweep")
        assert about.job_type == "train"
        values = {item.key: json.loads(item.value_json) for item in about.config.update}
        assert values["ablation"] == "no_mlp"


def test_runs_that_are_open_at_once_keep_their_rows_apart(tmp_path):
    first, second = (
        Tracker(
            tmp_path / name,
            WandbConfig(),
            {},
            [name],
            "a campaign",
            Options.measures,
            job_type=name,
        )
        for name in ("single_head", "shallow")
    )
    for step in (1, 2, 3):  # in turns, as runs that train in one program
        first.log({"step": step, "train/loss": 1.0 * step})
        second.log({"step": 10 * step, "train/loss": 100.0 * step})
    first.close()
    second.log({"step": 40, "train/loss": 400.0})  # the first one's end is not its own
    second.close()
    ids = set()
    for name, scale, steps in (("single_head", 1, [1, 2, 3]), ("shallow", 10, [10, 20, 30, 40])):
        rows = wandb_history(tmp_path / name)
        assert [row["_step"] for row in rows] == steps
        assert [row["train/loss"] for row in rows] == [step * scale for step in steps]
        assert [row["step"] for row in training_rows(tmp_path / name)] == steps
        assert wandb_summary(tmp_path / name)["train/loss"] == steps[-1] * scale
        (about,) = wandb_runs(tmp_path / name)
        assert (list(about.tags), about.run_group) == ([name], "a campaign")
        assert about.job_type == name
        ids.add(about.run_id)
    assert len(ids) == 2


def test_seeds_have_no_charts_of_their_own(tmp_path):
    tracker = Tracker(tmp_path, WandbConfig(), {}, [], None, Options.measures)
    tracker.log({"step": 1, "train/loss": 1.5, "train/loss/seed_0": 1.0, "train/loss/seed_1": 2.0})
    tracker.close()
    hidden = {name for name, one in wandb_definitions(tmp_path).items() if one.options.hidden}
    assert hidden == {"train/loss/*", "train/grad_norm/*"}
    (row,) = wandb_history(tmp_path)
    assert row["train/loss/seed_1"] == 2.0


def verdict(**changes):
    row = {"claim": "depth", "judgement": "one layer", "prediction": "worse", "effect": 0.25}
    row |= {"low": 0.125, "high": None, "p_value": 0.01, "verdict": "holds", "reason": "clear"}
    return row | changes


def test_verdicts_are_a_table_and_a_summary_of_a_run_of_their_own(tmp_path):
    rows = [
        verdict(),
        verdict(judgement="two layers", effect=None, verdict="not run"),
        verdict(judgement="at p = 0.5", effect=-1),
        verdict(judgement="diverged", effect=float("nan"), low=float("-inf")),
    ]
    log_verdicts(tmp_path / "report", WandbConfig(), "a campaign", rows)
    (about,) = wandb_runs(tmp_path / "report")
    assert (about.run_group, about.job_type, about.display_name) == (
        "a campaign",
        "verdicts",
        "verdicts",
    )
    summary = wandb_summary(tmp_path / "report")
    assert summary["verdict/depth/one layer"] == "holds"
    assert summary["verdict/depth/two layers"] == "not run"
    assert summary["effect/depth/one layer"] == 0.25
    assert not {"effect/depth/two layers", "effect/depth/diverged"} & set(summary)
    assert summary["effect/depth/at p = 0_5"] == -1
    (file,) = (tmp_path / "report").glob("wandb/offline-run-*/files/media/table/verdicts*.json")
    table = json.loads(file.read_text())
    assert table["columns"] == list(rows[0])
    rows[-1] |= {"effect": None, "low": None}  # JSON has no others
    assert table["data"] == [list(row.values()) for row in rows]


def test_a_report_that_is_written_again_updates_its_run(tmp_path):
    log_verdicts(tmp_path, WandbConfig(), "a campaign", [verdict(verdict="undecided")])
    log_verdicts(tmp_path, WandbConfig(), "a campaign", [verdict()])
    assert len({about.run_id for about in wandb_runs(tmp_path)}) == 1
    assert wandb_summary(tmp_path)["verdict/depth/one layer"] == "holds"


def test_disabled_verdicts_leave_nothing(tmp_path):
    log_verdicts(tmp_path, WandbConfig(mode="disabled"), "a campaign", [verdict()])
    assert not list(tmp_path.iterdir())


def test_disabled_leaves_no_wandb_folder_and_the_same_metrics(tmp_path):
    tracker = Tracker(tmp_path, WandbConfig(mode="disabled"), {}, [], None, Options.measures)
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
