"""How the parameters of networks are drawn, by the rule of `TrunkConfig.init`."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from icl_align.config import INITIALISATIONS, TrunkConfig, implemented


def torch_linear(features_in: int, features_out: int, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear map with PyTorch's initialisation: kernel and bias U(-1, 1) / sqrt(features_in)."""
    bound = 1 / math.sqrt(features_in)

    def uniform(key, shape, dtype=jnp.float32, **_):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nnx.Linear(features_in, features_out, kernel_init=uniform, bias_init=uniform, rngs=rngs)


def _gpt2_linear(features_in: int, features_out: int, rngs: nnx.Rngs, scale: float) -> nnx.Linear:
    return nnx.Linear(
        features_in, features_out, kernel_init=nnx.initializers.normal(scale), rngs=rngs
    )


class Initialisation(NamedTuple):
    """How the trunk and the positions are drawn."""

    linear: Callable[[int, int, nnx.Rngs, float], nnx.Linear]
    positions: float  # standard deviation


INITIALISATION_RULES = implemented(
    INITIALISATIONS,
    {
        "gpt2": Initialisation(_gpt2_linear, 0.02),
        "torch": Initialisation(lambda f_in, f_out, rngs, _: torch_linear(f_in, f_out, rngs), 1.0),
    },
)


def trunk_linear(
    config: TrunkConfig, features_in: int, features_out: int, rngs: nnx.Rngs, to_residual=False
) -> nnx.Linear:
    """A linear map of the trunk: GPT-2 draws N(0, 0.02), smaller where it feeds the residual."""
    scale = 0.02 / math.sqrt(2 * config.num_layers) if to_residual else 0.02
    return INITIALISATION_RULES[config.init].linear(features_in, features_out, rngs, scale)


def learned_positions(config: TrunkConfig, num_tokens: int, rngs: nnx.Rngs) -> nnx.Param | None:
    """A vector for each of `num_tokens` places, [t, width]; None if `config` has no positions."""
    if not config.positions:
        return None
    scale = INITIALISATION_RULES[config.init].positions
    shape = num_tokens, config.width
    # As the linear maps: float32, whatever jax_enable_x64 says.
    return nnx.Param(scale * jax.random.normal(rngs.params(), shape, jnp.float32))


def learned_tokens(config: TrunkConfig, num_tokens: int, rngs: nnx.Rngs) -> nnx.Param:
    """A vector for each of `num_tokens` tokens of a vocabulary, [v, width], drawn as positions."""
    shape = num_tokens, config.width
    scale = INITIALISATION_RULES[config.init].positions
    return nnx.Param(scale * jax.random.normal(rngs.params(), shape, jnp.float32))
