"""The choice of a method: timed once, read from the disk afterwards, and only a matter of speed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from eqnet.irreps import Irreps, IrrepsArray, spherical_irreps
from eqnet.ops import choose
from eqnet.ops.clebsch_gordan import ClebschGordan
from eqnet.ops.product import Radial, dense

PRODUCT: Any = ClebschGordan(Irreps("4x0e+4x1o"), spherical_irreps(1), Irreps("0e+1o"))


def slow(product: Any, x: IrrepsArray, y: IrrepsArray, radial: Radial) -> IrrepsArray:
    """The plain form, a thousand times over."""

    def again(_: Any, total: jax.Array) -> jax.Array:
        return 0.5 * total + dense(product, x, y, radial).array

    first = dense(product, x, y, radial)
    return IrrepsArray(first.irreps, jax.lax.fori_loop(0, 1000, again, first.array) / 2)


def impossible(product: Any, x: IrrepsArray, y: IrrepsArray, radial: Radial) -> IrrepsArray:
    raise ValueError("not these irreps")


KERNELS: dict[str, Any] = {"impossible": impossible, "slow": slow, "dense": dense}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(choose, "EDGES", 12)
    return tmp_path / "eqnet" / "methods"


def test_the_choice_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = time.monotonic()
    assert choose.fastest(PRODUCT, KERNELS) == "dense"
    assert time.monotonic() - start < 60  # on a machine with other work
    (file,) = folder.iterdir()
    choice = json.loads(file.read_text())
    assert choice["method"] == "dense"
    assert set(choice["milliseconds"]) == {"slow", "dense"}

    def fail(*_: Any) -> None:
        raise AssertionError("timed again")

    monkeypatch.setattr(choose, "_times", fail)
    assert choose.fastest(PRODUCT, KERNELS) == "dense"
    # what is on the disk decides, not the clock
    file.write_text(json.dumps(choice | {"method": "slow"}))
    assert choose.fastest(PRODUCT, KERNELS) == "slow"
    assert choose.fastest(PRODUCT, {"dense": dense}) == "dense"  # nothing to choose


@pytest.mark.parametrize("text", ["", "[]", '{"key": "another", "method": "slow"}', "{"])
def test_damaged_and_foreign_files_are_replaced(
    folder: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(choose, "_times", lambda *_: {"slow": 2.0, "dense": 1.0})
    assert choose.fastest(PRODUCT, KERNELS) == "dense"
    (file,) = folder.iterdir()
    file.write_text(text)
    assert choose.fastest(PRODUCT, KERNELS) == "dense"
    assert json.loads(file.read_text())["method"] == "dense"


def test_the_default_stays_unless_another_is_clearly_faster(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seconds, expected in ((0.97, "slow"), (0.9, "dense")):
        monkeypatch.setattr(choose, "_times", lambda *_, s=seconds: {"slow": 1.0, "dense": s})
        assert choose.fastest(PRODUCT, KERNELS) == expected
        for file in folder.iterdir():
            file.unlink()


def test_choices_depend_on_product_and_precision(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "_times", lambda *_: {"slow": 2.0, "dense": 1.0})
    other: Any = ClebschGordan(Irreps("8x0e+8x1o"), spherical_irreps(1), Irreps("0e+1o"))
    for product in (PRODUCT, other):
        for dtype in ("float32", "float64"):
            choose.fastest(product, KERNELS, dtype)
    assert len(list(folder.iterdir())) == 4


def test_without_a_folder_and_inside_a_trace(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    chosen = []

    @jax.jit
    def program(x: jax.Array) -> jax.Array:
        chosen.append(choose.fastest(PRODUCT, KERNELS))
        return x + 1

    assert program(jnp.ones(())) == 2
    assert chosen == ["dense"]


def test_ring() -> None:
    """The reverse of every edge goes back, and its reverse is the edge itself."""
    graph = choose.ring(100)
    width = graph.neighbors.shape[1]
    for i in range(graph.num_atoms):
        for k in range(width):
            j, back = divmod(int(graph.reverse[i, k]), width)
            assert j == graph.neighbors[i, k]
            assert graph.neighbors[j, back] == i
            assert graph.reverse[j, back] == i * width + k
        assert len({i, *graph.neighbors[i].tolist()}) == width + 1
    with pytest.raises(ValueError, match="needs 6 edges or more"):
        choose.ring(5)
