import jax
import numpy as np
import pytest

from icl_align.running.packing import pack, unpack
from icl_align.running.training import init_state
from runs import tiny


def equal(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize("leading", [0, 1])
@pytest.mark.parametrize("layers", [1, 3])
def test_unpacking_undoes_packing_on_the_host_and_off_it(leading, layers):
    config = tiny(f"model.num_layers={layers}", "num_seeds=2")
    state = init_state(config)
    state = state if leading else jax.tree.map(lambda leaf: leaf[0], state)
    for tree in (state, jax.device_get(state)):
        packed = pack(tree, leading)
        rows = packed.params
        assert len(rows) == 1 + layers
        assert all(row.ndim == 1 + leading for row in rows)
        assert len({row.shape for row in rows[1:]}) == 1  # blocks are alike
        again = unpack(packed, tree, leading)
        assert jax.tree.structure(again) == jax.tree.structure(tree)
        assert equal(again, tree)
