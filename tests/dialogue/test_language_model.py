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
