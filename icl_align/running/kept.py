"""What was computed once and is kept for later runs: arrays in files that may be lost at any time.

Several processes may use one folder at once, also on a shared file system: a file is written beside
its name and renamed. What cannot be read is computed again; what cannot be written is not kept.
"""

import contextlib
import hashlib
import os
import secrets
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

LARGEST_BYTES = 2**30  # of all files; those that were not used for the longest go first
OLD_SECONDS = 24 * 3600  # after which an unfinished file is nobody's


class Kept:
    """Trees of arrays by what they depend on.

    Args:
      folder: made when it is needed; None keeps nothing.
      largest_bytes: of all files together.
    """

    def __init__(self, folder: Path | None, largest_bytes: int = LARGEST_BYTES):
        self._folder, self._largest = folder, largest_bytes

    def load(self, depends_on: str, like: Any) -> Any:
        """The tree of host arrays that was kept, or None.

        Args:
          depends_on: all that the arrays depend on.
          like: a tree of the structure, shapes and types wanted.
        """
        path = self._path(depends_on)
        try:
            # It checks what it reads by its CRC, but leaves a damaged file open.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
                arrays = {name: found[name] for name in found.files}
            with contextlib.suppress(OSError):  # another user's, in a folder that is shared
                os.utime(path)
        except Exception:  # whatever a missing, damaged or unreadable file makes NumPy raise
            return None
        leaves, structure = jax.tree.flatten(like)
        wanted = {str(i): (leaf.shape, leaf.dtype) for i, leaf in enumerate(leaves)}
        if {name: (array.shape, array.dtype) for name, array in arrays.items()} != wanted:
            return None
        return jax.tree.unflatten(structure, [arrays[name] for name in wanted])

    def store(self, depends_on: str, tree: Any) -> None:
        """Keeps a tree of host arrays, if the folder can be written."""
        path = self._path(depends_on)
        if path is None:
            return
        partial = path.with_name(f"{secrets.token_hex(8)}.partial")
        leaves = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(tree))}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                np.savez(file, **leaves)
            partial.replace(path)
            self._make_room(path.parent)
        except OSError:  # a full disk, a folder of somebody else: it was only for speed
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    def _path(self, depends_on: str) -> Path | None:
        digest = hashlib.sha256(depends_on.encode()).hexdigest()[:32]
        return None if self._folder is None else self._folder / f"{digest}.npz"

    def _make_room(self, folder: Path) -> None:
        files = []
        for path in folder.iterdir():
            with contextlib.suppress(OSError):  # another process may have taken it away
                about = path.stat()
                if path.suffix == ".npz":
                    files.append((about.st_mtime, about.st_size, path))
                elif path.suffix == ".partial" and time.time() - about.st_mtime > OLD_SECONDS:
                    path.unlink()
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self._largest:
                break
            with contextlib.suppress(OSError):
                path.unlink()
            total -= size
