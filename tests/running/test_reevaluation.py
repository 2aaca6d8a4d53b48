import pytest

from icl_align.alignment.options import Options
from icl_align.config import ConfigError
from icl_align.running.reevaluation import evaluation_config
from runs import tiny


@pytest.mark.parametrize(
    "override",
    ["model.width=3", "seed=1", "task.dim=3", "train.steps=3", "loss=cosine", "+ablation=no_mlp"],
)
def test_what_the_trained_run_fixes_cannot_be_changed(override):
    with pytest.raises(ConfigError, match="fixed by the trained run"):
        evaluation_config(Options(), [override])


def test_more_attempts_than_learned_positions_are_refused():
    with pytest.raises(ConfigError, match="at most 20"):
        evaluation_config(Options(), ["task.num_responses=21"])
    config = tiny("model.positions=false")
    assert evaluation_config(config, ["task.num_responses=9"]).task.num_responses == 9


@pytest.mark.parametrize("override", ["task.reward_noise=2", "evaluation.num_contexts=x", "task=y"])
def test_a_bad_value_is_named(override):
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        evaluation_config(Options(), [override])
