"""A third world is a folder, a file in conf/world/ and one entry in a registry; nothing else."""

import json
import signal

from icl_align.running.metrics_file import read_rows
from runs import finish, start, wait_for

QUICK = ["world=toy", "train.learning_rate=0.1", "evaluation.num_contexts=16"]


def run(toy, *arguments, **options):
    status, out, err = finish(start(*arguments, cwd=toy, env_path=toy, **options))
    assert status == 0, err
    return out


def test_it_trains_is_stopped_goes_on_and_is_evaluated_again(toy, tmp_path):
    folder = tmp_path / "run"
    # Slowed by checkpoints, so that there is time to stop it.
    long = ["train.steps=1000", "train.log_every=1", "train.checkpoint_every=1"]
    process = start(*QUICK, *long, f"hydra.run.dir={folder}", cwd=toy, env_path=toy)
    wait_for(lambda: read_rows(folder / "metrics.jsonl"), process)
    process.send_signal(signal.SIGTERM)
    status, _, err = finish(process)
    assert status == 143, err
    # Its world is its own.
    out = run(toy, f"hydra.run.dir={folder}", "train.checkpoint_every=1000")
    assert "going on at step" in out
    assert "distance after 2 points, by shift" in out
    rows = [row for row in read_rows(folder / "metrics.jsonl") if "train/loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 1001))
    curves = json.loads((folder / "curves.json").read_text())
    assert curves["points"] == [0, 1, 2, 3]
    for shift in ("0.0", "1.0"):
        assert max(curves["learners"]["network"][shift]["distance"]["mean"]) < 1e-2
        assert min(curves["learners"]["zero"][shift]["distance"]["mean"]) > 0.5
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    run(toy, f"run_dir={folder}", "evaluation.shift=[3.0]", module="icl_align.evaluate")
    [again] = folder.glob("evaluations/*/curves.json")
    assert list(json.loads(again.read_text())["learners"]["network"]) == ["3.0"]


def test_it_sweeps(toy, tmp_path):
    short = ["train.steps=5", "wandb.mode=disabled", f"hydra.sweep.dir={tmp_path}"]
    lines = run(toy, "-m", *QUICK, *short, "task.slope=1,3").splitlines()
    table = next(n for n, line in enumerate(lines) if line.startswith("network, after 2 points"))
    assert all(line.startswith(("job 0: ", "job 1: ")) for line in lines[:table])
    assert "distance" in lines[table - 1]
    assert [line.split()[:2] for line in lines[table + 3 : table + 5]] == [
        ["0", "1.0"],
        ["1", "3.0"],
    ]
    losses = [read_rows(tmp_path / n / "metrics.jsonl")[0]["train/loss"] for n in ("0", "1")]
    assert losses[0] < losses[1]
    assert all((tmp_path / n / "curves.json").exists() for n in ("0", "1"))


def test_its_claims_are_judged_and_reported(toy, tmp_path):
    run(toy, "line", "world=toy", "seed=0", f"folder={tmp_path}", "wandb.mode=disabled",
        module="experiments")  # fmt: skip
    [verdict] = json.loads((tmp_path / "report" / "verdicts.json").read_text())
    assert verdict["verdict"] == "supported"
    assert "it finds the line" in (tmp_path / "report" / "report.md").read_text()


def test_its_options_are_its_own_and_those_of_other_worlds_are_refused(toy, tmp_path):
    assert "task.slope=2.0" in run(toy, "world=toy", "--help")
    assert "task.slope" not in run(toy, "--help")
    for refused in ("task.num_responses=3", "loss=cosine", "+ablation=interleaved_tokens"):
        arguments = ["world=toy", refused, f"hydra.run.dir={tmp_path / 'none'}"]
        status, _, err = finish(start(*arguments, cwd=toy, env_path=toy))
        assert (status, len(err.splitlines())) == (2, 1), err
        assert refused.lstrip("+") in err
    assert not (tmp_path / "none").exists()
