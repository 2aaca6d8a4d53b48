"""Facts of the transformer: what each row may see, its parameters, and its sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from icl_align.alignment.contexts import Context
from icl_align.alignment.model import Transformer
from icl_align.alignment.options import TOKENS, ModelConfig, TaskConfig
from icl_align.transformer import num_parameters
from networks import D, N, parameters, random_context


def build(dim=D, num_responses=N, seed=0, **options):
    """A tiny transformer. PyTorch's initialisation makes all its parts count from the start."""
    options = {"num_layers": 1, "num_heads": 2, "width": 16, "init": "torch"} | options
    task = TaskConfig(dim=dim, num_responses=num_responses)
    return Transformer(ModelConfig(**options), task, rngs=nnx.Rngs(seed))


def first_attempts(context, n):
    """The context cut after its first n attempts."""
    return context._replace(
        responses=context.responses[..., :n, :], rewards=context.rewards[..., :n]
    )


def run(model, *contexts):
    """Predictions for each context, by one compiled program a shape."""
    forward = jax.jit(lambda context: model(context))
    answers = [np.asarray(forward(context)) for context in contexts]
    return answers[0] if len(answers) == 1 else answers


# ------------------------------------------------------------------------------- who may see what

ARCHITECTURES = [
    {},
    {"attention": "linear"},
    {"attention": "linear_normalized", "norm": "none", "mlp": False},
    {"tokens": "triplet_norm"},
    {"tokens": "interleaved", "num_layers": 2},
    {"tokens": "interleaved", "attention": "linear", "norm": "pre_post", "positions": False},
    {"norm": "none", "activation": "relu"},
    {"norm": "pre_post", "mlp": False},
    {"positions": False, "num_heads": 1, "init": "gpt2"},
    {"causal": False},
    {"causal": False, "attention": "linear", "num_layers": 2},
    {"causal": False, "attention": "linear_normalized", "norm": "pre_post"},
    {"causal": False, "tokens": "interleaved", "num_layers": 2, "positions": False},
]
LEAKS = [
    {"causal": False, "sees_future": True},
    {"causal": False, "sees_future": True, "tokens": "interleaved", "attention": "linear"},
]


def name_of(options):
    return "-".join(f"{key}={value}" for key, value in options.items()) or "default"


def moves_when_the_future_changes(model):
    """Entry [n, m]: how far row m moves when the attempts after the first n change."""
    context, other = random_context(1), random_context(2)
    past = np.arange(N) < np.arange(N)[:, None]  # [changed from, attempt]
    changed = Context(
        jnp.tile(context.query, (N, 1)),
        jnp.where(past[..., None], context.responses, other.responses),
        jnp.where(past, context.rewards, other.rewards),
        jnp.tile(context.target, (N, 1)),
    )
    same = jax.tree.map(lambda array: jnp.broadcast_to(array, (N, *array.shape)), context)
    before, after = run(model, same, changed)
    return np.abs(after - before).max(axis=-1)


@pytest.mark.parametrize("options", ARCHITECTURES, ids=name_of)
def test_row_n_reads_the_first_n_attempts_and_no_later_one(options):
    moves = moves_when_the_future_changes(build(**options))
    for n in range(N):
        assert np.all(moves[n, : n + 1] < 1e-6)
        assert np.all(moves[n, n + 1 :] > 1e-5)


@pytest.mark.parametrize("options", LEAKS, ids=name_of)
def test_without_a_mask_every_row_reads_later_attempts(options):
    assert np.all(moves_when_the_future_changes(build(**options)) > 1e-5)


@pytest.mark.parametrize("tokens", ["triplet", "interleaved"])
def test_a_row_reads_both_the_response_and_the_reward_of_its_last_attempt(tokens):
    context, other = random_context(1), random_context(2)
    before, reward, response = run(
        build(tokens=tokens),
        context,
        context._replace(rewards=other.rewards),
        context._replace(responses=other.responses),
    )
    for after in (reward, response):
        assert np.all(np.abs(after - before).max(axis=-1)[1:] > 1e-5)


