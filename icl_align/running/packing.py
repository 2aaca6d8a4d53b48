"""Parameters as a few vectors: one of all that is outside the blocks, and one for each block.

The program of a step that averages and updates vectors has a fraction of the operations of one that
does so with every array. And since the arrays of a block stand at the same places of every block's
vector, XLA compiles what reads them once for all blocks.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def pack(tree: Any, leading: int = 0) -> Any:
    """A tree with each set of parameters in it (or of their moments) as a tuple of vectors.

    Args:
      tree: holds anywhere the parameters of transformers; on the host, on a device or traced.
      leading: axes before those of the parameters, which the vectors keep.

    Returns:
      The tree with a tuple (outside, block 0, block 1, ...) in place of each set; with `leading` 1
      they have shapes [s, p] and [s, q], where q is the number of parameters of a block.
    """

    def one(node):
        if not _is_params(node):
            return node
        outside, *blocks = map(jax.tree.leaves, _parts(node))
        # Through one array of all blocks: where one `vmap` drew them, XLA sees it and cuts it once.
        xp = np if isinstance(outside[0], np.ndarray) else jnp
        arrays = [xp.stack(leaves, leading) for leaves in zip(*blocks, strict=True)]
        rows = _split(_joined(arrays, leading + 1), [1] * len(blocks), leading)
        return (_joined(outside, leading), *(row.squeeze(leading) for row in rows))

    return jax.tree.map(one, tree, is_leaf=_is_params)


def unpack(packed: Any, like: Any, leading: int = 0) -> Any:
    """The inverse of `pack`.

    Args:
      packed: from `pack`.
      like: a tree of the structure and shapes wanted; what its arrays hold does not matter.
      leading: as in `pack`; the sizes of these axes in `like` do not matter either.

    Returns:
      A tree of the structure of `like`.
    """

    def one(node, rows):
        if not _is_params(node):
            return rows
        parts = zip(rows, _parts(node), strict=True)
        outside, *blocks = (_cut(row, part, leading) for row, part in parts)
        trunk = {**outside["trunk"], "blocks": dict(enumerate(blocks))}
        return {**outside, "trunk": trunk}

    return jax.tree.map(one, like, packed, is_leaf=_is_params)


def _is_params(node: Any) -> bool:
    return isinstance(node, dict) and "trunk" in node


def _parts(params: Any) -> list[Any]:
    """What is outside the blocks, then each block."""
    trunk = {name: part for name, part in params["trunk"].items() if name != "blocks"}
    blocks = params["trunk"]["blocks"]
    return [{**params, "trunk": trunk}, *(blocks[place] for place in range(len(blocks)))]


def _size(leaf: Any, leading: int) -> int:
    return math.prod(leaf.shape[leading:])


def _joined(arrays: list[Any], leading: int) -> Any:
    flat = [array.reshape(*array.shape[:leading], -1) for array in arrays]
    return (np if isinstance(flat[0], np.ndarray) else jnp).concatenate(flat, leading)


def _cut(row: Any, like: Any, leading: int) -> Any:
    """The arrays of a row."""
    leaves, structure = jax.tree.flatten(like)
    pieces = _split(row, [_size(leaf, leading) for leaf in leaves], leading)
    shapes = [(*row.shape[:leading], *leaf.shape[leading:]) for leaf in leaves]
    arrays = [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]
    return jax.tree.unflatten(structure, arrays)


def _split(array: Any, sizes: list[int], axis: int) -> list[Any]:
    if isinstance(array, np.ndarray):
        return np.split(array, np.cumsum(sizes)[:-1], axis)
    return jax.lax.split(array, sizes, axis)
