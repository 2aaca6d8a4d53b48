"""Many devices and many processes: the result of one device, and each holds its share."""

import json
import os
import re
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from icl_align.config import ConfigError
from icl_align.running.checkpoints import Checkpoints
from icl_align.running.compose import compose_config
from icl_align.running.metrics_file import read_rows
from icl_align.running.run import run
from icl_align.running.training import state_shapes
from runs import OFF, ROOT, TINY, finish, saved_steps, start, tiny, wait_for

pytestmark = pytest.mark.slow
STEPS = 30
FEW = [f"train.steps={STEPS}", "num_seeds=2", "task.num_responses=2"]
# A checkpoint every step keeps a run busy long enough to be stopped in the middle.
LONG = ["world=toy", OFF, "evaluation.num_contexts=8", "num_seeds=2", "train.learning_rate=0.01"]
LONG += ["train.steps=200", "train.checkpoint_every=1"]


@pytest.fixture(scope="module")
def eight(toy):
    """What eight_devices.py found."""
    paths = os.pathsep.join([str(toy), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"}
    process = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "running" / "eight_devices.py")],
        env={**environment, "JAX_NUM_CPU_DEVICES": "8"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    assert found["devices"] == 8
    return found


MESHES = {
    "by themselves": (4, 2),
    "seeds": (4, 1),
    "batch": (1, 8),
    "one is idle": (1, 4),
    "asked for": (2, 2),
    "bidirectional": (2, 4),
}


@pytest.mark.parametrize("name", MESHES)
def test_eight_devices_train_what_one_does(eight, name):
    case = eight["cases"][name]
    assert case["moved"] > 1e-3
    assert case["loss"] < 1e-5
    assert case["grad_norm"] < 1e-4
    # Adam divides by the gradient's size, so rounding of a tiny gradient moves a parameter; three
    # steps of 1e-3 move it by 3e-3 at most.
    assert case["params"] < 2e-4
    assert set(case["steps"]) == {3}


def test_eight_devices_evaluate_what_one_does(eight):
    assert eight["evaluated"]["size"] == 24
    assert eight["evaluated"]["difference"] < 1e-4


@pytest.mark.parametrize("name", MESHES)
def test_each_device_holds_its_share(eight, name):
    seeds, batch = MESHES[name]
    case = eight["cases"][name]
    assert case["mesh"] == {"seeds": seeds, "batch": batch}
    members = len(case["steps"])
    each = members // seeds
    expected = [[first, each] for first in range(0, members, each) for _ in range(batch)]
    assert case["shares"] == expected


def test_devices_divide_the_contexts_of_a_batch(eight):
    # Without its share each device would compute as much as one alone; Adam is not divided. Of a
    # loop over slices XLA counts one slice, so this is no fact of a case with slices.
    assert eight["cases"]["batch"]["operations"] < 0.5
    assert eight["cases"]["seeds"]["operations"] == pytest.approx(1, abs=0.1)  # in turn, or at once


def test_members_under_a_vmap_train_as_members_one_by_one(eight):
    found = eight["members together"]
    assert found["mesh"] == {"seeds": 2, "batch": 4}
    assert found["loss"] < 1e-5
    assert found["params"] < 2e-4


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("seeds", "devices.seeds=2: must divide the 3 networks"),
        ("batch", "devices.batch=2: must divide train.batch_size=9"),
        ("too many", "devices.seeds=16: 16 x 1 devices asked for, there are 8"),
        ("too many together", "devices.batch=4: 4 x 4 devices asked for, there are 8"),
    ],
)
def test_an_axis_that_cannot_be_is_named(eight, name, line):
    assert eight["wrong"][name] == line


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"process_id": 0, "cluster": "false"}, "devices.cluster=false"),
        ({"process_id": 0}, "devices.coordinator=null"),
        (
            {"process_id": 1, "num_processes": 2, "coordinator": "here"},
            "devices.coordinator=here: must be HOST:PORT",
        ),
        (
            {"process_id": 2, "num_processes": 2, "coordinator": "'h:1'"},
            "devices.process_id=2: must be below devices.num_processes=2",
        ),
    ],
)
def test_a_cluster_that_is_half_described_is_refused(options, key):
    options = {"cluster": "true", **options}
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        compose_config([f"devices.{name}={value}" for name, value in options.items()])


