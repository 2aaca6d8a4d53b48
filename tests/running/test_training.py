import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from icl_align.alignment.contexts import sample_contexts
from icl_align.alignment.losses import training_loss
from icl_align.config import TrainConfig, program_key
from icl_align.running.keys import training_keys
from icl_align.running.mesh import make_mesh
from icl_align.running.packing import pack, unpack
from icl_align.running.training import (
    abstract_network,
    build_network,
    init_state,
    learning_rate_schedule,
    loss_and_gradient,
    loss_of,
    make_chunk,
    members_of,
    network_of,
    state_shapes,
    train_step,
)
from icl_align.transformer import Block
from runs import tiny

CHUNKS = {}


def chunk_of(config, most=8):
    """The program of up to `most` steps on one device, made once."""
    key = program_key(config), most
    if key not in CHUNKS:
        mesh = make_mesh(config, config.num_seeds, jax.devices()[:1])
        CHUNKS[key] = make_chunk(config, most, mesh)
    return CHUNKS[key]


def train(config, *sizes, most=8):
    members, chunk = members_of(config), chunk_of(config, most)
    state = pack(init_state(config), leading=1)
    rows = []
    for size in sizes:
        state, metrics = chunk(members, state, size)
        rows.append({name: np.asarray(value)[:size] for name, value in metrics.items()})
    return unpack(state, like=state_shapes(config), leading=1), {
        name: np.concatenate([row[name] for row in rows]) for name in rows[0]
    }


def gradient_of(config, **options):
    return jax.jit(lambda params, keys: loss_and_gradient(config, params, keys, **options))


def equal(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_how_steps_are_cut_into_chunks_changes_nothing_bit_for_bit():
    config = tiny()
    whole, metrics = train(config, 8)
    parts, metrics_of_parts = train(config, 1, 4, 3)
    assert equal(whole, parts)
    assert equal(metrics, metrics_of_parts)


def test_another_seed_trains_another_network():
    assert not equal(train(tiny(), 2)[0].params, train(tiny("seed=1"), 2)[0].params)


def test_seeds_trained_together_are_the_seeds_trained_alone():
    together, metrics = train(tiny("num_seeds=2", "seed=3"), 5)
    for place, seed in enumerate((3, 4)):
        alone, metrics_alone = train(tiny(f"seed={seed}"), 5)
        np.testing.assert_allclose(
            metrics["train/loss"][:, place], metrics_alone["train/loss"][:, 0], rtol=1e-5
        )
        for a, b in zip(
            jax.tree.leaves(together.params), jax.tree.leaves(alone.params), strict=True
        ):
            np.testing.assert_allclose(a[place], b[0], atol=1e-5)


def test_one_step_is_adam_on_the_clipped_gradient_of_the_loss():
    config = tiny("train.warmup_fraction=0", "train.schedule=constant", "train.clip_norm=0.5")
    before = init_state(config)
    params = jax.tree.map(lambda leaf: leaf[0], before.params)
    keys = training_keys(config.seed, 0, config.train.batch_size)
    loss, grads = jax.jit(jax.value_and_grad(lambda p: loss_of(config, p, keys)))(params)
    norm = optax.tree.norm(grads)
    scale = jnp.minimum(1.0, 0.5 / norm)
    # Adam's first step: m / sqrt(v) with both bias-corrected is g / |g|.
    expected = jax.tree.map(
        lambda p, g: p - config.train.learning_rate * (scale * g) / (jnp.abs(scale * g) + 1e-8),
        params,
        grads,
    )
    after, metrics = train(config, 1)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(after.params), strict=True):
        np.testing.assert_allclose(a, b[0], atol=2e-5)
    assert metrics["train/loss"][0, 0] == pytest.approx(float(loss), rel=1e-5)
    assert metrics["train/grad_norm"][0, 0] == pytest.approx(float(norm), rel=1e-4)


def test_training_learns():
    # Regression to the target: averaging the attempts alone brings the error from 1 to below 0.5.
    config = tiny(
        "loss=cosine", "train.steps=150", "train.learning_rate=0.01", "train.batch_size=32"
    )
    _, metrics = train(config, 150, most=150)
    assert metrics["train/loss"][:5].mean() > 0.8
    assert metrics["train/loss"][-20:].mean() < 0.5


def test_the_state_is_donated():
    config = tiny()
    state = pack(init_state(config), leading=1)
    chunk_of(config)(members_of(config), state, 1)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_schedule_warms_up_linearly_and_ends_at_zero():
    schedule = learning_rate_schedule(
        TrainConfig(steps=100, learning_rate=2.0, warmup_fraction=0.1)
    )
    assert [float(schedule(k)) for k in (0, 5, 10)] == pytest.approx([0, 1, 2])
    assert float(schedule(55)) == pytest.approx(1.0)
    assert float(schedule(100)) == pytest.approx(0, abs=1e-6)
    flat = TrainConfig(steps=100, learning_rate=2.0, warmup_fraction=0.0, schedule="constant")
    assert float(learning_rate_schedule(flat)(99)) == 2.0


