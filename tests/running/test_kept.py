"""What is kept for later runs is found again, and never wrong, whatever happens to the files."""

import os

import jax
import numpy as np
import pytest

from icl_align.running.kept import Kept

TREE = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": (np.array([True, False]),)}
LIKE = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), TREE)


def same(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def test_what_was_stored_is_loaded_and_nothing_else(tmp_path):
    kept = Kept(tmp_path / "new" / "folder")
    assert kept.load("this", LIKE) is None
    kept.store("this", TREE)
    assert same(kept.load("this", LIKE), TREE)
    assert kept.load("that", LIKE) is None
    assert same(Kept(tmp_path / "new" / "folder").load("this", LIKE), TREE)
    assert Kept(None).load("this", LIKE) is None
    Kept(None).store("this", TREE)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_a_file_that_was_cut_off_is_not_believed(tmp_path, share):
    kept = Kept(tmp_path)
    kept.store("this", TREE)
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert kept.load("this", LIKE) is None
    kept.store("this", TREE)
    assert same(kept.load("this", LIKE), TREE)


def test_no_changed_byte_of_the_arrays_is_believed(tmp_path):
    kept = Kept(tmp_path)
    kept.store("this", TREE)
    [path] = tmp_path.iterdir()
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[place] ^= 0xFF
        path.write_bytes(changed)
        found = kept.load("this", LIKE)
        assert found is None or same(found, TREE), place


def test_arrays_of_other_shapes_or_types_are_not_taken(tmp_path):
    kept = Kept(tmp_path)
    kept.store("this", TREE)
    longer = {**LIKE, "a": jax.ShapeDtypeStruct((3, 3), np.float32)}
    other = {**LIKE, "a": jax.ShapeDtypeStruct((2, 3), np.float64)}
    assert kept.load("this", longer) is kept.load("this", other) is None


def test_the_files_used_last_are_kept_when_room_is_short(tmp_path):
    size = 4 * 10_000
    kept = Kept(tmp_path, largest_bytes=int(2.5 * size))
    tree, like = np.zeros(10_000, np.float32), jax.ShapeDtypeStruct((10_000,), np.float32)
    for time, name in enumerate(("first", "second", "third")):
        kept.store(name, tree)
        for path in tmp_path.iterdir():  # as if hours lay between
            about = path.stat()
            os.utime(path, (about.st_atime - 3600, about.st_mtime - 3600))
        if time:
            assert kept.load("first", like) is not None
    assert kept.load("second", like) is None
    assert kept.load("third", like) is not None


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    kept = Kept(tmp_path / "file" / "folder")
    kept.store("this", TREE)
    assert kept.load("this", LIKE) is None


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    Kept(tmp_path).store("this", TREE)
    assert list(tmp_path.iterdir()) == []
