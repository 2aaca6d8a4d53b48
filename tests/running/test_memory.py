"""What cannot fit is refused before it is made, with a size that fits."""

import functools
import os
import re
import shutil
import subprocess
import sys

import jax
import pytest

from icl_align.config import ConfigError, check, with_values
from icl_align.running import memory
from icl_align.running.crew import Crew, compiled_steps
from icl_align.running.memory import (
    refuse_state_that_cannot_fit,
    refuse_step_that_cannot_fit,
    state_bytes,
)
from icl_align.running.mesh import make_mesh
from icl_align.running.run import run
from icl_align.running.training import init_state
from runs import ROOT, tiny


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.num_layers=3", "num_seeds=2"],
        ["model.num_layers=1"],
        ["+ablation=[no_mlp,no_norm]", "model.num_layers=5"],
        ["+ablation=interleaved_tokens", "model.num_heads=1", "model.width=24"],
    ],
    ids=str,
)
def test_the_state_is_as_large_as_counted(overrides):
    config = tiny(*overrides)
    state = init_state(config)
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    counters = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.ndim == 1)
    assert state_bytes(config) == whole - counters


@pytest.fixture
def memory_of(monkeypatch):
    """memory_of(number): so many bytes are there, for all devices together."""

    def set_to(number):
        monkeypatch.setattr(memory, "available_on_host", lambda: number)

    return set_to


def fits(config):
    """Whether state and step of a configuration fit, by its own compiled program."""
    mesh = make_mesh(config, config.num_seeds)
    compiled = functools.partial(compiled_steps, 1)
    refuse_state_that_cannot_fit(config, mesh, 1, compiled)
    program = compiled(config)
    refuse_step_that_cannot_fit(config, mesh, 1, program, compiled)


@pytest.mark.parametrize(
    "overrides, key, budget",
    [
        (["model.width=100000"], "model.width", 2**28),
        (["model.width=65536", "model.num_heads=64"], "model.width", 2**28),
        (["num_seeds=2000000000"], "num_seeds", 2**24),
        (["train.batch_size=100000000"], "train.batch_size", 2**24),
        (["task.num_responses=50000000"], "task.num_responses", 2**26),
    ],
    ids=str,
)
def test_what_cannot_fit_is_refused_with_a_size_whose_state_and_step_fit(
    overrides, key, budget, memory_of
):
    memory_of(budget)
    config = tiny(*overrides)
    with pytest.raises(ConfigError) as refusal:
        fits(config)
    [value] = re.findall(rf"^{key}=.*: cannot fit: .*; {key}=(\d+) would fit$", str(refusal.value))
    fits(check(with_values(config, {key: int(value)})))
    with pytest.raises(ConfigError, match="cannot fit"):
        fits(with_values(config, {key: 16 * int(value)}))


@pytest.mark.slow
def test_the_size_that_fits_is_that_of_the_devices_it_would_have():
    """Fewer networks leave more devices for each of their batches."""
    code = """
import functools
from icl_align.running.compose import compose_config
from icl_align.running import memory
from icl_align.running.crew import compiled_steps
from icl_align.running.mesh import make_mesh
from icl_align.config import ConfigError, with_values
memory.available_on_host = lambda: 2**27
def refused(config):
    try:
        memory.refuse_state_that_cannot_fit(config, make_mesh(config, config.num_seeds), 1,
                                            functools.partial(compiled_steps, 1))
    except ConfigError as error:
        return int(str(error).rpartition("=")[2].split()[0])
config = compose_config(["+scale=smoke", "num_seeds=2000000"])
assert refused(with_values(config, {"num_seeds": refused(config)})) is None
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "8"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_layer_more_adds_what_the_last_one_added():
    """So what many layers need is known without compiling them."""
    needs = [
        memory._temporary(compiled_steps(1, tiny(f"model.num_layers={layers}")))
        for layers in (4, 8, 12)
    ]
    assert needs[2] == pytest.approx(2 * needs[1] - needs[0], rel=0.05)


def test_a_step_that_cannot_fit_is_not_taken_and_leaves_nothing(tmp_path, memory_of, monkeypatch):
    memory_of(2**24)
    stepped = []
    monkeypatch.setattr(Crew, "steps", lambda self, size: stepped.append(size))
    with pytest.raises(ConfigError, match="cannot fit: a step needs"):
        run(tiny("train.batch_size=100000000"), tmp_path / "run")
    assert not stepped
    assert not (tmp_path / "run").exists()  # so another start may have it


def test_what_was_in_a_folder_before_a_refused_run_stays(tmp_path, memory_of):
    config = tiny("train.steps=2")
    run(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / ".hydra")  # lost, but not the rest
    before = sorted(path for path in (tmp_path / "run").rglob("*") if path.is_file())
    memory_of(2**14)
    with pytest.raises(ConfigError, match="cannot fit"):
        run(config, tmp_path / "run")
    assert sorted(path for path in (tmp_path / "run").rglob("*") if path.is_file()) == before
    (tmp_path / "mine" / "wandb").mkdir(parents=True)
    memory_of(2**24)
    with pytest.raises(ConfigError, match="cannot fit"):
        run(tiny("train.batch_size=100000000"), tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["wandb"]


def test_a_run_that_cannot_go_on_is_not_told_to_change_its_options(tmp_path, memory_of):
    run(tiny("train.steps=2"), tmp_path / "run")
    memory_of(2**14)
    with pytest.raises(ConfigError) as refusal:
        run(tiny("train.steps=2"), tmp_path / "run")
    assert "would fit" not in str(refusal.value)


@pytest.mark.parametrize(
    "line, folder, names",
    [
        ("0::/job/step", "job", ("memory.max", "memory.current", "inactive_file")),
        (
            "7:memory:/job/step",
            "memory/job",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
    ids=["version 2", "version 1"],
)
def test_the_limit_of_a_control_group_counts_and_files_that_make_way_do_not(
    line, folder, names, tmp_path
):
    (tmp_path / "self").write_text(f"3:cpu:/other\n{line}\n")
    group = tmp_path / folder
    (group / "step").mkdir(parents=True)
    (group / "step" / names[0]).write_text("max\n")
    (group / "step" / names[1]).write_text("5\n")
    (group / "step" / "memory.stat").write_text(f"{names[2]} 0\n")
    for name, value in zip(names[:2], (1000, 900), strict=True):
        (group / name).write_text(f"{value}\n")
    (group / "memory.stat").write_text(f"anon 400\n{names[2]} 500\n")
    assert list(memory._left_in_groups(tmp_path, tmp_path / "self")) == [600]


def test_sizes_are_said_in_their_unit():
    sizes = {1: "0.000977 KiB", 2**20: "1 MiB", 3 * 2**29: "1.5 GiB", 5 * 2**43: "40 TiB"}
    assert {number: memory._size(number) for number in sizes} == sizes
