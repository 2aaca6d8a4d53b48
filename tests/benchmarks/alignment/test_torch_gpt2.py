import jax
import numpy as np
import pytest

from benchmarks.jax_worker import Training as JaxTraining
from icl_align.alignment.contexts import sample_contexts
from icl_align.alignment.losses import training_loss
from icl_align.running.compose import compose_config
from icl_align.running.keys import training_keys
from icl_align.running.training import init_state, learning_rate_schedule, loss_of, network_of

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from benchmarks.alignment import torch_gpt2  # noqa: E402
from benchmarks.alignment.torch_worker import Training as TorchTraining  # noqa: E402

LAYOUTS = ["triplet", "interleaved"]


def overrides(tokens, layers=2):
    return [
        f"model.num_layers={layers}",
        "model.width=24",
        "model.num_heads=3",
        f"model.tokens={tokens}",
        "task.num_responses=6",
        "loss.max_attempts=5",
        "train.batch_size=8",
        "train.warmup_fraction=0",
        "train.schedule=constant",
        "train.clip_norm=0.5",
    ]


def torch_names(params):
    """Arrays of icl_align's parameters (or gradients) by their names in the PyTorch model."""

    def joined(parts, name):
        return np.concatenate([part[name] for part in parts], axis=-1)

    named = {"trunk.wpe.weight": params["positions"]}
    for name in ("embed", "read_out"):
        named[f"{name}.weight"] = params[name]["kernel"].T
        named[f"{name}.bias"] = params[name]["bias"]
    norms = {"ln_f": params["trunk"]["norm"]}
    for number, block in params["trunk"]["blocks"].items():
        norms[f"h.{number}.ln_1"] = block["attention_norm"]
        norms[f"h.{number}.ln_2"] = block["mlp_norm"]
        attention, mlp = block["attention"], block["mlp"]
        linear = {"attn.c_attn": [attention[n] for n in ("query", "key", "value")]}
        linear |= {"attn.c_proj": [attention["out"]]}
        linear |= {"mlp.c_fc": [mlp["up"]], "mlp.c_proj": [mlp["down"]]}
        for name, parts in linear.items():  # GPT-2's Conv1D keeps its weight as (in, out)
            named[f"trunk.h.{number}.{name}.weight"] = joined(parts, "kernel")
            named[f"trunk.h.{number}.{name}.bias"] = joined(parts, "bias")
    for name, norm in norms.items():
        named[f"trunk.{name}.weight"], named[f"trunk.{name}.bias"] = norm["scale"], norm["bias"]
    return {name: np.asarray(array) for name, array in named.items()}


def copy_weights(model, params):
    tensors = {name: torch.tensor(array) for name, array in torch_names(params).items()}
    left_out, unknown = model.load_state_dict(tensors, strict=False)
    assert left_out == ["trunk.wte.weight"]
    assert unknown == []


def as_torch(contexts):
    return torch_gpt2.Context(*(torch.tensor(np.asarray(array)) for array in contexts))


def of_first_seed(tree):
    return jax.device_get(jax.tree.map(lambda leaf: leaf[0], tree))