# ------------------------------------------------------------------------------ several processes


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch, tmp_path):
    """What needs no training is not found, so that all processes compute it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def start_cluster(folders, *options, **where):
    """Real processes with two devices each that train together."""
    port = free_port()
    processes = []
    for place, folder in enumerate(folders):
        by_hand = ["devices.cluster=true", f"devices.coordinator=127.0.0.1:{port}"]
        by_hand += [f"devices.num_processes={len(folders)}", f"devices.process_id={place}"]
        options_here = [*options, *by_hand, f"hydra.run.dir={folder}"]
        processes.append(start(*options_here, devices=2, **where))
    return processes


def saved(folder, config):
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    return checkpoints.restore_newest(state_shapes(config))


def assert_same_log_and_curves(folder, alone):
    rows, expected_rows = (read_rows(path / "metrics.jsonl") for path in (folder, alone))
    assert [row["step"] for row in rows] == [row["step"] for row in expected_rows]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    expected_losses = [row["train/loss"] for row in expected_rows if "train/loss" in row]
    np.testing.assert_allclose(losses, expected_losses, atol=1e-4)
    curves, expected = (
        json.loads((path / "curves.json").read_text())["learners"] for path in (folder, alone)
    )
    for name, levels in expected.items():
        for condition, quantities in levels.items():
            for quantity, curve in quantities.items():
                found = curves[name][condition][quantity]["mean"]
                tolerance = 2e-2 if name in ("transformer", "network") else 1e-4
                np.testing.assert_allclose(found, curve["mean"], atol=tolerance)


def test_two_processes_train_one_model_with_one_checkpoint_and_one_log(tmp_path):
    alone, leader, follower = tmp_path / "alone", tmp_path / "leader", tmp_path / "follower"
    config = tiny(*FEW)
    run(config, alone)
    processes = start_cluster([leader, follower], *TINY, OFF, *FEW)
    outcomes = [finish(process) for process in processes]
    assert [status for status, _, _ in outcomes] == [0, 0], outcomes
    assert "4 x CPU" in outcomes[0][1]
    assert "in 2 processes" in outcomes[0][1]
    assert "run folder" not in outcomes[1][1]  # one voice
    assert not follower.exists()
    (step, state), (expected_step, expected) = saved(leader, config), saved(alone, config)
    assert step == expected_step == STEPS
    pairs = zip(jax.tree.leaves(state.params), jax.tree.leaves(expected.params), strict=True)
    assert max(np.max(np.abs(a - b)) for a, b in pairs) < 2e-3
    assert_same_log_and_curves(leader, alone)


@pytest.fixture(scope="module")
def alone(toy, tmp_path_factory):
    """The toy run of one process with one device."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    rarely = ["train.checkpoint_every=1000", f"hydra.run.dir={folder}"]
    status, _, err = finish(start(*LONG, *rarely, cwd=toy, env_path=toy))
    assert status == 0, err
    return folder


def test_a_signal_to_any_process_saves_and_stops_all_and_one_process_goes_on(alone, toy, tmp_path):
    folder = tmp_path / "run"
    processes = start_cluster([folder, folder], *LONG, cwd=toy, env_path=toy)
    wait_for(lambda: saved_steps(folder), processes[0])
    processes[1].send_signal(signal.SIGTERM)
    outcomes = [finish(process) for process in processes]
    assert [status for status, _, _ in outcomes] == [143, 143], outcomes
    stopped = re.search(r"stopped by SIGTERM at step (\d+), which is saved", outcomes[0][2])
    assert int(stopped[1]) == max(saved_steps(folder))
    status, out, err = finish(start(f"hydra.run.dir={folder}", cwd=toy, env_path=toy))
    assert status == 0, err
    assert f"going on at step {stopped[1]}" in out
    assert_same_log_and_curves(folder, alone)


def test_a_run_of_one_process_goes_on_in_two(alone, toy, tmp_path):
    folder = tmp_path / "run"
    first = start(*LONG, f"hydra.run.dir={folder}", cwd=toy, env_path=toy)
    wait_for(lambda: saved_steps(folder), first)
    first.kill()
    finish(first)
    assert not (folder / "curves.json").exists()
    processes = start_cluster([folder, folder], *LONG, cwd=toy, env_path=toy)
    outcomes = [finish(process) for process in processes]
    assert [status for status, _, _ in outcomes] == [0, 0], outcomes
    assert "going on at step" in outcomes[0][1]
    assert_same_log_and_curves(folder, alone)


def test_what_stops_the_leader_is_said_once_and_ends_all(toy, tmp_path):
    options = ["world=toy", OFF, "train.batch_size=7", "num_seeds=3"]
    folders = [tmp_path / "a", tmp_path / "b"]
    processes = start_cluster(folders, *options, cwd=toy, env_path=toy)
    (status, _, error), (other, _, other_error) = (finish(process) for process in processes)
    assert status == other == 2
    assert "leaves 1 processes without work" in error
    assert "process 0 of the cluster stopped" in other_error
    assert "Traceback" not in error + other_error
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()
