import json
import os
import subprocess
import sys

import pytest

from icl_align.running.shares import Share, divide, jobs_at_once, visible_devices
from runs import ROOT

CORES = sorted(os.sched_getaffinity(0))


@pytest.mark.parametrize("things, jobs", [(8, 1), (8, 2), (8, 3), (7, 7), (5, 4)])
def test_shares_cover_everything_once_and_differ_by_one_at_most(things, jobs):
    devices = [str(number) for number in range(things)]
    shares = [divide(slot, jobs, range(things), devices) for slot in range(jobs)]
    assert sorted(core for share in shares for core in share.cores) == list(range(things))
    assert ",".join(s.environment["CUDA_VISIBLE_DEVICES"] for s in shares) == ",".join(devices)
    assert max(len(s.cores) for s in shares) - min(len(s.cores) for s in shares) <= 1


def test_jobs_that_outnumber_the_accelerators_fit_into_their_memory_together():
    shares = [divide(slot, 5, range(2), ["a", "b"]) for slot in range(5)]
    for device in "ab":
        mine = [s.environment for s in shares if s.environment["CUDA_VISIBLE_DEVICES"] == device]
        assert len(mine) in (2, 3)
        assert sum(float(e["XLA_PYTHON_CLIENT_MEM_FRACTION"]) for e in mine) <= 0.75


def test_without_accelerators_no_variable_is_set():
    assert divide(0, 2, range(4), []) == Share({}, frozenset({0, 1}))


@pytest.mark.parametrize(
    "launcher, cores, devices, jobs",
    [
        ({"_target_": "a.BasicLauncher"}, 8, 2, 1),
        ({"_target_": "a.JoblibLauncher", "n_jobs": 3}, 8, 0, 3),
        ({"_target_": "a.JoblibLauncher", "n_jobs": -1}, 8, 0, 8),
        ({"_target_": "a.JoblibLauncher", "n_jobs": -2}, 8, 0, 7),
        ({"_target_": "a.LocalLauncher", "cpus_per_task": 3}, 8, 0, 2),
        ({"_target_": "a.LocalLauncher", "cpus_per_task": None}, 8, 0, 8),
        ({"_target_": "a.LocalLauncher", "cpus_per_task": 1}, 8, 2, 2),
        ({"_target_": "a.SlurmLauncher", "cpus_per_task": 1}, 8, 2, 1),
        ({"_target_": "a.RayLauncher", "ray": {"remote": {"num_cpus": 2}}}, 8, 2, 4),
        ({"_target_": "a.RayLauncher", "ray": {"remote": {"num_cpus": 0.5}}}, 8, 0, 16),
        ({"_target_": "a.RayLauncher", "ray": {"remote": {"num_cpus": 64}}}, 8, 0, 1),
        ({"_target_": "a.RayLauncher", "ray": {"remote": {}}}, 8, 0, 8),
    ],
)
def test_how_many_jobs_share_a_machine_is_read_from_the_launcher(launcher, cores, devices, jobs):
    assert jobs_at_once(launcher, cores, devices) == jobs


@pytest.mark.parametrize(
    "environment, devices",
    [
        ({"CUDA_VISIBLE_DEVICES": "3,5"}, ["3", "5"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-1a, MIG-2b"}, ["GPU-1a", "MIG-2b"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, []),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "JAX_PLATFORMS": "cpu"}, []),
        ({"CUDA_VISIBLE_DEVICES": "0", "JAX_PLATFORMS": "cuda,cpu"}, ["0"]),
    ],
)
def test_accelerators_are_those_that_were_left_visible(monkeypatch, environment, devices):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert visible_devices() == devices


def python(program, **variables):
    return subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


# As a job of a sweep with two jobs at once; `launcher` in place of what Hydra composed.
IN_A_SWEEP = """
import json, os, sys, threading
from icl_align.running import shares
kind = os.environ.get("KIND", "JoblibLauncher")
shares._launcher = lambda: {"_target_": kind, "n_jobs": 2, "cpus_per_task": None}
"""
KEEPS_A_SHARE = (
    IN_A_SWEEP
    + """
threading.Thread(target=threading.Event().wait, daemon=True).start()
share = shares.keep_share()
assert shares.keep_share() is share
threads = {tuple(sorted(os.sched_getaffinity(int(t)))) for t in os.listdir("/proc/self/task")}
print(json.dumps([*threads, os.environ["CUDA_VISIBLE_DEVICES"]]), flush=True)
sys.stdin.read()
"""
)


def test_two_processes_get_two_shares_and_a_third_of_the_queue_waits_until_one_was_killed(tmp_path):
    variables = {"CUDA_VISIBLE_DEVICES": "4,7", "JAX_PLATFORMS": "", "TMPDIR": str(tmp_path)}
    variables["KIND"] = "LocalLauncher"
    processes = [python(KEEPS_A_SHARE, **variables) for _ in range(2)]
    try:
        taken = [json.loads(process.stdout.readline()) for process in processes]
        halves = [sorted(divide(slot, 2, CORES, []).cores) for slot in range(2)]
        assert sorted(taken, key=str) == sorted([[halves[0], "4"], [halves[1], "7"]], key=str)
        # The other launchers count their jobs: they never wait for what another sweep has.
        free = {**variables, "KIND": "JoblibLauncher"}
        processes.append(python(KEEPS_A_SHARE, **free))
        assert json.loads(processes[2].stdout.readline()) == [CORES, "4,7"]
        processes.append(python(KEEPS_A_SHARE, **variables))
        processes[0].kill()
        assert json.loads(processes[3].stdout.readline()) == taken[0]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_share_that_is_lent_confines_the_subprocess_and_not_its_parent(tmp_path):
    program = (
        IN_A_SWEEP
        + """
before = os.sched_getaffinity(0)
with shares.share_of_host() as share:
    child = "import os; print(sorted(os.sched_getaffinity(0)), os.environ['CUDA_VISIBLE_DEVICES'])"
    assert share.popen([sys.executable, "-c", child]).wait() == 0
assert os.sched_getaffinity(0) == before
assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,7"
"""
    )
    variables = {"CUDA_VISIBLE_DEVICES": "4,7", "JAX_PLATFORMS": "", "TMPDIR": str(tmp_path)}
    process = python(program, **variables)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out == f"{sorted(divide(0, 2, CORES, []).cores)} 4\n"


def test_xla_starts_a_thread_for_each_core_of_the_share(tmp_path):
    program = (
        IN_A_SWEEP
        + """
shares.keep_share()
import jax.numpy as jnp
(jnp.ones((300, 300)) @ jnp.ones((300, 300))).block_until_ready()
names = [open(f"/proc/self/task/{t}/comm").read() for t in os.listdir("/proc/self/task")]
print(sum("XLAEigen" in name for name in names))
"""
    )
    process = python(program, TMPDIR=str(tmp_path), JAX_PLATFORMS="cpu")
    out, _ = process.communicate(timeout=120)
    assert int(out) == len(divide(0, 2, CORES, []).cores)


def test_outside_of_a_parallel_sweep_the_share_is_everything():
    program = """
import os
from icl_align.running.shares import Share, keep_share
before = os.sched_getaffinity(0)
assert keep_share() == Share()
assert os.sched_getaffinity(0) == before
"""
    process = python(program)
    process.communicate(timeout=60)
    assert process.returncode == 0
