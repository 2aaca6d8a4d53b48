import jax
import pytest

from benchmarks.flops import forward_flops, step_flops
from icl_align.running.compose import compose_config
from icl_align.running.keys import training_keys
from icl_align.running.training import init_state, loss_of
from icl_align.world import world_of

# Wide, so that products outweigh what the formula leaves out.
WIDE = ["model.num_layers=2", "model.width=256", "train.batch_size=4", "task.num_responses=12"]


def counted_by_xla(function, *arguments):
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


@pytest.mark.parametrize("tokens", ["triplet", "triplet_norm", "interleaved"])
def test_the_count_is_xla_s_but_for_norms_softmax_and_activations(tokens):
    config = compose_config([*WIDE, f"model.tokens={tokens}"])
    params = jax.tree.map(lambda leaf: leaf[0], init_state(config).params)
    keys = training_keys(0, 0, config.train.batch_size)

    def loss(params):
        return loss_of(config, params, keys)

    forward = config.train.batch_size * sum(forward_flops(config).values())
    assert forward < counted_by_xla(loss, params) < 1.06 * forward
    step = step_flops(config)
    assert step < counted_by_xla(jax.value_and_grad(loss), params) < 1.06 * step


def changed(*overrides):
    config = compose_config(list(overrides))
    return forward_flops(config), step_flops(config)


def test_every_part_grows_as_it_should():
    parts, step = changed("model.width=64")
    wide, _ = changed("model.width=128")
    deep, _ = changed("model.num_layers=8")
    assert wide["projections"] == 4 * parts["projections"]
    assert wide["mlp"] == 4 * parts["mlp"]
    assert wide["attention"] == 2 * parts["attention"]
    assert deep == parts | {n: 2 * parts[n] for n in ("projections", "attention", "mlp")}
    assert changed("train.batch_size=256")[1] == changed("num_seeds=2")[1] == 2 * step
    assert changed("+ablation=no_mlp")[0] == parts | {"mlp": 0}
    assert changed("loss=cosine")[0]["scores"] == 0


def test_tokens_end_with_the_last_trained_prediction():
    def num_tokens(*overrides):
        config = compose_config(list(overrides))
        return world_of(config).num_tokens(config)

    assert num_tokens() == 21
    assert num_tokens("+experiment=paper") == 3 * 19 + 1
    assert num_tokens("+experiment=paper", "model.tokens=triplet") == 20


def test_a_pass_for_every_prefix_is_refused():
    with pytest.raises(ValueError, match="one pass"):
        step_flops(compose_config(["+ablation=no_causal_mask"]))
