"""Facts of the knock-outs: what they change, what they miss, and how they are repaired."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_align.alignment.losses import plackett_luce
from icl_align.alignment.theory import knock_outs as knock_outs_module
from icl_align.alignment.theory.assembly import Network
from icl_align.alignment.theory.construction import plackett_luce_network
from icl_align.alignment.theory.knock_outs import (
    LEARNING_RATE,
    REPAIRS,
    Steps,
    error_as_left,
    initial_params,
    knock_out,
    knock_out_table,
    knock_outs,
    make_repair,
    mended_by,
    repairs,
    sample_steps,
    shares_missed,
)
from icl_align.config import check, differences
from icl_align.running.training import init_state

D, N = 2, 3
POLICY = np.array([[0.6, -0.4], [0.3, 0.9]])
CHANGED = {
    "intact": set(),
    "linear_attn": {"model.attention"},
    "linear_normalized_attn": {"model.attention"},
    "single_head": {"model.num_heads"},
    "no_mlp": {"model.mlp", "model.mlp_width"},
    "one_block_fewer": {"model.num_layers"},
    "causal_mask": {"model.causal"},
    "layer_norm": {"model.norm"},
}


def network(policy=POLICY, dtype=jnp.float32):
    return plackett_luce_network(policy, LEARNING_RATE, N, dtype=dtype)


def steps_of(policy=POLICY, size=64, seed=0):
    return sample_steps(jax.random.key(seed), jnp.asarray(policy), N, size)


def missed_by(network, held_out):
    program = jax.jit(lambda params: shares_missed(Network(network.config, params), held_out))
    return np.asarray(program(network.params))


def with_update_read_out(network, factor):
    """The network with another factor of `update`, the last channel, in its prediction."""
    read_out = network.params["read_out"]
    kernel = read_out["kernel"]
    update = (jnp.arange(len(kernel)) >= 2 * D + 3) & (jnp.arange(len(kernel)) < 3 * D + 3)
    kernel = jnp.where(update[:, None], factor * kernel, kernel)
    read_out = read_out | {"kernel": kernel}
    return network._replace(params=network.params | {"read_out": read_out})


def leaves_by_path(params):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}


# ------------------------------------------------------------------------------------- the target


def test_the_target_is_the_prediction_after_a_step_on_the_policy():
    def loss(policy, query, responses, rewards):
        return plackett_luce(-jnp.sum((policy @ query - responses) ** 2, axis=-1), rewards)

    with jax.enable_x64(True):
        (queries, responses, rewards, target), before = steps_of()
        policy = jnp.asarray(POLICY)
        gradients = jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0, 0)))
        after = policy - LEARNING_RATE * gradients(policy, queries, responses, rewards)
        np.testing.assert_allclose(jnp.linalg.norm(queries, axis=-1), 1, rtol=1e-12)
        np.testing.assert_allclose(before, queries @ policy.T, atol=1e-12)
        np.testing.assert_allclose(target, jnp.einsum("bij,bj->bi", after, queries), atol=1e-12)
        assert np.linalg.norm(target - before, axis=-1).min() > 1e-3


@pytest.mark.parametrize(("dtype", "most"), [("float64", 1e-6), ("float32", 1e-5)])
def test_the_intact_network_misses_nothing_and_half_of_its_update_misses_half(dtype, most):
    with jax.enable_x64(dtype == "float64"):
        held_out = steps_of(POLICY.astype(dtype))
        assert held_out.before.dtype == dtype
        intact = network(dtype=jnp.dtype(dtype))
        assert missed_by(intact, held_out).max() < most
        for factor in (0.0, 0.5, 3.0):
            other = with_update_read_out(intact, factor)
            np.testing.assert_allclose(missed_by(other, held_out), abs(1 - factor), rtol=most)


def test_a_network_that_leaves_the_prediction_where_it_was_misses_exactly_everything():
    held_out = steps_of(np.zeros((D, D), np.float32))
    built = network(np.zeros((D, D)))
    idle = built._replace(params=jax.tree.map(jnp.zeros_like, built.params))
    np.testing.assert_array_equal(missed_by(idle, held_out), 1)


def test_each_half_of_the_sample_is_judged_apart():
    contexts, before = steps_of(POLICY.astype(np.float32))
    second_half = (jnp.arange(len(before)) >= len(before) // 2)[:, None]
    doubled = jnp.where(second_half, 2 * contexts.target - before, contexts.target)
    held_out = Steps(contexts._replace(target=doubled), before)
    np.testing.assert_allclose(missed_by(network(), held_out), [0, 0.5], atol=1e-5)


# --------------------------------------------------------------------------------- the knock-outs


def test_a_knock_out_changes_one_aspect_of_the_architecture():
    intact = network()
    assert set(knock_outs(N)) == set(CHANGED)
    for name, changes in knock_outs(N).items():
        config = knock_out(intact, **changes).config
        check(config)
        assert set(differences(intact.config, config)) == CHANGED[name]
    assert knock_outs(7)["one_block_fewer"] == {"num_layers": 5}


def test_without_a_change_the_weights_are_the_same():
    intact = network()
    same = knock_out(intact)
    assert same.config == intact.config
    jax.tree.map(np.testing.assert_array_equal, same.params, intact.params)


@pytest.mark.parametrize("name", [name for name in CHANGED if name != "intact"])
def test_a_knock_out_keeps_what_fits_and_adds_only_a_layer_norm_that_does_nothing(name):
    intact = network()
    before = leaves_by_path(intact.params)
    after = leaves_by_path(knock_out(intact, **knock_outs(N)[name]).params)
    for path in before.keys() & after.keys():
        np.testing.assert_array_equal(after[path], before[path])
        assert after[path].dtype == before[path].dtype
    dropped, added = before.keys() - after.keys(), after.keys() - before.keys()
    lost = {"no_mlp": "['mlp']", "one_block_fewer": f"['blocks'][{N - 2}]"}.get(name)
    assert dropped == {path for path in before if lost and lost in path}
    assert bool(dropped) == (lost is not None)
    assert bool(added) == (name == "layer_norm")
    for path in added:
        np.testing.assert_array_equal(after[path], 1.0 if "scale" in path else 0.0)
    assert not added or {path.rpartition("[")[2] for path in added} == {"'scale']", "'bias']"}


@pytest.mark.parametrize("name", CHANGED)
def test_only_the_intact_network_makes_the_step(name):
    error = error_as_left(name, D, N, seed=0)
    assert error < 1e-6 if name == "intact" else error > 0.05


# ------------------------------------------------------------------------------------- the repairs


def test_starts_are_those_of_training():
    config = dataclasses.replace(network().config, seed=3, num_seeds=2)
    starts, expected = initial_params(config, [3, 4]), init_state(config).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), starts, expected)


def test_a_short_repair_misses_less_and_is_a_function_of_its_key():
    config = network().config
    pool, held_out = (steps_of(POLICY.astype(np.float32), 256, seed) for seed in (1, 2))
    starts = initial_params(config, [0, 0, 0])
    first, second = jax.random.split(jax.random.key(0))
    repair = make_repair(config, 30)
    keys = jnp.stack([first, first, second])
    repaired = repair(starts, jnp.array([0.03, 0.03, 0.03]), keys, pool)
    missed = jax.jit(jax.vmap(lambda one: shares_missed(Network(config, one), held_out)))
    before, after = np.asarray(missed(starts)), np.asarray(missed(repaired))
    assert np.all(after < 0.9 * before)
    np.testing.assert_array_equal(after[0], after[1])
    assert np.abs(after[2] - after[0]).max() > 1e-4
    again = repair(starts, jnp.array([0.03, 0.03, 0.03]), keys, pool)
    jax.tree.map(np.testing.assert_array_equal, repaired, again)


def test_one_half_of_the_held_out_chooses_a_start_and_the_other_judges_it(monkeypatch):
    widths = []

    def idle(config, num_steps):
        widths.append(config.model.width)
        return lambda starts, rates, keys, pool: starts

    def opposed(network, held_out):  # the best by validation is the worst by test
        judged = jnp.sum(network.params["read_out"]["kernel"])
        return jnp.stack([-judged, judged])

    monkeypatch.setattr(knock_outs_module, "make_repair", idle)
    monkeypatch.setattr(knock_outs_module, "shares_missed", opposed)
    monkeypatch.setattr(knock_outs_module, "POOL", 8)
    monkeypatch.setattr(knock_outs_module, "HELD_OUT", 8)
    results = repairs("no_mlp", D, N, num_steps=1, num_seeds=2, seed=0)
    refit_start = D * (1 + 2 * LEARNING_RATE)
    assert results.pop("before_refit") == pytest.approx(refit_start)
    assert {name: len(result["all"]) for name, result in results.items()} == {
        "refit": 3,
        "scratch": 4,
        "wide": 4,
    }
    for result in results.values():
        assert result["best"] == max(result["all"])
    assert min(results["scratch"]["all"]) < results["scratch"]["best"]
    # A refit starts from the construction: W x and twice the learning rate of the update.
    np.testing.assert_allclose(results["refit"]["all"], refit_start, rtol=1e-6)
    assert widths == [3 * D + 4, 32]


def test_a_repair_that_diverges_is_never_the_best(monkeypatch):
    def every_other_diverges(starts, rates, keys, pool):
        return jax.tree.map(lambda leaf: leaf.at[::2].set(jnp.nan), starts)

    def sum_of_read_out(network, held_out):
        return jnp.abs(jnp.sum(network.params["read_out"]["kernel"])) * jnp.ones(2)

    monkeypatch.setattr(knock_outs_module, "make_repair", lambda *given: every_other_diverges)
    monkeypatch.setattr(knock_outs_module, "shares_missed", sum_of_read_out)
    monkeypatch.setattr(knock_outs_module, "POOL", 8)
    monkeypatch.setattr(knock_outs_module, "HELD_OUT", 8)
    results = repairs("intact", D, N, num_steps=1, num_seeds=2, seed=0)
    for name in REPAIRS:
        errors = results[name]["all"]
        assert None in errors
        assert results[name]["best"] == min(error for error in errors if error is not None)


def test_the_table_has_a_row_for_each_knock_out_at_both_sizes(monkeypatch):
    monkeypatch.setattr(knock_outs_module, "error_as_left", lambda *given: given)
    best = {name: {"best": 0.1} for name in REPAIRS}
    monkeypatch.setattr(knock_outs_module, "repairs", lambda *given: {"given": given} | best)
    rows = knock_out_table(D, N, num_steps=7, num_seeds=2, seed=5)
    assert [row["knock_out"] for row in rows] == list(CHANGED)
    for row in rows:
        name = row["knock_out"]
        assert row["as_left"] == (name, D, N, 5)
        assert row["as_left_n6_d5"] == (name, 5, 6, 5)
        assert row["repairs"]["given"] == (name, D, N, 7, 2, 5)
        assert row["mended"] == dict.fromkeys(REPAIRS, "yes")


def test_a_repair_is_judged_beside_that_of_the_intact_network_where_that_one_succeeds():
    def row(*bests):
        return {"repairs": {name: {"best": b} for name, b in zip(REPAIRS, bests, strict=True)}}

    intact = row(0.1, 0.2, 0.3)
    assert list(mended_by(row(0.149, 0.31, 0.1), intact).values()) == ["yes", "no", "undecided"]
    assert list(mended_by(row(0.151, None, None), intact).values()) == ["no", "no", "undecided"]
    assert mended_by(intact, row(None, 0.2, 0.2))["refit"] == "undecided"


def test_knock_outs_need_a_block_to_spare():
    with pytest.raises(ValueError, match="at least 3 attempts, not 2"):
        knock_outs(2)
