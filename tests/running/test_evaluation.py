"""Facts of the curves, and of how their computation is divided and what of it is kept."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_align.alignment.contexts import sample_contexts, shown_to_transformer
from icl_align.alignment.metrics import refinement_error
from icl_align.running import measuring as measuring_module
from icl_align.running.evaluation import (
    are_of,
    by_configuration,
    compute_curves,
    evaluated_options,
)
from icl_align.running.kept import Kept
from icl_align.running.keys import evaluation_keys
from icl_align.running.measuring import Measuring
from icl_align.running.reevaluation import evaluation_config
from icl_align.running.training import init_state, network_of, state_shapes
from runs import tiny

CONTEXTS = 21  # of which a batch of 5 leaves one over


@pytest.fixture(scope="module")
def untrained():
    several = [f"evaluation.num_contexts={CONTEXTS}", "num_seeds=2"]
    config = tiny(*several, "+ablation=shuffled_reward")
    return config, init_state(config)


@pytest.fixture(scope="module")
def curves(untrained):
    return compute_curves(*untrained)


def measuring_of_zeros(*overrides):
    """Of networks whose parameters are all zero."""
    config = tiny("evaluation.num_contexts=20", *overrides)
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), state_shapes(config).params)
    return Measuring(config, by_configuration([config], zeros))


def leaves_of(curves):
    return [
        np.array(curve[name])
        for levels in curves["learners"].values()
        for quantities in levels.values()
        for curve in quantities.values()
        for name in ("mean", "low", "high")
    ]


def test_the_transformers_curve_is_the_mean_over_seeds_and_contexts(untrained, curves):
    config, state = untrained
    keys = evaluation_keys(config.evaluation.seed, jnp.arange(CONTEXTS))
    contexts = sample_contexts(config.task, keys, 1.0)
    shown = shown_to_transformer(config.task, contexts, keys)
    errors = []
    for seed in range(2):
        one = jax.tree.map(lambda leaf, s=seed: leaf[s], state.params)
        errors.append(refinement_error(network_of(config)(one)(shown), contexts))
    curve = curves["learners"]["transformer"]["1.0"]["refinement_error"]
    np.testing.assert_allclose(curve["mean"], np.mean(errors, axis=(0, 1)), atol=1e-5)
    np.testing.assert_allclose(curve["by_seed"], np.mean(errors, axis=1), atol=1e-5)
    assert curves["seeds"] == [0, 1]


@pytest.mark.parametrize("program", measuring_module.PROGRAMS)
def test_a_batch_too_large_for_memory_is_made_smaller(program, untrained, monkeypatch):
    config, state = untrained
    measuring = Measuring(config, by_configuration([config], state.params))
    needed = measuring._program(program, CONTEXTS).memory_analysis().temp_size_in_bytes
    assert measuring.fitting_size(program) == CONTEXTS
    # One that half of the batch needs; what it is given is a share of what there is.
    there = int(needed / 2 / measuring_module.MEMORY_SHARE)
    monkeypatch.setattr(measuring_module, "available_memory", lambda devices: there)
    assert 1 < measuring.fitting_size(program) <= CONTEXTS // 2


def test_a_device_that_runs_out_of_memory_gets_smaller_batches(untrained, curves, monkeypatch):
    config, state = untrained

    def on_a_small_device(method):
        def call(self, condition, sample, first, size, *needed):
            if size > 6:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
            return method(self, condition, sample, first, size, *needed)

        return call

    for name in measuring_module.PROGRAMS:
        monkeypatch.setattr(Measuring, name, on_a_small_device(getattr(Measuring, name)))
    for a, b in zip(leaves_of(curves), leaves_of(compute_curves(config, state)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


def test_what_needs_no_training_is_computed_once_and_the_next_run_finds_it(
    untrained, monkeypatch, tmp_path
):
    config, state = untrained
    kept = Kept(tmp_path)
    first = compute_curves(config, state, kept=kept)

    def computed_again(*_):
        raise AssertionError("it was kept")

    monkeypatch.setattr(Measuring, "untrained", computed_again)
    other = state._replace(params=jax.tree.map(lambda leaf: 1.1 * leaf, state.params))
    second = compute_curves(config, other, kept=kept)
    assert compute_curves(config, state, kept=kept) == first
    for name, levels in first["learners"].items():
        assert (second["learners"][name] == levels) == (name != "transformer")


@pytest.mark.parametrize(
    "override",
    [
        "evaluation.seed=1",
        "evaluation.num_contexts=19",
        "evaluation.own_contexts=true",
        "task.unit_norm_queries=true",
        "task.num_responses=3",
        "task=independent_corruption",
        "task.reward_transform=rank",
        "gradient_descent.steps=3",
        "gradient_descent.learning_rate=0.2",
        "loss=bradley_terry",
        "loss.score=negative_squared_distance",
    ],
)
def test_what_is_kept_is_found_for_no_other_contexts_and_learners(override, monkeypatch):
    monkeypatch.setattr(Measuring, "_program", lambda *_: None)  # nothing is compiled

    assert not names_of_what_is_kept() & names_of_what_is_kept(override)


@functools.cache
def names_of_what_is_kept(*overrides):
    measuring = measuring_of_zeros("num_seeds=2", *overrides)
    count = measuring._config.evaluation.num_contexts
    samples = range(measuring.num_samples)
    return {f"{measuring.fingerprint('0.0', sample)} {count}" for sample in samples}


def test_what_is_kept_is_found_whatever_was_trained(monkeypatch):
    monkeypatch.setattr(Measuring, "_program", lambda *_: None)  # nothing is compiled
    others = ["model.num_layers=2", "train.steps=3", "seed=5"]
    others += ["evaluation.batch_size=3", "train.learning_rate=0.1"]
    assert names_of_what_is_kept() == names_of_what_is_kept(*others)
    assert names_of_what_is_kept() == names_of_what_is_kept("num_seeds=1")


def test_facts_that_hold_for_every_curve(curves):
    for levels in curves["learners"].values():
        for quantities in levels.values():
            assert min(quantities["regret"]["mean"]) > -1e-3
            np.testing.assert_allclose(quantities["regret"]["mean"][:2], 0, atol=1e-6)
    descent = curves["learners"]["gradient_descent"]["0.0"]["agreement"]["mean"]
    np.testing.assert_allclose(descent, 1, atol=1e-5)
    optimum = curves["learners"]["plackett_luce_optimum"]["1.0"]["regret"]["mean"]
    np.testing.assert_allclose(optimum, 0, atol=1e-6)
    # Two attempts determine the line that the published responses lie on.
    exact = curves["learners"]["least_squares"]["0.0"]["refinement_error"]["mean"]
    np.testing.assert_allclose(exact[2:], 0, atol=1e-3)
    assert curves["optimum_not_converged"] == {"0.0": 0.0, "1.0": 0.0}


def test_a_monotone_transform_moves_no_ranker(untrained, curves):
    config, state = untrained
    config = evaluation_config(config, ["task.reward_transform=power"])
    powered = compute_curves(config, state)
    for name in ("plackett_luce_optimum", "gradient_descent", "best_attempt"):
        for quantity in ("refinement_error", "regret"):
            a, b = (c["learners"][name]["0.0"][quantity]["mean"] for c in (curves, powered))
            np.testing.assert_allclose(a, b, atol=1e-4)
    a, b = (
        c["learners"]["least_squares"]["0.0"]["refinement_error"]["mean"] for c in (curves, powered)
    )
    assert np.abs(np.subtract(a, b)).max() > 0.01


def test_curves_do_not_depend_on_options_that_only_the_study_reads():
    config = tiny()
    there = evaluated_options(config)
    older = copy.deepcopy(there)  # of a run from before there were own rounds
    del older["own_rounds"], older["evaluation"]["own_rounds"]
    for options in (older, there):
        curves = {"step": 3, "options": options}
        studied = tiny("evaluation.own_rounds=2", "own_rounds.critic=direction")
        assert are_of(config, 3, curves) and are_of(studied, 3, curves)
        assert not are_of(config, 4, curves)
        assert not are_of(tiny("evaluation.seed=1"), 3, curves)
