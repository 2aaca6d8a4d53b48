"""Facts of the comparison of a run with the construction: each of its measures on known learners."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_align.alignment.learners import (
    best_attempt,
    gradient_descent,
    least_squares,
    weighted_average,
)
from icl_align.alignment.losses import cosine_similarity
from icl_align.alignment.options import GradientDescentConfig
from icl_align.alignment.theory import trained
from icl_align.alignment.theory.assembly import Network, as_module, parameter_shapes, run_last_row
from icl_align.alignment.theory.construction import constructed_step
from icl_align.alignment.theory.continued import training_from_the_construction
from icl_align.alignment.theory.descent import first_attempts, held_out, plain_descent
from icl_align.alignment.theory.inside import attention_by_rank, probe, read_token_by_layer
from icl_align.alignment.theory.trained import (
    agreement_of_answers,
    agreement_of_sensitivities,
    mean_with_interval,
    reaction_to_transforms,
    sensitivity,
)
from icl_align.running.training import init_state
from runs import tiny

N, D = 4, 3
CONFIG = tiny(f"task.dim={D}", "num_seeds=2", "seed=5")


def after_all(learner):
    return lambda contexts, keys: learner(contexts)[..., -1, :]


SIMPLE = {
    "best_attempt": after_all(best_attempt),
    "weighted_average": after_all(weighted_average),
    "least_squares": after_all(least_squares),
}


@pytest.fixture(scope="module")
def contexts_and_keys():
    return held_out(CONFIG, 64)


@pytest.fixture(scope="module")
def answers():
    """All learners of a comparison whose run has the published gradient descent."""
    config = dataclasses.replace(CONFIG, gradient_descent=GradientDescentConfig())
    params = init_state(config).params
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trained, "tuned_learning_rate", lambda config, num_steps: 0.1)
        return trained.learners(config, params, params)


# ---------------------------------------------------------------------------- contexts and learners


def test_held_out_contexts_are_numbered():
    whole, keys = held_out(CONFIG, 6)
    rest, their_keys = held_out(CONFIG, 4, start=2)
    assert jnp.array_equal(jax.random.key_data(keys[2:]), jax.random.key_data(their_keys))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[2:], b), whole, rest)
    cut = first_attempts(whole, 3)
    np.testing.assert_array_equal(cut.responses, whole.responses[:, :3])
    np.testing.assert_array_equal(cut.rewards, whole.rewards[:, :3])


def test_the_construction_takes_one_plain_step_of_descent(contexts_and_keys, answers):
    contexts, keys = contexts_and_keys
    step = gradient_descent(
        contexts, plain_descent(1, 0.1), keys, score="negative_squared_distance"
    )[:, -1]
    built = jax.jit(answers["constructed, 1 step"])(contexts, keys)
    assert np.min(cosine_similarity(built, step)) > 0.999
    assert np.mean(cosine_similarity(built, best_attempt(contexts)[:, -1])) < 0.99


def test_gradient_descent_after_some_attempts_is_those_rows_of_all(contexts_and_keys):
    contexts, keys = jax.tree.map(lambda array: array[:4], contexts_and_keys)
    some = jnp.array([4, 2])
    for init in ("torch", "zero"):
        options = GradientDescentConfig(steps=3, init=init)
        rows = gradient_descent(contexts, options, keys)
        given = gradient_descent(contexts, options, keys, attempts=some)
        np.testing.assert_allclose(given, rows[:, some], atol=1e-5)


def test_every_seed_of_the_run_is_a_learner_and_they_differ(contexts_and_keys, answers):
    assert [name for name in answers if name.startswith("transformer")] == [
        "transformer, seed 5",
        "transformer, seed 6",
    ]
    first, second, untrained = (
        np.asarray(jax.jit(answers[name])(*contexts_and_keys))
        for name in ("transformer, seed 5", "transformer, seed 6", "untrained")
    )
    np.testing.assert_array_equal(first, untrained)
    assert np.abs(first - second).max() > 1e-3


# ------------------------------------------------------------------------------------ comparisons


def test_the_mean_has_the_usual_interval():
    values = np.array([0.0, 1.0, 2.0, 3.0])
    half = 1.96 * math.sqrt(5 / 3) / 2
    assert mean_with_interval(values) == pytest.approx({"mean": 1.5, "half_width": half})


def test_agreement_is_symmetric_and_the_mean_cosine_after_so_many_attempts():
    table = agreement_of_answers(SIMPLE, CONFIG, 16)
    assert list(table) == [2, 4]
    contexts, _ = held_out(CONFIG, 16)
    for n, by_learner in table.items():
        means = np.array([[by_learner[a][b]["mean"] for b in SIMPLE] for a in SIMPLE])
        np.testing.assert_allclose(means, means.T, atol=1e-6)
        np.testing.assert_allclose(np.diag(means), 1, atol=1e-6)
        expected = cosine_similarity(best_attempt(contexts)[:, n], least_squares(contexts)[:, n])
        assert means[0, 2] == pytest.approx(float(jnp.mean(expected)), abs=1e-5)
        assert means[0, 2] < 0.99


def test_the_sensitivity_is_the_jacobian_of_the_answer_s_direction(contexts_and_keys):
    contexts, keys = jax.tree.map(lambda array: array[:5], contexts_and_keys)

    def direction(responses, rewards):
        given = rewards @ responses / jnp.sum(rewards)
        return given / jnp.linalg.norm(given)

    expected = jax.vmap(jax.jacrev(direction))(contexts.responses, contexts.rewards)
    found = sensitivity(SIMPLE["weighted_average"], contexts, keys)
    assert found.shape == (5, D, N, D)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(sensitivity(lambda c, k: c.query, contexts, keys), 0)


def test_the_published_descent_has_a_finite_sensitivity(contexts_and_keys, answers):
    # Adam divides by the root of a squared gradient, which is 0 where nothing can be learned.
    contexts, keys = jax.tree.map(lambda array: array[:8], contexts_and_keys)
    descent = answers["gradient_descent"]
    found = jax.jit(lambda contexts, keys: sensitivity(descent, contexts, keys))(contexts, keys)
    assert np.all(np.isfinite(found))
    assert np.all(np.abs(found).max(axis=(1, 2, 3)) > 1e-3)


def test_sensitivities_agree_whatever_their_scale_and_the_search_for_an_optimum_has_none():
    double = {"double": lambda c, k: 2 * weighted_average(c)[..., -1, :]}
    optimum = {"plackett_luce_optimum": SIMPLE["best_attempt"]}
    table = agreement_of_sensitivities(SIMPLE | double | optimum, CONFIG, 16, 3)
    assert set(table) == set(SIMPLE) | {"double"}
    assert table["double"]["weighted_average"]["mean"] == pytest.approx(1, abs=1e-5)
    assert table["best_attempt"]["weighted_average"]["mean"] < 0.99


def test_only_what_reads_rewards_as_numbers_reacts_to_a_monotone_transform(answers):
    rankers = ("gradient_descent", "constructed, 1 step", "best_attempt")
    readers = ("weighted_average", "least_squares")
    moved = reaction_to_transforms({name: answers[name] for name in rankers + readers}, CONFIG, 64)
    for name, by_transform in moved.items():
        assert list(by_transform) == list(trained.TRANSFORMS)
        assert by_transform.pop("1 - r")["mean"] > 0.1  # turned round, not monotone
        for value in by_transform.values():
            assert abs(value["mean"]) < 1e-5 if name in rankers else value["mean"] > 3e-3


# ------------------------------------------------------------------------------------------ inside


def test_a_probe_finds_what_is_linear_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    features = np.hstack([rng.normal(size=(400, 6)) * 10.0 ** np.arange(-3, 3), np.ones((400, 1))])
    targets = features[:, :4] @ rng.normal(size=(4, D)) * 1e-2 + 7
    assert probe(features, targets) > 0.99
    assert -0.5 < probe(features, rng.normal(size=(400, D))) < 0.05


def test_a_probe_is_judged_on_the_half_that_it_was_not_fitted_to():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(400, 6))
    targets = features[:, :D] * np.where(np.arange(400) < 200, 1.0, -1.0)[:, None]
    assert probe(features, targets) < -2


def test_the_last_layer_s_token_is_what_is_read_out(contexts_and_keys):
    contexts, _ = contexts_and_keys
    network = constructed_step(CONFIG)

    def last_and_answer(params, contexts):
        network_of = Network(network.config, params)
        layers = read_token_by_layer(network_of, contexts)
        return (
            layers,
            as_module(network_of).read_out(layers[-1]),
            run_last_row(network_of, contexts),
        )

    layers, read, answer = jax.jit(last_and_answer)(network.params, contexts)
    assert layers.shape == (N, 64, network.config.model.width)
    np.testing.assert_allclose(read, answer, atol=1e-5)
    # Before the first block nothing is known of the update.
    assert np.abs(as_module(network).read_out(layers[0])).max() < 1e-6 < np.abs(answer).max()


def test_head_1_of_block_l_of_the_construction_reads_the_attempt_of_rank_l(contexts_and_keys):
    contexts, _ = contexts_and_keys
    network = constructed_step(CONFIG)
    program = jax.jit(
        lambda params: attention_by_rank(
            Network(network.config, params), contexts, contexts.rewards
        )
    )
    maps = np.asarray(program(network.params))
    assert maps.shape == (N - 1, 2, N)
    np.testing.assert_allclose(maps[:, 0], np.eye(N - 1, N), atol=1e-4)
    # Head 2 averages over what is left: rank l and below.
    np.testing.assert_allclose(np.tril(maps[:, 1], -1), 0, atol=1e-4)
    np.testing.assert_allclose(maps[:, 1].sum(axis=-1), 1, atol=1e-4)
    assert maps[0, 1].min() > 0.01


@pytest.mark.parametrize(("tokens", "each"), [("interleaved", 3), ("triplet", 1)])
def test_all_tokens_of_an_attempt_count_and_what_is_missing_is_the_bare_query_s(tokens, each):
    config = tiny(f"task.dim={D}", f"model.tokens={tokens}")
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), parameter_shapes(config))
    contexts, _ = held_out(config, 8)
    maps = jax.jit(
        lambda params: attention_by_rank(Network(config, params), contexts, contexts.rewards)
    )(params)
    np.testing.assert_allclose(maps, np.full((1, 2, N), each / (each * N + 1)), rtol=1e-5)


# ------------------------------------------------------------------------- training from it


def test_training_starts_at_the_construction_and_goes_on_from_there():
    shares = []
    results = training_from_the_construction(CONFIG, 2, 2, shares.append)
    starts = results["starts"]
    assert {of["diverged_by"] for of_seeds in starts.values() for of in of_seeds} == {None}
    assert {len(of_seeds) for of_seeds in starts.values()} == {CONFIG.num_seeds}
    rows = {name: of_seeds[0]["rows"] for name, of_seeds in starts.items()}
    assert all(row["loss"] > results["optimum"] for of_start in rows.values() for row in of_start)
    assert list(rows) == [
        "constructed",
        "constructed, slow",
        "dull",
        "dull, slow",
        "initialised",
    ]
    for of_start in rows.values():
        assert [row["step"] for row in of_start] == [0, 1, 2]
        assert all(math.isfinite(value) for row in of_start for value in row.values())
        assert of_start[-1]["loss"] != of_start[0]["loss"]
    for start in ("constructed", "constructed, slow"):
        assert rows[start][0]["agreement"] == pytest.approx(1, abs=1e-4)
        assert rows[start][0]["picks"] == pytest.approx(1, abs=1e-3)
    assert rows["dull"][0] == rows["dull, slow"][0]
    assert 0.5 < rows["dull"][0]["picks"] < 0.999
    assert rows["initialised"][0]["agreement"] < 0.9
    assert rows["dull, slow"][-1]["agreement"] > 0.9 > rows["dull"][-1]["agreement"]
    assert rows["constructed, slow"][-1]["agreement"] > rows["constructed"][-1]["agreement"]
    assert shares == sorted(shares)
    assert shares[-1] == 1