def both(tokens, attention="sdpa", layers=2):
    config = compose_config(overrides(tokens, layers))
    params = of_first_seed(init_state(config).params)
    keys = training_keys(config.seed, 0, config.train.batch_size)
    contexts = jax.jit(lambda keys: sample_contexts(config.task, keys))(keys)
    model = torch_gpt2.Transformer(config, attention)
    copy_weights(model, params)
    return config, params, keys, contexts, model


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("tokens", LAYOUTS)
def test_predictions_are_the_same(tokens, attention):
    config, params, _, contexts, model = both(tokens, attention)
    ours = jax.jit(lambda params: network_of(config)(params)(contexts))(params)
    query, responses, rewards, _ = as_torch(contexts)
    theirs = model(query, responses, rewards).detach()
    np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-5)
    # After three attempts the rest of the context changes nothing.
    early = model(query, responses[:, :3], rewards[:, :3], first=2).detach()
    np.testing.assert_allclose(early, ours[:, 2:4], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens", LAYOUTS)
def test_loss_and_gradient_are_the_same(tokens):
    config, params, keys, contexts, model = both(tokens)
    value_and_grad = jax.jit(jax.value_and_grad(lambda p: loss_of(config, p, keys)))
    loss, gradient = value_and_grad(params)
    found = torch_gpt2.training_loss(model, config, as_torch(contexts))
    found.backward()
    assert found.item() == pytest.approx(float(loss), rel=1e-5)
    expected = torch_names(jax.device_get(gradient))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            most = np.abs(expected[name]).max()
            np.testing.assert_allclose(
                parameter.grad, expected[name], rtol=1e-4, atol=1e-4 * most + 1e-6, err_msg=name
            )


def test_a_step_of_clipped_adam_is_the_same():
    ours = JaxTraining(overrides("triplet", layers=1))
    config, params, keys, contexts, model = both("triplet", layers=1)
    ours.build()  # takes the first step
    after = torch_names(of_first_seed(ours.crew.host_state().params))
    theirs = TorchTraining(overrides("triplet", layers=1), compiled=False, attention="sdpa")
    theirs.build()
    theirs.step = 0
    theirs.model.load_state_dict(model.state_dict())
    theirs.adam.state.clear()
    theirs.one_step(as_torch(contexts))
    gradient = torch_names(
        jax.device_get(jax.jit(jax.grad(lambda p: loss_of(config, p, keys)))(params))
    )
    rate = config.train.learning_rate
    for name, parameter in theirs.model.named_parameters():
        if parameter.requires_grad:
            # Adam's first step is the gradient's sign: rounding decides it where there is none.
            sure = np.abs(gradient[name]) > 1e-4
            moved = after[name][sure]
            np.testing.assert_allclose(
                parameter.detach().numpy()[sure], moved, rtol=1e-4, atol=1e-2 * rate, err_msg=name
            )


def test_plackett_luce_is_the_same_on_any_predictions(draw):
    contexts = draw(32, num_responses=7)
    config = compose_config(["task.num_responses=7", "loss.min_attempts=2"])
    predictions = jax.random.normal(jax.random.key(1), (32, 8, 5))
    expected = training_loss(config.loss, predictions, contexts)
    _, responses, rewards, _ = as_torch(contexts)
    chosen = torch.tensor(np.asarray(predictions))[:, 2:]
    found = torch_gpt2.plackett_luce(chosen, responses, rewards, first=2)
    assert found.item() == pytest.approx(float(expected), rel=1e-5)


def test_contexts_lie_on_a_line_from_the_corrupt_answer_to_the_target():
    task = compose_config([]).task
    torch.manual_seed(0)
    query, responses, rewards, target = torch_gpt2.sample_contexts(task, 4000, torch.device("cpu"))
    corrupt = (responses - rewards[..., None] * target[:, None]) / (1 - rewards[..., None])
    sure = rewards < 0.9
    spread = corrupt - corrupt.masked_fill(~sure[..., None], 0).sum(1, keepdim=True) / sure.sum(
        1
    ).view(-1, 1, 1)
    assert spread[sure].abs().max() < 1e-3
    # Given x, each coordinate of W x is N(0, |x|^2), and r is U(0, 1).
    assert (target / query.norm(dim=-1, keepdim=True)).std().item() == pytest.approx(1, abs=0.03)
    assert rewards.mean().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_learning_rate_is_the_same_at_every_step(schedule):
    train = compose_config([f"train.schedule={schedule}", "train.steps=40"]).train
    ours = learning_rate_schedule(train)
    for step in (0, 1, 3, 4, 5, 20, 39, 40, 60):
        assert torch_gpt2.learning_rate(train, step) == pytest.approx(float(ours(step)), abs=1e-9)


def test_another_model_is_refused():
    with pytest.raises(ValueError, match="no such model"):
        torch_gpt2.Transformer(compose_config(["+ablation=linear_attn"]))