def test_no_row_reads_the_target():
    context = random_context(1)
    before, after = run(build(), context, context._replace(target=-context.target))
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    "options",
    [{}, {"attention": "linear", "tokens": "interleaved"}, {"attention": "linear_normalized"}],
    ids=name_of,
)
def test_without_causality_row_n_is_the_unmasked_pass_over_the_first_n_attempts(options):
    prefixes = build(causal=False, num_layers=2, **options)
    unmasked = build(causal=False, sees_future=True, num_layers=2, **options)
    for name, value in parameters(prefixes).items():
        np.testing.assert_array_equal(value, parameters(unmasked)[name])
    context = random_context(3, (2,))
    rows = run(prefixes, context)
    for n in (0, 2, N):
        last = run(unmasked, first_attempts(context, n))[:, -1]
        np.testing.assert_allclose(rows[:, n], last, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_a_shorter_context_gives_the_first_rows_of_a_longer_one(causal):
    model, context = build(causal=causal), random_context(4, (2,))
    longer, shorter = run(model, context, first_attempts(context, 2))
    np.testing.assert_allclose(longer[:, :3], shorter, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "tokens, order, matters",
    [
        ("interleaved", [2, 0, 3, 1], False),
        ("triplet", [2, 0, 1, 3], False),
        ("triplet", [2, 0, 3, 1], True),  # the answer is read at the token of the last attempt
    ],
)
def test_without_mask_and_positions_the_order_of_the_attempts_does_not_matter(
    tokens, order, matters
):
    context = random_context(5)
    permuted = context._replace(
        responses=context.responses[np.array(order)], rewards=context.rewards[np.array(order)]
    )
    for positions in (False, True):  # with positions it always does
        model = build(causal=False, positions=positions, tokens=tokens, num_layers=2)
        one, other = (rows[-1] for rows in run(model, context, permuted))
        moved = np.abs(one - other).max()
        assert moved > 1e-3 if matters or positions else moved < 1e-5


def test_only_in_triplet_tokens_does_a_set_of_tokens_know_whose_a_reward_is():
    # Interleaved tokens without positions or mask are a bag of queries, responses and rewards.
    context = random_context(6)
    shuffled = context._replace(rewards=context.rewards[::-1])
    for tokens, knows in (("triplet", True), ("interleaved", False)):
        model = build(causal=False, positions=False, tokens=tokens)
        one, other = (rows[-1] for rows in run(model, context, shuffled))
        assert np.allclose(one, other, rtol=1e-4, atol=1e-5) != knows


@pytest.mark.parametrize("tokens", TOKENS)
def test_attempts_that_answer_the_query_are_the_default_and_another_query_is_noticed(tokens):
    context, model = random_context(1), build(tokens=tokens)
    same = jnp.broadcast_to(context.query, context.responses.shape)
    default, named = model(context), model(context, same)
    np.testing.assert_array_equal(default, named)
    moved = np.abs(np.asarray(model(context, same.at[2].add(1.0)) - default)).max(axis=-1)
    first = 2 if tokens == "interleaved" else 3  # there row 2 is read at the third attempt's query
    assert np.all(moved[:first] < 1e-6) and np.all(moved[first:] > 1e-5)


# -------------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    "options, dim, attempts",
    [
        ({}, 5, 20),
        ({"tokens": "interleaved", "num_layers": 2, "width": 12, "num_heads": 3}, 4, 7),
        ({"mlp_width": 10, "norm": "pre_post", "num_layers": 1, "positions": False}, 2, 3),
    ],
    ids=["default", "interleaved", "pre_post"],
)
def test_the_number_of_parameters_has_a_closed_form(options, dim, attempts):
    config = ModelConfig(**options)
    task = TaskConfig(dim=dim, num_responses=attempts)
    width, features = config.width, 2 * dim + 2
    tokens = attempts + 1
    if config.tokens == "interleaved":
        features, tokens = dim, 3 * attempts + 1
    hidden = config.mlp_width or 4 * width
    norms = 3 if config.norm == "pre_post" else 2
    attention = 4 * (width * width + width)
    mlp = width * hidden + hidden + hidden * width + width
    block = attention + mlp + norms * 2 * width
    ends = features * width + width + width * dim + dim + 2 * width
    expected = ends + config.num_layers * block + config.positions * tokens * width
    model = nnx.eval_shape(lambda: Transformer(config, task, rngs=nnx.Rngs(0)))
    assert num_parameters(model) == expected


def test_what_is_left_out_has_no_parameters():
    names = " ".join(parameters(build()))
    assert all(part in names for part in ("mlp", "norm", "positions"))
    assert "mlp" not in " ".join(parameters(build(mlp=False)))
    assert "norm" not in " ".join(parameters(build(norm="none")))
    assert "positions" not in parameters(build(positions=False))


def test_the_trunk_starts_as_gpt_2_does():
    layers = 3
    model = build(init="gpt2", num_layers=layers, width=64, dim=5, num_responses=20)
    values = parameters(model)
    for name, value in values.items():
        if name == "positions":
            np.testing.assert_allclose(value.std(), 0.02, rtol=0.1)
        elif not name.startswith("trunk"):
            continue
        elif name.endswith("kernel"):
            to_residual = ".out." in name or ".down." in name
            std = 0.02 / np.sqrt(2 * layers) if to_residual else 0.02
            np.testing.assert_allclose(value.std(), std, rtol=0.06)  # 4096 entries and more
            assert stats.kstest(value.ravel() / std, "norm").pvalue > 1e-4
        else:
            np.testing.assert_array_equal(value, 1 if name.endswith("scale") else 0)