def test_hidden_rewards_carry_no_information():
    # With the rewards hidden, the prediction cannot depend on them; the loss still does.
    config = tiny("+ablation=no_reward")
    from icl_align.alignment.contexts import sample_contexts, shown_to_transformer

    keys = training_keys(0, 0, 4)
    contexts = sample_contexts(config.task, keys)
    shown = shown_to_transformer(config.task, contexts, keys)
    assert not shown.rewards.any()
    assert contexts.rewards.any()


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_slices_of_a_batch_have_the_gradient_of_the_batch(size):
    config = tiny("train.batch_size=16")
    params = jax.tree.map(lambda leaf: leaf[0], init_state(config).params)
    keys = training_keys(0, 3, 16)
    loss, gradient = gradient_of(config)(params, keys)
    sliced_loss, sliced = gradient_of(config, slice_size=size)(params, keys)
    assert sliced_loss == pytest.approx(float(loss), rel=1e-5)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(sliced), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_packed_parameters_have_the_packed_gradient():
    config = tiny("model.num_layers=2")
    params = jax.tree.map(lambda leaf: leaf[0], init_state(config).params)
    unpacked = functools.partial(unpack, like=params)
    keys = training_keys(0, 3, 4)
    loss, gradient = gradient_of(config)(params, keys)
    packed_loss, packed = gradient_of(config, unpacked=unpacked)(pack(params), keys)
    assert float(packed_loss) == pytest.approx(float(loss), rel=1e-6)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(unpacked(packed)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["model.norm=none"],
        ["model.norm=pre_post", "model.mlp=false"],
        ["model.positions=false", "train.clip_norm=null"],
        ["model.causal=false", "model.tokens=interleaved"],
    ],
)
def test_a_packed_step_is_the_plain_step(options):
    moving = ["model.num_layers=2", "train.learning_rate=1e-3", "train.warmup_fraction=0"]
    config = tiny(*moving, *options)
    member, state = jax.tree.map(lambda leaf: leaf[0], (members_of(config), init_state(config)))
    keys = training_keys(0, 0, 8)
    plain, metrics = jax.jit(functools.partial(train_step, config))(member, state, keys)
    step = functools.partial(
        train_step, config, unpacked=functools.partial(unpack, like=state.params)
    )
    packed, packed_metrics = jax.jit(step)(member, pack(state), keys)
    after = unpack(packed, like=state)
    for a, b in zip(jax.tree.leaves(plain.params), jax.tree.leaves(after.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)  # Adam: a tiny gradient's rounding counts
    for name, value in metrics.items():
        np.testing.assert_allclose(packed_metrics[name], value, rtol=1e-5)


def test_shapes_are_those_of_the_state():
    def shapes(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)

    for config in (tiny("num_seeds=3"), tiny("train.clip_norm=null", "model.mlp=false")):
        assert shapes(state_shapes(config)) == shapes(init_state(config))
        graph, params = abstract_network(config)
        transformer = build_network(config, 0)
        assert graph == nnx.graphdef(transformer)
        assert shapes(params) == shapes(nnx.to_pure_dict(nnx.state(transformer, nnx.Param)))


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["model.tokens=interleaved"],
        ["model.causal=false"],
        ["model.causal=false", "model.sees_future=true"],
    ],
)
def test_attempts_after_the_last_that_is_trained_on_are_left_out_without_a_difference(options):
    config = tiny("loss.max_attempts=3", *options)
    params = jax.tree.map(lambda leaf: leaf[0], init_state(config).params)
    keys = training_keys(0, 0, 8)
    contexts = sample_contexts(config.task, keys)
    whole = jax.jit(lambda params: network_of(config)(params)(contexts))(params)  # all 4 attempts
    expected = training_loss(config.loss, whole, contexts)
    loss = jax.jit(lambda p: loss_of(config, p, keys))(params)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("precision", ["float32", "tensorfloat32", "bfloat16"])
def test_a_precision_keeps_parameters_in_float32_and_the_loss_close(precision):
    config = tiny(f"train.precision={precision}")
    state, metrics = train(config, 3)
    _, plain = train(tiny(), 3)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.float32)}
    atol = 0.05 if precision == "bfloat16" else 1e-5
    np.testing.assert_allclose(metrics["train/loss"], plain["train/loss"], atol=atol)
    # On a CPU the others compute as the default does; what an accelerator would do, the text says.
    differs = not np.array_equal(metrics["train/loss"], plain["train/loss"])
    assert differs == (precision == "bfloat16")
    params, keys = jax.tree.map(lambda leaf: leaf[0], state.params), training_keys(0, 0, 8)
    text = jax.jit(lambda p: loss_and_gradient(config, p, keys)).lower(params).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) > 10
    wanted = {"float32": "HIGHEST", "tensorfloat32": "HIGH,", "bfloat16": "bf16"}[precision]
    assert sum(wanted in line for line in products) > 0.8 * len(products)


def test_a_deeper_trunk_is_traced_no_more_often(monkeypatch):
    calls = []
    forward = Block.__call__

    def counted(self, *args):
        calls.append(1)
        return forward(self, *args)

    monkeypatch.setattr(Block, "__call__", counted)
    for layers in (2, 6):
        config = tiny(f"model.num_layers={layers}", "model.width=24", f"task.dim={layers}")
        params = jax.tree.map(lambda leaf: leaf[0], init_state(config).params)
        jax.make_jaxpr(lambda p, c=config: loss_of(c, p, training_keys(0, 0, 4)))(params)
    assert len(calls) in (1, 2)  # the blocks of both may be the same function


def test_a_block_with_more_than_parameters_is_refused(monkeypatch):
    class Dropping(Block):
        def __init__(self, config, *, rngs):
            super().__init__(config, rngs=rngs)
            self.drop = nnx.Dropout(0.1, rngs=rngs)

    monkeypatch.setattr("icl_align.transformer.Block", Dropping)
    with pytest.raises(TypeError, match="nothing but parameters"):
        init_state(tiny("model.num_layers=5"))  # of a size that no other test has drawn


def test_the_parts_of_a_step_are_named_in_the_program():
    config = tiny()
    state = pack(init_state(config), leading=1)
    text = chunk_of(config).lower(members_of(config), state, 1).as_text(debug_info=True)
    for scope in ("tokens", "attention", "mlp", "loss", "optimizer"):
        assert re.search(rf'[/("]{scope}[/)"]', text), scope
