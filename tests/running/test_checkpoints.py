import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_align.running.checkpoints import Checkpoints, digest
from icl_align.running.files import write_json

STATE = {"w": jnp.arange(12.0).reshape(3, 4), "blocks": {0: jnp.ones(3), 1: jnp.int32(7)}}


def save(folder, *steps, keep=3):
    checkpoints = Checkpoints(folder, {"seed": 1}, keep)
    for step in steps:
        checkpoints.save(step, jax.tree.map(lambda leaf, s=step: leaf + s, STATE))
        checkpoints.wait()
    return checkpoints


def damage(folder, step):
    """Overwrites the largest file of a checkpoint with noise, as a bad disk would."""
    largest = max(
        (p for p in (folder / str(step) / "state").rglob("*") if p.is_file()),
        key=lambda p: p.stat().st_size,
    )
    content = bytearray(largest.read_bytes())
    content[len(content) // 3 :] = bytes(byte ^ 0x5A for byte in content[len(content) // 3 :])
    largest.write_bytes(content)


def test_what_is_saved_comes_back_bit_for_bit(tmp_path):
    step, state = save(tmp_path / "c", 5).restore_newest(STATE)
    assert step == 5
    assert jax.tree.structure(state) == jax.tree.structure(STATE)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(STATE), strict=True):
        np.testing.assert_array_equal(a, b + 5)
        assert a.dtype == b.dtype


def test_a_saved_state_may_be_donated_at_once(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", {})
    state = jax.tree.map(jnp.copy, STATE)
    checkpoints.save(1, state)
    jax.jit(lambda s: jax.tree.map(lambda leaf: leaf * 0, s), donate_argnums=0)(state)
    _, restored = checkpoints.restore_newest(STATE)
    np.testing.assert_array_equal(restored["w"], STATE["w"])


def test_only_the_newest_are_kept(tmp_path):
    assert save(tmp_path / "c", 1, 2, 3, 4, keep=2).steps() == [4, 3]


def test_an_empty_folder_has_nothing(tmp_path):
    assert Checkpoints(tmp_path / "c", {}).restore_newest(STATE) is None


def test_a_damaged_newest_falls_back_to_the_one_before_and_says_so(tmp_path):
    save(tmp_path / "c", 1, 2).close()
    damage(tmp_path / "c", 2)
    said = []
    checkpoints = Checkpoints(tmp_path / "c", {})
    step, state = checkpoints.restore_newest(STATE, said.append)
    assert step == 1
    np.testing.assert_array_equal(state["w"], STATE["w"] + 1)
    assert len(said) == 1
    assert "checkpoint 2 is damaged" in said[0]
    assert (tmp_path / "c_damaged" / "2").is_dir()  # kept, out of the way
    checkpoints.save(2, STATE)  # the step can be saved again
    checkpoints.wait()
    assert checkpoints.steps() == [2, 1]


def test_a_missing_file_counts_as_damage(tmp_path):
    save(tmp_path / "c", 1, 2).close()
    for path in (tmp_path / "c" / "2" / "state").rglob("*"):
        if path.is_file():
            path.unlink()
    said = []
    assert Checkpoints(tmp_path / "c", {}).restore_newest(STATE, said.append)[0] == 1
    assert said


def test_reading_only_moves_nothing(tmp_path):
    save(tmp_path / "c", 1, 2).close()
    damage(tmp_path / "c", 2)
    assert Checkpoints(tmp_path / "c", read_only=True).restore_newest(STATE)[0] == 1
    assert (tmp_path / "c" / "2").is_dir()


def test_the_configuration_is_stored_beside_the_state(tmp_path):
    checkpoints = save(tmp_path / "c", 3, 4)
    assert checkpoints.configs() == [{"seed": 1}] * 2
    for path in (tmp_path / "c" / "4" / "about").iterdir():
        path.write_text("{")
    assert Checkpoints(tmp_path / "c").configs() == [{"seed": 1}]


@pytest.mark.parametrize("change", ["value", "dtype", "shape", "name"])
def test_the_digest_sees_every_change(change):
    other = {
        "value": {**STATE, "w": STATE["w"].at[0, 0].add(1e-6)},
        "dtype": {**STATE, "w": STATE["w"].astype(jnp.int32)},
        "shape": {**STATE, "w": STATE["w"].reshape(4, 3)},
        "name": {"v": STATE["w"], "blocks": STATE["blocks"]},
    }[change]
    assert digest(other) != digest(STATE)
    assert digest(jax.tree.map(jnp.copy, STATE)) == digest(STATE)


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_text() == '{"a": 1}\n'
