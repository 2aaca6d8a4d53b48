"""Timing of roll-outs: what is compared is the same, and the command ends with its tables."""

import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks.dialogue import SUBJECT
from benchmarks.dialogue import __main__ as command
from icl_align.dialogue.model import language_model
from icl_align.dialogue.rounds import plan_named, roll_out_language_model
from icl_align.running.compose import compose_config

TINY = ["model.width=16", "model.num_layers=1", "model.num_heads=2", "task.rounds=2"]


def test_whole_passes_give_the_roll_outs_of_a_memory():
    config = compose_config(["world=dialogue", *TINY])
    network = language_model(config, nnx.Rngs(0))
    plan = plan_named("careful", config.task, config.evaluation)
    keys = jax.random.split(jax.random.key(0), 8)
    cached, whole = (
        jax.jit(lambda keys, own=own: roll_out_language_model(config, own, plan, keys))(keys)
        for own in (network, command.WholePasses(network))
    )
    for a, b in zip(cached.dialogue, whole.dialogue, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(cached.answer, whole.answer, atol=1e-4)


def test_the_products_outside_the_trunk_grow_with_the_rounds():
    few, many = (
        sum(SUBJECT.outside_trunk(compose_config(["world=dialogue", f"task.rounds={n}"])).values())
        for n in (8, 16)
    )
    assert 1.8 < many / few < 2


@pytest.mark.slow
def test_the_command_ends_with_its_tables(monkeypatch, capsys):
    for name, value in (
        ("DIALOGUES", 4),
        ("REPEATS", 1),
        ("ROUNDS", (1, 2, 3)),
        ("CONCEPTS", (2, 3, 4)),
    ):
        monkeypatch.setattr(command, name, value)
    command.main(TINY[:3])
    out = capsys.readouterr().out
    assert "whole passes take" in out
    for name in ("language_model", "exact_own_answers_ignored", "training step", "exponent"):
        assert name in out
