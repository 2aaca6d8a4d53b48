import itertools
import subprocess
import sys

import pytest
import yaml

from icl_align.alignment.options import Options
from icl_align.config import ConfigError, check, differences, leaves
from icl_align.running.cli import check_command_line
from icl_align.running.compose import (
    ADDED_GROUPS,
    CONF,
    compose_config,
    groups,
    groups_of,
)
from icl_align.running.help import help_text
from icl_align.world import WORLDS, options_of
from runs import ROOT, finish, start

BAD = {
    "model.num_heads=5": ["model.num_heads", "5", "1, 2, 4, 8"],
    "task.reward_noise=1.5": ["task.reward_noise", "1.5", "[0, 1]"],
    "task.reward_noise=-0.1": ["task.reward_noise", "-0.1", "[0, 1]"],
    "train.steps=0": ["train.steps", "0", "at least 1"],
    "train.learning_rate=-1": ["train.learning_rate", "-1", "above 0"],
    "train.learning_rate=nan": ["train.learning_rate", "nan"],
    "train.learning_rate=.inf": ["train.learning_rate"],
    "task.num_responses=1": ["task.num_responses", "1", "at least 2"],
    "model.num_layers=abc": ["model.num_layers", "abc", "whole number"],
    "task.dim=2.5": ["task.dim", "2.5", "whole number"],
    "model.mlp=maybe": ["model.mlp", "maybe", "true or false"],
    "model.num_head=3": ["model.num_head", "did you mean model.num_heads?"],
    "modle=paper": ["modle", "did you mean model?"],
    "+steps=3": ["steps"],
    "+seed=1": ["write seed=1"],
    "~seed": ["seed", "cannot be taken away"],
    "task=unknown": ["task", "unknown", "shared_corruption"],
    "model.attention=soft": ["model.attention", "soft", "linear_normalized"],
    "wandb.mode=live": ["wandb.mode", "live", "disabled"],
    "+ablation=nothing": ["ablation", "nothing", "linear_attn"],
    "ablation=shallow": ["+ablation=shallow"],
    "evaluation.reward_noise=[0,2]": ["evaluation.reward_noise", "2", "[0, 1]"],
    "evaluation.reward_noise=[]": ["evaluation.reward_noise"],
    "loss.min_attempts=1": ["loss.min_attempts", "1", "ranking"],
    "loss.max_attempts=21": ["loss.max_attempts", "21", "20"],
    "model.sees_future=true": ["model.sees_future", "model.causal=false"],
    "seed=1,2": ["seed", "-m"],
    "nonsense": ["nonsense", "KEY=VALUE"],
}


@pytest.mark.parametrize("override", BAD)
def test_a_bad_option_is_named_with_its_value_and_what_is_allowed(override):
    with pytest.raises(ConfigError) as error:
        check_command_line([override])
    message = str(error.value)
    assert "\n" not in message
    for part in BAD[override]:
        assert part in message


def test_a_bad_option_ends_with_one_line_status_2_and_no_folder(tmp_path):
    status, out, err = finish(start("model.num_heads=5", cwd=tmp_path))
    assert status == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "model.num_heads=5" in err
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_with_one_bad_value_makes_nothing(tmp_path):
    status, _, err = finish(start("-m", "model.num_heads=4,5", cwd=tmp_path))
    assert status == 2
    assert "model.num_heads=5" in err
    assert list(tmp_path.iterdir()) == []


def test_the_composed_default_is_the_default_of_the_schema():
    assert differences(Options(), compose_config([])) == {}


def test_the_published_configuration_number_for_number():
    # Wang et al. (2024), synthetic study, from the paper and its public code.
    config = compose_config(["+experiment=paper"])
    assert (config.task.dim, config.task.num_responses) == (5, 20)
    model = config.model
    assert (model.num_layers, model.width, model.num_heads) == (20, 96, 3)
    assert (model.mlp_width, model.tokens, model.activation) == (384, "interleaved", "gelu")
    train = config.train
    assert (train.steps, train.batch_size, train.learning_rate) == (3000, 256, 1e-4)
    assert (train.schedule, train.warmup_fraction, train.clip_norm) == ("constant", 0.0, None)
    assert (config.loss.min_attempts, config.loss.max_attempts) == (2, 19)
    descent = config.gradient_descent
    assert (descent.optimizer, descent.learning_rate) == ("adam", 0.1)
    assert (descent.steps, descent.steps_at_full_noise, descent.init) == (50, 25, "torch")


@pytest.mark.parametrize("name", groups()["ablation"])
def test_an_ablation_changes_one_thing_unless_it_is_the_papers(name):
    changed = differences(Options(), compose_config([f"+ablation={name}"]))
    if name.startswith("paper_"):
        assert len(changed) > 1
    else:
        assert len(changed) == (name != "none")


def test_ablations_combine():
    changed = differences(Options(), compose_config(["+ablation=[linear_attn,no_mlp]"]))
    assert set(changed) == {"model.attention", "model.mlp"}


def test_a_value_on_the_command_line_wins_over_a_preset():
    assert compose_config(["+experiment=paper", "train.steps=7"]).train.steps == 7


@pytest.mark.parametrize("world", WORLDS)
def test_every_choice_of_a_world_composes_to_an_allowed_configuration(world):
    for group, names in groups_of(options_of(world)).items():
        for name in names:
            plus = "" if group not in ADDED_GROUPS else "+"
            named = [] if group == "world" else [f"world={world}"]
            compose_config([*named, f"{plus}{group}={name}"])


def test_every_choice_is_of_some_world_and_the_others_say_so():
    every = [groups_of(options_of(world)) for world in WORLDS]
    for group, names in groups().items():
        assert set(names) == set().union(*(one.get(group, []) for one in every))
    with pytest.raises(ConfigError, match=r"is not of world=dialogue; must be one of .*no_mlp"):
        compose_config(["world=dialogue", "+ablation=no_reward"])


def test_every_key_of_conf_is_an_option_of_a_world():
    of_worlds = [{key for key, _, _ in leaves(options_of(world))} for world in WORLDS]
    for path in CONF.glob("*/*.yaml"):
        content = yaml.safe_load(path.read_text()) or {}
        content.pop("defaults", None)
        package = "" if "@package _global_" in path.read_text() else path.parent.name + "."
        stack, named = [(package, content)], set()
        while stack:
            prefix, node = stack.pop()
            for name, value in node.items():
                if isinstance(value, dict):
                    stack.append((f"{prefix}{name}.", value))
                else:
                    named.add(prefix + name)
        assert any(named <= keys for keys in of_worlds), path


def test_help_names_every_option_and_every_choice_without_jax():
    text = help_text("alignment")
    assert all(key in text for key, _, _ in leaves(Options))
    assert all(
        f"{group}={name}" in text for group, names in groups_of(Options).items() for name in names
    )
    program = (
        "import sys; sys.argv = ['train', '--help']; from icl_align.train import main; main();"
        "assert not {'jax', 'hydra', 'wandb'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True)


def test_check_accepts_the_default_and_every_option_has_help():
    check(Options())
    assert all(field.metadata["help"] for _, field, _ in leaves(Options))


@pytest.mark.parametrize(
    "overrides", [*itertools.permutations(["+scale=smoke", "+ablation=single_head"])]
)
def test_an_ablation_takes_away_from_whatever_it_is_combined_with(overrides):
    assert compose_config(list(overrides)).model.num_heads == 1
    assert compose_config(["+scale=smoke", "+experiment=paper"]).train.steps == 20
