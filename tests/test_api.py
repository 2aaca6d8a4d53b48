"""From Python: the examples of the docs, and what the commands would do."""

import contextlib
import doctest
import importlib
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

import icl_align
from icl_align import api
from icl_align.config import ConfigError
from runs import OFF, TINY

FEW = [*TINY, OFF, "train.steps=3", "num_seeds=2", "seed=4"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return icl_align.train(*FEW, folder=tmp_path_factory.mktemp("api") / "run")


@pytest.fixture(scope="module")
def contexts(run):
    return icl_align.sample(run.config, num_contexts=3)


def test_the_examples_are_true(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = api.train
    monkeypatch.setattr(api, "train", lambda *a, **k: _quietly(train, *a, **k))
    result = doctest.testmod(api)
    assert result.attempted > 10
    assert result.failed == 0


def _quietly(function, *args, **kwargs):
    with contextlib.redirect_stdout(None):
        return function(*args, **kwargs)


def test_what_is_loaded_is_what_was_trained(run):
    again = icl_align.load(run.folder)
    assert again.config == run.config
    assert again.curves == json.loads((run.folder / "curves.json").read_text())
    assert again.seeds == [4, 5]
    assert [row["step"] for row in again.metrics if "train/loss" in row] == [3]
    for seed in again.seeds:
        pairs = zip(*map(jax.tree.leaves, (run.params(seed), again.params(seed))), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)
    assert jax.tree.leaves(run.params())[0].shape == jax.tree.leaves(run.state.params)[0].shape[1:]
    with pytest.raises(ValueError, match=r"seed=9: must be one of \[4, 5\]"):
        again.params(9)
    with pytest.raises(ConfigError, match="holds none"):
        icl_align.load(run.folder / "nothing")


def test_predictions_are_of_one_seed_and_of_no_target(run, contexts):
    first, second = (run.predict(contexts, seed=seed) for seed in (4, 5))
    assert first.shape == (3, 5, 5)
    np.testing.assert_array_equal(run.predict(contexts), first)
    assert np.abs(first - second).max() > 1e-3
    unknown = contexts._replace(target=np.full_like(contexts.target, np.nan))
    np.testing.assert_array_equal(run.predict(unknown), first)
    np.testing.assert_array_equal(run.predict(tuple(contexts)[:3]), first)
    fewer = run.predict((contexts.query, contexts.responses[:, :2], contexts.rewards[:, :2]))
    np.testing.assert_allclose(fewer, first[:, :3], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda q, y, r: (q[:, :3], y, r), "query has shape [3, 3]: must be [3, 5]"),
        (lambda q, y, r: (q[0], y[0], r[0]), "query has shape [5]: must be [b, 5]"),
        (lambda q, y, r: (q, y, r[:, :2]), "rewards has shape [3, 2]: must be [3, 4]"),
        (lambda q, y, r: (q, np.tile(y, (1, 2, 1)), np.tile(r, 2)), "8 attempts: at most"),
        (lambda q, y, r: (q, y), "must be query, responses, rewards"),
        (lambda q, y, r: (q, y, r + 1), "rewards: must be in [0, 1]"),
    ],
)
def test_arrays_that_do_not_fit_are_named(run, contexts, change, words):
    with pytest.raises(ValueError) as error:
        run.predict(change(*contexts[:3]))
    assert words in str(error.value)


def test_a_run_without_rewards_sees_none_of_ones_own_either(tmp_path):
    blind = icl_align.train(*FEW, "+ablation=no_reward", folder=tmp_path / "run")
    contexts = icl_align.sample(blind.config, num_contexts=3)
    other = contexts._replace(rewards=contexts.rewards[:, ::-1])
    np.testing.assert_array_equal(blind.predict(contexts), blind.predict(other))


def test_evaluate_gives_the_curves_of_the_command(run):
    assert icl_align.evaluate(run) == run.curves
    once = icl_align.evaluate(run.folder, "evaluation.reward_noise=[0.25]")
    assert list(once["learners"]["transformer"]) == ["0.25"]
    assert not (run.folder / "evaluations").exists()
    with pytest.raises(ConfigError, match="fixed by the trained run"):
        icl_align.evaluate(run, "model.width=8")


def test_learners_answer_what_the_curves_say(run):
    config = run.config
    many = icl_align.sample(config, num_contexts=config.evaluation.num_contexts)
    every = icl_align.learners(config)
    assert list(every) == list(config.measures.learners[1:])
    for name in ("best_attempt", "least_squares", "gradient_descent"):
        errors = 1 - _cosine(every[name](many), many.target[:, None])
        curve = run.curves["learners"][name]["0.0"]["refinement_error"]["mean"]
        np.testing.assert_allclose(errors.mean(0)[1:], curve[1:], atol=1e-4)


def _cosine(a, b):
    return np.sum(a * b, -1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1) + 1e-12)


def test_settings_of_the_users_own_program_neither_matter_nor_change(run, contexts):
    expected = run.predict(contexts)
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        doubles = jax.tree.map(lambda array: np.asarray(array, np.float64), contexts)
        np.testing.assert_array_equal(icl_align.load(run.folder).predict(doubles), expected)
        assert icl_align.sample(run.config).query.dtype == np.float32
        assert jax.numpy.arange(2.0).dtype == np.float64


def test_a_command_that_was_imported_is_a_function_too(run):
    for name in ("train", "evaluate"):
        module = importlib.import_module(f"icl_align.{name}")
        assert module is getattr(icl_align, name)
        assert callable(module)
    assert icl_align.evaluate(run) == run.curves


def test_importing_the_package_imports_no_jax():
    program = "import icl_align, sys; print('jax' in sys.modules, dir(icl_align)[-6:])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.startswith("False ["), done.stderr
    with pytest.raises(AttributeError, match="nonsense"):
        icl_align.nonsense  # noqa: B018
