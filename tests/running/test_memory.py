"""What cannot fit is refused before it is made, with a size that fits."""

import re

import jax
import pytest

from icl_align.config import ConfigError, check, with_values
from icl_align.running import memory
from icl_align.running.crew import Crew
from icl_align.running.memory import refuse_state_that_cannot_fit, state_bytes
from icl_align.running.mesh import make_mesh
from icl_align.running.run import run
from icl_align.running.training import init_state
from runs import tiny


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


@pytest.mark.parametrize(
    "overrides, key",
    [
        (["model.width=100000"], "model.width"),
        (["model.width=65536", "model.num_heads=64", "model.num_layers=100"], "model.width"),
        (["model.num_layers=10000000"], "model.num_layers"),
        (["num_seeds=2000000000"], "num_seeds"),
        (["model.mlp_width=100000000"], "model.mlp_width"),
    ],
    ids=str,
)
def test_a_state_that_cannot_fit_is_refused_with_a_size_that_does(overrides, key, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda devices: 2**30)
    config = tiny(*overrides)
    mesh = make_mesh(config, config.num_seeds)
    with pytest.raises(ConfigError) as refusal:
        refuse_state_that_cannot_fit(config, mesh)
    [value] = re.findall(rf"; {key}=(\d+) would fit$", str(refusal.value))
    smaller = check(with_values(config, {key: int(value)}))
    refuse_state_that_cannot_fit(smaller, make_mesh(smaller, smaller.num_seeds))
    much_larger = with_values(config, {key: 2 * int(value)})
    with pytest.raises(ConfigError, match="cannot fit"):
        refuse_state_that_cannot_fit(much_larger, make_mesh(much_larger, much_larger.num_seeds))


@pytest.mark.parametrize("key, value", [("train.batch_size", 10**8), ("task.num_responses", 5000)])
def test_a_step_that_cannot_fit_is_refused_before_it_is_taken(key, value, tmp_path, monkeypatch):
    budget = 2**24
    monkeypatch.setattr(memory, "available_memory", lambda devices: budget)
    stepped = []
    monkeypatch.setattr(Crew, "steps", lambda self, size: stepped.append(size))
    with pytest.raises(ConfigError, match=f"{key}={value}: cannot fit: a step needs") as refusal:
        run(tiny(f"{key}={value}"), tmp_path / "run")
    assert not stepped
    assert not list((tmp_path / "run").iterdir())  # so another start may have it
    [fits] = re.findall(rf"; {key}=(\d+) would fit$", str(refusal.value))
    config = tiny(f"{key}={fits}")
    crew = Crew()
    crew.begin([config], make_mesh(config, 1))
    crew.refuse_what_cannot_fit()


def test_sizes_are_said_in_their_unit():
    sizes = {1: "0.000977 KiB", 2**20: "1 MiB", 3 * 2**29: "1.5 GiB", 5 * 2**43: "40 TiB"}
    assert {number: memory._size(number) for number in sizes} == sizes