@pytest.mark.parametrize("init", ["gpt2", "torch"])
def test_linear_maps_outside_gpt_2_s_trunk_start_as_pytorch_s_do(init):
    # U(-1, 1) / sqrt(number of inputs), for the kernel and for the bias.
    values = parameters(build(init=init, width=64, dim=5))
    checked = 0
    for name, kernel in values.items():
        if not name.endswith("kernel") or (name.startswith("trunk") and init == "gpt2"):
            continue
        bound = 1 / np.sqrt(kernel.shape[0])
        bias = values[name.replace("kernel", "bias")]
        assert np.all(np.abs(kernel) <= bound) and np.all(np.abs(bias) <= bound)
        assert stats.kstest(kernel.ravel() / bound, "uniform", (-1, 2)).pvalue > 1e-4
        assert np.any(bias != 0)
        checked += 1
    assert checked == (2 if init == "gpt2" else 8)


def test_pytorch_s_positions_are_standard_normal():
    values = parameters(build(width=64, num_responses=20))["positions"]
    assert stats.kstest(values.ravel(), "norm").pvalue > 1e-4


def test_every_parameter_starts_from_its_own_draw_and_every_seed_differs():
    first, second = (parameters(build(seed=seed, num_layers=2)) for seed in (0, 1))
    kernels = [first[name] for name in first if name.endswith("kernel")]
    starts = {tuple(kernel.ravel()[:3].tolist()) for kernel in kernels}
    assert len(starts) == len(kernels)
    for name in first:
        if name.endswith("kernel"):
            assert not np.any(first[name] == second[name])


def test_initialisation_is_a_pure_function_of_the_seed():
    for name, value in parameters(build(seed=3)).items():
        np.testing.assert_array_equal(value, parameters(build(seed=3))[name])


@pytest.mark.parametrize(
    "options", [{}, {"tokens": "interleaved", "norm": "pre_post"}], ids=name_of
)
def test_every_parameter_but_the_key_biases_matters(options):
    # A bias of the keys shifts all logits of a softmax alike.
    graph, state = nnx.split(build(**options))
    context = random_context(8, (4,))
    weights = jnp.asarray(np.random.default_rng(9).normal(size=(4, N + 1, D)), jnp.float32)
    gradient = jax.jit(jax.grad(lambda s: jnp.sum(weights * nnx.merge(graph, s)(context))))(state)
    largest = {
        name: np.abs(value).max() for name, value in parameters(nnx.merge(graph, gradient)).items()
    }
    idle = {name for name, value in largest.items() if value < 1e-5}
    assert idle == {name for name in largest if name.endswith("key.bias")}


# ---------------------------------------------------------------------------------- sizes and axes


@pytest.mark.parametrize("tokens", ["triplet", "interleaved"])
def test_more_attempts_than_learned_positions_are_refused(tokens):
    model = build(tokens=tokens)
    with pytest.raises(ValueError, match="5 attempts need"):
        model(random_context(n=N + 1))


@pytest.mark.parametrize("options", [{}, {"causal": False}], ids=name_of)
def test_without_positions_longer_contexts_work(options):
    model, context = build(positions=False, **options), random_context(n=N + 3)
    longer, shorter = run(model, context, first_attempts(context, N))
    assert longer.shape == (N + 4, D)
    np.testing.assert_allclose(longer[: N + 1], shorter, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens", ["triplet", "interleaved"])
def test_one_dimension_is_enough(tokens):
    context = random_context(1, (2,), d=1)
    rows = run(build(dim=1, tokens=tokens), context)
    assert rows.shape == (2, N + 1, 1) and np.all(np.isfinite(rows))
    changed = run(build(dim=1, tokens=tokens), context._replace(rewards=1 - context.rewards))
    assert np.all(np.abs(changed - rows)[:, 1:] > 1e-6)


@pytest.mark.parametrize("options", [{}, {"causal": False, "tokens": "interleaved"}], ids=name_of)
def test_any_leading_axes_agree(options):
    model, grid = build(**options), random_context(2, (2, 3))
    row, one = (jax.tree.map(lambda array, i=i: array[i], grid) for i in (1, (1, 2)))
    of_grid, of_row, of_one = run(model, grid, row, one)
    assert of_grid.shape == (2, 3, N + 1, D)
    np.testing.assert_allclose(of_grid[1], of_row, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(of_row[2], of_one, rtol=1e-4, atol=1e-5)
