"""What the tests of networks share: contexts to show them, and their parameters by name."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from icl_align.alignment.contexts import Context

D, N = 3, 4  # dimension and attempts of most tests


def random_context(seed=0, batch=(), n=N, d=D):
    """Independent normal vectors and uniform rewards."""
    rng = np.random.default_rng(seed)
    query, target = rng.normal(size=(2, *batch, d))
    arrays = query, rng.normal(size=(*batch, n, d)), rng.random((*batch, n)), target
    return Context(*(jnp.asarray(array, jnp.float32) for array in arrays))


def parameters(model):
    """Dotted name -> numpy array, of every parameter."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {".".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in flat}
