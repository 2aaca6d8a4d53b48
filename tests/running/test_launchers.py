import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
import yaml

from icl_align.config import ConfigError
from icl_align.running.cli import check_command_line
from icl_align.running.compose import CONF
from icl_align.running.help import help_text
from icl_align.running.metrics_file import read_rows
from icl_align.running.shares import divide
from icl_align.running.sweeps import final_loss
from runs import OFF, ROOT, finish, saved_steps, start, wait_for

QUICK = ["-m", "world=toy", "evaluation.num_contexts=8", OFF, "train.steps=6"]
QUICK += ["+hydra.callbacks.where._target_=where.Where"]
# The first of the two jobs diverges.
ONE_FAILS = ["train.clip_norm=null", "train.schedule=constant", "train.learning_rate=1e38,1e-3"]
CORES = sorted(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def own_shares(monkeypatch, tmp_path):
    """The locks of the shares go to a folder of the test, so that no other sweep is waited for."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.fixture(scope="module")
def paths(toy):
    """Where processes find the packages, the toy world, and `where`."""
    return os.pathsep.join([str(toy), str(ROOT / "tests")])


@pytest.fixture
def sweep(paths):
    """sweep(folder, *overrides) -> (exit status, stdout, stderr)."""

    def sweep(folder, *overrides):
        overrides = [*QUICK, *overrides, f"hydra.sweep.dir={folder}"]
        return finish(start(*overrides, cwd=folder.parent, env_path=paths))

    return sweep


def where(folder):
    return [json.loads((folder / name / "where.json").read_text()) for name in ("0", "1")]


def lines_of_errors(err):
    return [line for line in err.splitlines() if line.startswith("icl_align: error")]


def check_that_the_first_failed_alone(folder, outcome):
    status, out, err = outcome
    assert status == 1, err
    [line] = lines_of_errors(err)
    assert "error: job 0: " in line
    assert f"/{folder.name}/0: " in line
    # In the end a table of all jobs; the one that failed has no numbers.
    lines = out.splitlines()
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("network, after")) :]
    assert any(line.startswith("0 ") and "–" in line for line in table)
    assert any(line.startswith("1 ") and "±" in line for line in table)
    assert "diverged" in line
    assert "Traceback" not in err
    assert not (folder / "0" / "curves.json").exists()
    assert (folder / "1" / "curves.json").exists()


def test_jobs_in_processes_have_their_shares_and_one_that_fails_fails_alone(tmp_path, sweep):
    folder = tmp_path / "sweep"
    made = []
    for _ in range(2):
        outcome = sweep(folder, "hydra/launcher=processes", *ONE_FAILS)
        check_that_the_first_failed_alone(folder, outcome)
        # Of every line one knows the job; at its end a job says its numbers in one.
        of_jobs = [line for line in outcome[1].splitlines() if line.startswith("job ")]
        assert sum(line.startswith("job 1: distance") for line in of_jobs) == 1
        if not made:
            halves = [sorted(divide(slot, 2, CORES, []).cores) for slot in range(2)]
            assert sorted(job["cores"] for job in where(folder)) == sorted(halves)
        made.append((folder / "1" / "curves.json").stat().st_mtime_ns)
    assert made[0] == made[1]  # the second time, what was finished is passed


def test_jobs_in_the_local_queue_have_their_shares_and_one_that_fails_fails_alone(tmp_path, sweep):
    folder = tmp_path / "sweep"
    outcome = sweep(folder, "hydra/launcher=local_queue", *ONE_FAILS)
    check_that_the_first_failed_alone(folder, outcome)
    assert all(len(job["cores"]) == 1 for job in where(folder))
    assert len(list((folder / ".submitit").glob("*/*.out"))) == 2


RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray takes the address of the network otherwise, also where 127.0.0.1 is asked for.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


@pytest.fixture(scope="module")
def ray_cluster(paths):
    """Address of a cluster of two nodes with one core each, on the loopback device."""
    # Short, for its sockets, so not among the others; removed however the tests end but by a kill.
    folder = tempfile.mkdtemp(dir="/tmp")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    environment = {**os.environ, **RAY, "RAY_TMPDIR": folder}
    environment |= {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "where.py")],
        cwd="/",
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    started = []
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("127.0.0.1:")
        started = psutil.Process(process.pid).children(recursive=True)
        yield address
    finally:
        try:
            process.communicate(timeout=60)
        finally:
            for left in psutil.wait_procs([process, *started], timeout=5)[1]:
                left.kill()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def on_ray(ray_cluster, monkeypatch):
    """Processes of this test find the cluster."""
    for name, value in {**RAY, "RAY_ADDRESS": ray_cluster}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.slow
def test_jobs_on_a_ray_cluster_run_on_its_nodes(tmp_path, paths, on_ray):
    # The folder is given as seen from here; the nodes were started elsewhere.
    overrides = [*QUICK, "hydra/launcher=ray_cluster", *ONE_FAILS, "hydra.sweep.dir=sweep"]
    outcome = finish(start(*overrides, cwd=tmp_path, env_path=paths))
    check_that_the_first_failed_alone(tmp_path / "sweep", outcome)
    first, second = where(tmp_path / "sweep")
    assert None not in (first["node"], second["node"])
    assert first["node"] != second["node"]
    assert len(first["cores"]) == len(second["cores"]) == 1
    assert first["cores"] != second["cores"] or len(CORES) == 1


@pytest.mark.slow
def test_a_search_finds_the_best_learning_rate_and_passes_over_what_diverges(tmp_path, sweep):
    folder = tmp_path / "search"
    options = ["hydra/sweeper=learning_rate", "hydra.sweeper.n_trials=3", *ONE_FAILS[:-1]]
    options += ["train.learning_rate=tag(log,interval(1e-40,1e40))", "hydra.sweeper.sampler.seed=5"]
    found = []
    for _ in range(2):  # the same search again asks for the same trials, and passes them
        status, _, err = sweep(folder, *options)
        result = yaml.safe_load((folder / "optimization_results.yaml").read_text())
        found.append(result)
        diverged = [n for n in range(3) if not (folder / str(n) / "curves.json").exists()]
        assert len(lines_of_errors(err)) == len(diverged) in (1, 2)
        assert status == 1
    losses = [float("inf") if n in diverged else final_loss(folder / str(n)) for n in range(3)]
    best = losses.index(min(losses))
    overrides = yaml.safe_load((folder / str(best) / ".hydra" / "overrides.yaml").read_text())
    assert found[0] == found[1]
    assert found[0]["best_value"] == min(losses)
    assert f"train.learning_rate={found[0]['best_params']['train.learning_rate']}" in overrides


def test_the_final_loss_is_the_mean_of_the_last_tenth_of_the_steps(tmp_path):
    losses = [100.0] * 18 + [3.0, 5.0]
    rows = [{"step": step + 1, "train/loss": loss} for step, loss in enumerate(losses)]
    rows.append({"step": 20, "attempts": 0, "curves/regret/transformer/noise_0.0": 7.0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert final_loss(tmp_path) == 4.0
    text = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    begun_anew = [*text[18:20], *text[:18]]  # what was trained before stands first
    (tmp_path / "metrics.jsonl").write_text("".join(begun_anew))
    assert final_loss(tmp_path) == 4.0
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": NaN}\n')
    assert final_loss(tmp_path) == float("inf")


def test_a_sweep_whose_worker_was_killed_goes_on_when_it_is_repeated(tmp_path, paths):
    folder = tmp_path / "sweep"
    options = ["hydra/launcher=processes", "seed=0,1", "train.steps=800"]
    options += ["train.checkpoint_every=20", "train.log_every=1"]
    command = [*QUICK, *options, f"hydra.sweep.dir={folder}"]
    process = start(*command, cwd=tmp_path, env_path=paths)
    wait_for(lambda: saved_steps(folder / "0"), process)
    [worker] = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if any(f.path == f"{folder}/0/metrics.jsonl" for f in child.open_files())
    ]
    os.kill(worker.pid, signal.SIGKILL)
    status, _, err = finish(process)
    assert status == 1
    assert "TerminatedWorkerError" in err
    assert not (folder / "0" / "curves.json").exists()
    status, out, err = finish(start(*command, cwd=tmp_path, env_path=paths))
    assert status == 0, err
    assert "going on at step" in out
    for name in ("0", "1"):
        steps = [row["step"] for row in read_rows(folder / name / "metrics.jsonl")]
        assert sorted(set(steps)) == list(range(1, 801))
        assert (folder / name / "curves.json").exists()


def test_the_workers_of_a_sweep_that_was_killed_end_too(tmp_path, paths):
    folder = tmp_path / "sweep"
    options = ["hydra/launcher=processes", "seed=0,1", "train.steps=1000000"]
    process = start(*QUICK, *options, f"hydra.sweep.dir={folder}", cwd=tmp_path, env_path=paths)
    logs = [folder / name / "metrics.jsonl" for name in ("0", "1")]
    wait_for(lambda: all(log.exists() for log in logs), process)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    left = psutil.wait_procs(workers, timeout=60)[1]
    for worker in left:
        worker.kill()
    finish(process)
    assert left == []


def choices(group):
    return sorted(file.stem for file in (CONF / "hydra" / group).glob("*.yaml"))


@pytest.mark.parametrize("launcher", choices("launcher"))
def test_every_launcher_composes_and_says_how_it_is_called(launcher):
    check_command_line(["-m", f"hydra/launcher={launcher}"])
    assert f"hydra/launcher={launcher} " in help_text("alignment")
    text = (CONF / "hydra" / "launcher" / f"{launcher}.yaml").read_text()
    assert f"# python -m icl_align.train -m hydra/launcher={launcher} " in text


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["-m", "hydra/launcher=clouds"], ["hydra/launcher=clouds", "processes", "slurm"]),
        (["-m", "hydra/launcher=slurm,processes"], ["must be one of", "local_queue"]),
        (["-m", "+hydra/launcher=slurm"], ["write hydra/launcher=slurm"]),
        (["-m", "hydra/sweeper=guess"], ["hydra/sweeper=guess", "learning_rate"]),
        (["hydra/launcher=processes"], ["hydra/launcher=processes", "-m"]),
        (["hydra/sweeper=learning_rate"], ["hydra/sweeper=learning_rate", "-m"]),
        (["-m", "hydra/launcher=processes", "hydra.launcher.n_job=3"], ["hydra.launcher.n_job=3"]),
        (["-m", "hydra/launcher=slurm", "hydra.launcher.nodes=two"], ["hydra.launcher.nodes=two"]),
        (["-m", "hydra/launcher=slurm", "model.num_heads=4,5"], ["model.num_heads=5"]),
        (["-m", "hydra/sweeper=learning_rate", "train.steps=0,5"], ["train.steps=0"]),
        (["-m", "train.learning_rate=interval(1e-4,1e-2)"], ["hydra/sweeper=learning_rate"]),
    ],
)
def test_what_cannot_be_asked_of_hydra_is_one_line(arguments, parts):
    with pytest.raises(ConfigError) as error:
        check_command_line(arguments)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    "choice, plugin, extra",
    [
        ("hydra/launcher=processes", "hydra_joblib_launcher", "joblib"),
        ("hydra/launcher=ray_cluster", "hydra_ray_launcher", "ray"),
        ("hydra/launcher=local_queue", "hydra_submitit_launcher", "submitit"),
        ("hydra/launcher=slurm", "hydra_submitit_launcher", "submitit"),
        ("hydra/sweeper=learning_rate", "hydra_optuna_sweeper", "optuna"),
        ("hydra/launcher=joblib", "hydra_joblib_launcher", "joblib"),
    ],
)
def test_a_plugin_that_is_not_installed_is_named_by_its_extra(tmp_path, choice, plugin, extra):
    program = f"import sys; sys.modules['hydra_plugins.{plugin}'] = None\n"  # cannot be imported
    program += f"sys.argv = ['train', '-m', '{choice}']; from icl_align.train import main; main()"
    process = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 2
    assert process.stdout == ""
    assert (
        process.stderr
        == f"icl_align: error: {choice}: needs an extra: pip install -e '.[{extra}]'\n"
    )
    assert list(Path(tmp_path).iterdir()) == []


def campaign(folder, paths, *overrides):
    options = ["two_sizes", "world=toy", "num_seeds=2", f"folder={folder}", OFF, "-m", *overrides]
    return finish(start(*options, module="experiments", cwd=folder.parent, env_path=paths))


def check_the_campaign(folder, outcome):
    status, out, err = outcome
    assert status == 0, err
    assert "report: " in out
    rows = json.loads((folder / "report" / "verdicts.json").read_text())
    assert all(row["reason"] == "2 seeds are fewer than 8" for row in rows)
    assert not list(folder.glob("jobs/*.failed"))


@pytest.mark.parametrize("launcher", ["processes", "local_queue"])
def test_a_campaign_runs_through_a_launcher(tmp_path, paths, launcher):
    folder = tmp_path / "campaign"
    check_the_campaign(folder, campaign(folder, paths, f"hydra/launcher={launcher}"))
    logs = "".join(log.read_text() for log in folder.glob("jobs/*.log"))
    assert "CPU (1 cores)" in logs or len(CORES) != 2  # each job had its half of the machine


@pytest.mark.slow
def test_a_campaign_runs_on_a_ray_cluster(tmp_path, paths, on_ray):
    folder = tmp_path / "campaign"
    check_the_campaign(folder, campaign(folder, paths, "hydra/launcher=ray_cluster"))
