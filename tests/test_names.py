"""Every closed list of names is tied to its code: no name is declared without, and none falls through."""

import re
import shutil
import subprocess
import sys

import jax
import pytest

from icl_align.config import implemented, leaves, with_values
from icl_align.dialogue.options import KINDS
from icl_align.running.compose import CONF
from icl_align.running.keys import evaluation_key, numbered_keys
from icl_align.running.training import init_state, loss_of, network_of
from icl_align.world import WORLDS, World, options_of, world_of
from runs import ROOT, TINY, finish, start

# A mixture of all kinds takes a minute to go through.
SLOW = {("dialogue", "task.name"), ("dialogue", "evaluation.kind")}
CLOSED = [
    pytest.param(
        world,
        key,
        field.metadata["choices"],
        marks=[pytest.mark.slow] if (world, key) in SLOW else [],
        id=f"{world}-{key}",
    )
    for world in WORLDS
    for key, field, _ in leaves(options_of(world))
    if field.metadata["choices"] and not key.startswith("wandb.")
]


def trace_everything(config):
    """Goes through all that a run computes, without computing it."""
    keys = numbered_keys(evaluation_key(0), jax.numpy.arange(2))
    state = jax.eval_shape(lambda: init_state(config))
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), state.params
    )
    jax.eval_shape(lambda params: loss_of(config, params, keys), params)
    world = world_of(config)
    condition = next(iter(world.conditions(config).values()))
    found = jax.eval_shape(lambda c: world.untrained(config, c, keys), condition)

    def trained(params, needed):
        return world.trained(config, condition, keys, network_of(config)(params), needed)

    jax.eval_shape(trained, params, found.needed)


def small(world, values):
    config = options_of(world)()
    sizes = {"model.num_layers": 1, "model.width": 8, "model.num_heads": 2}
    if values.get("evaluation.kind") in KINDS:  # of those that are mixed
        sizes["task.name"] = values["evaluation.kind"]
    if any(key.startswith("own_rounds.") for key in values):
        sizes["train.own_rounds_share"] = 0.5
    fields = {key: field for key, field, _ in leaves(config)}
    listed = {
        key: [value] if fields[key].type == list[str] else value for key, value in values.items()
    }
    return with_values(config, sizes | listed)


@pytest.mark.parametrize(("world", "key", "choices"), CLOSED)
def test_every_name_has_code_and_no_other_name_falls_through(world, key, choices):
    for name in choices:
        trace_everything(small(world, {key: name}))
    with pytest.raises((KeyError, ModuleNotFoundError)) as error:
        trace_everything(small(world, {key: "nonsense"}))
    assert "nonsense" in str(error.value)


def test_wandb_itself_refuses_a_mode_that_it_does_not_have():
    import wandb

    with pytest.raises(Exception, match="nonsense"):
        wandb.Settings(mode="nonsense")


def test_a_table_has_all_names_and_no_other():
    assert implemented(("a", "b"), {"b": 1, "a": 2}) == {"a": 2, "b": 1}
    with pytest.raises(TypeError, match=r"without code: \['b'\]"):
        implemented(("a", "b"), {"a": 1})
    with pytest.raises(TypeError, match=r"without a name: \['c'\]"):
        implemented(("a",), {"a": 1, "c": 2})


def test_every_world_is_a_package_with_options_and_a_file_and_no_other_is():
    for world in WORLDS:
        config = options_of(world)()
        assert config.world == world
        assert isinstance(world_of(config), World)
        assert (CONF / "world" / f"{world}.yaml").exists()
        assert set(world_of(config).conditions(config)) == set(
            config.measures.conditions(config.evaluation)
        )
    packages = {path.parent.name for path in (ROOT / "icl_align").glob("*/world.py")}
    assert packages == set(WORLDS) == {path.stem for path in (CONF / "world").glob("*.yaml")}


@pytest.mark.parametrize("group", ["task", "loss"])
def test_the_files_of_a_group_are_the_names_of_its_option(group):
    names = {
        name
        for world in WORLDS
        for key, field, _ in leaves(options_of(world))
        if key == f"{group}.name"
        for name in field.metadata["choices"]
    }
    assert names == {path.stem for path in (CONF / group).glob("*.yaml")}


@pytest.fixture
def checkout(tmp_path):
    for package in ("icl_align", "conf"):
        shutil.copytree(ROOT / package, tmp_path / package)
    return tmp_path


def edit(path, old, new):
    text = path.read_text()
    assert text.count(old) == 1, old
    path.write_text(text.replace(old, new))


SAMPLER = '''
def equal_rewards(task: TaskConfig, key: Key[Array, ""]) -> Context:
    """A context in which no attempt is better than another."""
    context = shared_corruption(task, key)
    return context._replace(rewards=jnp.full_like(context.rewards, 0.5))


# Task -> '''


def test_a_task_is_added_as_contributing_says(checkout):
    row = next(
        line
        for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines()
        if line.startswith("| another way to draw contexts |")
    )
    said = re.findall(r"`([^`]+)`", row)
    assert said == [
        "icl_align/alignment/contexts.py",
        "SAMPLERS",
        "TASKS",
        "options.py",
        "conf/task/",
    ]
    package = checkout / "icl_align" / "alignment"
    edit(package / "contexts.py", "# Task -> ", SAMPLER.lstrip("\n"))
    entry = '        "independent_corruption": independent_corruption,\n'
    edit(package / "contexts.py", entry, entry + '        "equal_rewards": equal_rewards,\n')
    imported = [sys.executable, "-c", "import icl_align.alignment.contexts"]
    half_done = subprocess.run(imported, cwd=checkout, capture_output=True, text=True)
    assert "without a name: ['equal_rewards']" in half_done.stderr
    edit(
        package / "options.py",
        '"independent_corruption")',
        '"independent_corruption", "equal_rewards")',
    )
    (checkout / "conf" / "task" / "equal_rewards.yaml").write_text("name: equal_rewards\n")
    arguments = [*TINY, "task=equal_rewards", "train.steps=2", "wandb.mode=disabled"]
    status, out, err = finish(start(*arguments, cwd=checkout, env_path=checkout))
    assert status == 0, err
    assert "task.name=equal_rewards" in out
    # Without noise no attempt is better than another, so no answer has anything to lose.
    rows = [line.split() for line in out.splitlines()]
    regrets = [row for row in rows if row[:1] in (["transformer"], ["best_attempt"])][2:4]
    assert [row[1] for row in regrets] == ["0.000±.000"] * 2
