"""Facts of the language model: what each row may see, and what it minimises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from icl_align.config import TrunkConfig
from icl_align.dialogue.model import LanguageModel
from icl_align.dialogue.options import Options
from icl_align.dialogue.world import WORLD

SIZE, LENGTH = 11, 9


def build(**options):
    options = {"num_layers": 2, "num_heads": 2, "width": 16, "init": "torch"} | options
    return LanguageModel(TrunkConfig(**options), SIZE, LENGTH, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    "options",
    [{}, {"causal": False}, {"attention": "linear", "positions": False}, {"norm": "pre_post"}],
    ids=str,
)
def test_no_row_sees_a_later_token(options):
    model = build(**options)
    tokens = jax.random.randint(jax.random.key(0), (3, LENGTH), 0, SIZE)
    other = tokens.at[:, 5:].set((tokens[:, 5:] + 1) % SIZE)
    rows, changed = (np.asarray(model(t)) for t in (tokens, other))
    np.testing.assert_allclose(rows[:, :5], changed[:, :5], rtol=1e-5, atol=1e-5)
    assert np.abs(rows[:, 5:] - changed[:, 5:]).max() > 1e-3
    assert rows.shape == (3, LENGTH, SIZE)


def test_learned_positions_reach_so_far_and_none_have_no_end():
    tokens = jnp.zeros((1, LENGTH + 1), int)
    with pytest.raises(ValueError, match="10 tokens need as many learned positions"):
        build()(tokens)
    assert build(positions=False)(tokens).shape == (1, LENGTH + 1, SIZE)


def test_the_loss_of_a_network_that_knows_nothing_is_that_of_a_guess():
    config = Options()
    keys = jax.random.split(jax.random.key(0), 8)
    tokens = WORLD.sample(config, keys).given
    size = WORLD.network(config, nnx.Rngs(0)).embedding.shape[0]
    guess = jnp.zeros((*tokens.shape, size))
    assert float(WORLD.loss(config, guess, tokens)) == pytest.approx(np.log(size), rel=1e-5)


@pytest.mark.parametrize("start", [1, 4])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": False},
        {"attention": "linear"},
        {"attention": "linear_normalized", "positions": False},
        {"norm": "pre_post", "mlp": False},
    ],
    ids=str,
)
def test_reading_on_gives_the_rows_of_a_whole_pass(options, start):
    model = build(**options)
    tokens = jax.random.randint(jax.random.key(0), (3, LENGTH), 0, SIZE)
    added = jax.random.normal(jax.random.key(1), (3, LENGTH, 16)).at[:, :start].set(0)
    whole = model(tokens, added)
    first, past = model.read_on(model.begin((3,), LENGTH), tokens[:, :start], 0)
    rows = [first]
    read_on = jax.jit(model.read_on)
    for place in range(start, LENGTH):
        own = added[:, place : place + 1]
        row, past = read_on(past, tokens[:, place : place + 1], jnp.asarray(place), own)
        rows.append(row)
    np.testing.assert_allclose(jnp.concatenate(rows, axis=1), whole, rtol=1e-4, atol=1e-4)
    assert np.abs(whole - model(tokens)).max() > 1e-2


@pytest.mark.parametrize("causal", [True, False])
def test_the_last_state_is_what_is_read_out(causal):
    model = build(causal=causal)
    tokens = jax.random.randint(jax.random.key(0), (3, LENGTH), 0, SIZE)
    places = jnp.array([2, 7])
    states = model.states(tokens, places)
    assert states.shape == (3, 3, 2, 16)  # layers, dialogues, places, width
    rows = model.read_out(model.trunk.norm(states[-1]))
    np.testing.assert_allclose(rows, model(tokens)[:, places], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(states[0], model.embedded(tokens)[:, places], atol=1e-6)


def test_what_it_cannot_read_to_the_end_it_does_not_begin():
    with pytest.raises(ValueError, match="10 tokens need as many learned positions"):
        build().begin((1,), LENGTH + 1)
