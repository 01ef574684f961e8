"""Checkpoints: what was saved comes back, and nothing else ever does."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eqnet.checkpoint import Checkpoints
from eqnet.errors import InputError


def tree(seed: int, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), 3)
    params = (jax.random.normal(keys[0], (40, 30), dtype), jax.random.normal(keys[1], (), dtype))
    return {
        "params": params,
        "opt_state": optax.adam(1e-3).init(params),
        "step": jnp.asarray(seed, jnp.int32),
        "key": jax.random.key_data(keys[2]),
        "nothing": (),
    }


def assert_same(one, other) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_round_trip_is_exact(tmp_path: Path, dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        saved = tree(3, jnp.dtype(dtype))
        checkpoints = Checkpoints(tmp_path / "checkpoints")
        assert checkpoints.restore(saved) is None
        position = {"epoch": 3, "loss": 0.1 + 0.2, "worst": float("inf")}
        checkpoints.save(12, saved, position)
        found = Checkpoints(tmp_path / "checkpoints").restore(tree(0, jnp.dtype(dtype)))
        assert found is not None
        step, restored, there = found
        assert step == 12 and there == position
        assert_same(saved, restored)


def test_newest_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 10, 9):
        checkpoints.save(step, tree(step), {"n": step})
    assert checkpoints.steps() == [9, 10]
    checkpoints.save(10, tree(77), {"n": 77})  # the same step again
    found = checkpoints.restore(tree(0))
    assert found is not None and found[2] == {"n": 77}
    assert_same(found[1], tree(77))
    assert not [p for p in tmp_path.iterdir() if not p.name.isdigit()]


def files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize("damage", [truncate, flip, grow, Path.unlink])
def test_any_damage_to_any_file_is_found(tmp_path: Path, damage) -> None:
    told: list[str] = []
    checkpoints = Checkpoints(tmp_path, keep=100, tell=told.append)
    checkpoints.save(1, tree(1), {"n": 1})
    checkpoints.save(2, tree(2), {"n": 2})
    names = [p.relative_to(tmp_path / "000000002") for p in files(tmp_path / "000000002")]
    names = [p for p in names if (tmp_path / "000000002" / p).stat().st_size]
    assert len(names) > 5
    kept = {n: (tmp_path / "000000002" / n).read_bytes() for n in names}
    for name in names:
        damage(tmp_path / "000000002" / name)
        found = checkpoints.restore(tree(0))
        assert found is not None and found[0] == 1, name
        assert_same(found[1], tree(1))
        assert "step 2 is damaged" in told[-1]
        damaged = tmp_path / "000000002.damaged"
        assert damaged.is_dir()
        for other, data in kept.items():  # as it was
            (damaged / other).write_bytes(data)
        damaged.rename(tmp_path / "000000002")


@pytest.mark.slow
def test_hundreds_of_damages(tmp_path: Path) -> None:
    """300 flipped bits, 60 truncations and 30 deletions at random, each in a fresh state."""
    told: list[str] = []
    checkpoints = Checkpoints(tmp_path, keep=100, tell=told.append)
    for step in (1, 2):
        checkpoints.save(step, tree(step), {"n": step})
    newest, rng = tmp_path / "000000002", np.random.default_rng(0)
    names = [p.relative_to(newest) for p in files(newest) if p.stat().st_size]
    sizes = np.array([(newest / name).stat().st_size for name in names])
    for kind in ["flip"] * 300 + ["truncate"] * 60 + ["delete"] * 30:
        # a flip hits any bit of the checkpoint alike, other damage any file
        weights = sizes / sizes.sum() if kind == "flip" else None
        name = names[rng.choice(len(names), p=weights)]
        data = (newest / name).read_bytes()
        if kind == "flip":
            bit = int(rng.integers(8 * len(data)))
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            (newest / name).write_bytes(damaged)
        elif kind == "truncate":
            (newest / name).write_bytes(data[: rng.integers(len(data))])
        else:
            (newest / name).unlink()
        told.clear()
        found = checkpoints.restore(tree(0))
        assert found is not None and found[0] == 1, (kind, name)
        assert_same(found[1], tree(1))
        assert len(told) == 1 and "step 2 is damaged" in told[0]
        aside = tmp_path / "000000002.damaged"
        (aside / name).write_bytes(data)
        aside.rename(newest)


def test_all_damaged_is_an_error_and_not_a_new_start(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, tree(1), {})
    (tmp_path / "000000001" / "manifest.json").unlink()
    with pytest.raises(InputError, match="none of the 1 checkpoints is intact"):
        checkpoints.restore(tree(0))


def test_leftovers_of_a_kill_are_ignored_and_removed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, tree(1), {})
    (tmp_path / ".partial-000000002-99").mkdir()
    (tmp_path / ".partial-000000002-99" / "position.json").write_text("{")
    found = checkpoints.restore(tree(0))
    assert found is not None and found[0] == 1
    checkpoints.remove_leftovers()
    assert [p.name for p in tmp_path.iterdir()] == ["000000001"]


def test_kill_while_a_step_is_saved_again_keeps_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Death between the two renames, and the rename that fails."""

    class Killed(BaseException):
        pass

    def failing(error: BaseException):
        rename = Path.rename

        def second_fails(self: Path, target: Path) -> Path:
            if target.name == "000000002":
                raise error
            return rename(self, target)

        return second_fails

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, tree(1), {"n": 1})
    checkpoints.save(2, tree(2), {"n": 2})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing(Killed()))
        with pytest.raises(Killed):
            checkpoints.save(2, tree(77), {"n": 77})
    assert checkpoints.steps() == [1]
    again = Checkpoints(tmp_path)
    again.remove_leftovers()
    found = again.restore(tree(0))
    assert found is not None and found[2] == {"n": 2}
    assert_same(found[1], tree(2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000000001", "000000002"]


def test_other_model_and_other_version_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, tree(1), {})
    other = tree(1)
    other["params"] = (jnp.zeros((40, 31)), other["params"][1])
    with pytest.raises(InputError, match=r"params.0: float32\[40, 30\] there, float32\[40, 31\]"):
        checkpoints.restore(other)
    del other["step"]
    with pytest.raises(InputError, match=r"step: int32\[\] there, absent here"):
        checkpoints.restore(other)
    with monkeypatch.context() as later:
        later.setattr("eqnet.checkpoint.FORMAT", 9)
        checkpoints.save(2, tree(2), {})
    with pytest.raises(InputError, match="000000002 was written by another version of eqnet"):
        checkpoints.restore(tree(0))
    assert checkpoints.steps() == [1, 2]  # a sound file, not a damaged one


def test_full_disk_names_the_bytes_and_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, tree(1), {})

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("eqnet.checkpoint._write_arrays", full)
    with pytest.raises(
        InputError, match=r"No space left on device\): about [\d,]+ bytes are needed"
    ):
        checkpoints.save(2, tree(2), {})
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["000000001"]
    found = checkpoints.restore(tree(0))
    assert found is not None and found[0] == 1


def test_manifest_lists_every_file(tmp_path: Path) -> None:
    Checkpoints(tmp_path).save(1, tree(1), {})
    folder = tmp_path / "000000001"
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    there = {p.relative_to(folder).as_posix() for p in files(folder)}
    assert set(listed) == there - {"manifest.json"}
