"""Timing of own rounds: what is compared is the same, and the command ends with its tables."""

import numpy as np
import pytest

from benchmarks.alignment import own_rounds as command
from icl_align.alignment.rounds.roll_out import transformer_in_steps
from icl_align.running.compose import compose_config

TINY = ["model.width=16", "model.num_layers=1", "model.num_heads=2", "task.num_responses=5"]


def test_reading_all_anew_gives_the_rounds_of_a_memory(monkeypatch):
    monkeypatch.setattr(command, "CONTEXTS", 6)
    config = compose_config(TINY)
    kept, anew = (
        command.rolling(config, reads)() for reads in (transformer_in_steps, command.whole_passes)
    )
    np.testing.assert_allclose(kept.answers, anew.answers, atol=1e-4)
    np.testing.assert_allclose(kept.contexts.rewards, anew.contexts.rewards, atol=1e-4)


@pytest.mark.slow
def test_the_command_ends_with_its_tables(monkeypatch, capsys):
    for name, value in (("STEPS", 1), ("CONTEXTS", 4), ("REPEATS", 1)):
        monkeypatch.setattr(command, name, value)
    command.main([*TINY, "train.batch_size=4"])
    out = capsys.readouterr().out
    for name in (*command.TRAINED, "reads all anew", "keeps what it has read"):
        assert name in out
