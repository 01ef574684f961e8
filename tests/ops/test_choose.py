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
from eqnet.ops import (
    choices,
    choose,
    choose_convolution,
    choose_methods,
    choose_power_method,
    method_name,
)
from eqnet.ops.clebsch_gordan import ClebschGordan
from eqnet.ops.gaunt_power import GauntPower
from eqnet.ops.product import dense
from eqnet.processor import processor_name

PRODUCT: Any = ClebschGordan(Irreps("4x0e+4x1o"), spherical_irreps(1), Irreps("0e+1o"))
POWER = GauntPower(Irreps("2x0e+2x1o"), Irreps("2x0e"), 2)


def slow(product: Any, x: IrrepsArray, y: IrrepsArray, *weights: Any) -> IrrepsArray:
    """The plain form, a thousand times over."""

    def again(_: Any, total: jax.Array) -> jax.Array:
        return 0.5 * total + dense(product, x, y, *weights).array

    first = dense(product, x, y, *weights)
    return IrrepsArray(first.irreps, jax.lax.fori_loop(0, 1000, again, first.array) / 2)


def impossible(product: Any, x: IrrepsArray, y: IrrepsArray, *weights: Any) -> IrrepsArray:
    raise ValueError("not these irreps")


KERNELS: dict[str, Any] = {"impossible": impossible, "slow": slow, "dense": dense}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(choose, "EDGES", 12)
    monkeypatch.setattr(choose, "ATOMS", 4)
    monkeypatch.setattr(choices, "UNWRITTEN", {})
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


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"key": "another", "method": "slow"}', "{"])
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


def test_small_programs_are_compiled_before_time_is_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default whatever it costs, then the shortest: no other has a chance without time."""

    def long(product: Any, x: IrrepsArray, y: IrrepsArray, *weights: Any) -> IrrepsArray:
        out = dense(product, x, y, *weights)
        return IrrepsArray(out.irreps, sum([jnp.sin(n * out.array) for n in range(50)], out.array))

    timed: list[set[str]] = []
    monkeypatch.setattr(choose, "take_turns", lambda calls, **_: timed.append(set(calls)) or {})
    seconds = iter([0.0, 1.0])  # after the default, and after one more
    monkeypatch.setattr(choose, "SECONDS", 0.5)
    monkeypatch.setattr(choose.Clock, "until_now", lambda _: choose.Clock(*[next(seconds)] * 2))
    choose.fastest(PRODUCT, {"slow": slow, "long": long, "dense": dense})
    assert timed == [{"slow", "dense"}]


def test_choices_depend_on_product_and_precision(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "_times", lambda *_: {"slow": 2.0, "dense": 1.0})
    other: Any = ClebschGordan(Irreps("8x0e+8x1o"), spherical_irreps(1), Irreps("0e+1o"))
    for product in (PRODUCT, other):
        for dtype in ("float32", "float64"):
            choose.fastest(product, KERNELS, dtype)
    assert len(list(folder.iterdir())) == 4


def test_a_choice_is_for_one_kind_of_processor(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machines that share a home folder choose for themselves."""
    assert processor_name() not in ("", "cpu")
    for name, times in {"old": (2.0, 1.0), "new": (1.0, 2.0)}.items():
        monkeypatch.setattr(choose, "processor_name", lambda name=name: name)
        found = dict(zip(("slow", "dense"), times, strict=True))
        monkeypatch.setattr(choose, "_times", lambda *_, found=found: found)
        assert choose.fastest(PRODUCT, KERNELS) == min(found, key=found.__getitem__)
    assert len(list(folder.iterdir())) == 2


def test_without_a_folder_and_inside_a_trace(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    chosen = []

    @jax.jit
    def program(x: jax.Array) -> jax.Array:
        chosen.append(choose.fastest(PRODUCT, KERNELS))
        return x + 1

    assert program(jnp.ones(())) == 2
    assert chosen == ["dense"]
    # what cannot be written lasts as long as the process
    monkeypatch.setattr(choose, "_times", lambda *_: {"slow": 1.0, "dense": 2.0})
    assert choose.fastest(PRODUCT, KERNELS) == "dense"
    assert choose.fastest(PRODUCT, KERNELS, "float64") == "slow"


def test_where_no_method_can_the_default_says_why(folder: Path) -> None:
    kernels: dict[str, Any] = {"impossible": impossible, "neither": impossible}
    assert choose.fastest(PRODUCT, kernels) == "impossible"
    assert not list(folder.iterdir())


def test_powers(folder: Path) -> None:
    """Every method is timed but the plain one, and the least time wins."""
    chosen = choose_power_method(POWER, "auto")
    (file,) = folder.iterdir()
    choice = json.loads(file.read_text())
    assert set(choice["milliseconds"]) == set(POWER.methods) - {"dense"}
    assert choice["method"] == chosen
    file.write_text(json.dumps(choice | {"method": "fft"}))
    assert choose_power_method(POWER, "auto") == "fft"


def test_names_of_methods(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of a product by default, the fastest by 'auto', otherwise what is named."""
    monkeypatch.setattr(choose, "_times", lambda energies, *_: dict.fromkeys(energies, 1.0))
    for method in ("default", "auto", "so2", "dense"):
        expected = "rows" if method in ("default", "auto") else method
        assert method_name(PRODUCT, choose_convolution(PRODUCT, method)) == expected
    monkeypatch.setattr(choose, "_times", lambda energies, *_: {"sparse": 1.0, "rows": 2.0})
    for file in folder.iterdir():
        file.unlink()
    assert method_name(PRODUCT, choose_convolution(PRODUCT, "auto")) == "sparse"
    assert method_name(PRODUCT, choose_convolution(PRODUCT)) == "rows"
    assert [choose_power_method(POWER, m) for m in ("default", "fft")] == ["grid", "fft"]
    with pytest.raises(
        ValueError, match="node product gaunt has no method 'rows'; it has: default, au"
    ):
        choose_power_method(POWER, "rows")


def test_one_name_for_a_model() -> None:
    """What has no method of the name keeps its default."""
    names = {m: choose_methods("clebsch_gordan", "gaunt", m) for m in ("auto", "rows", "fft")}
    assert names == {
        "auto": ("auto", "auto"), "rows": ("rows", "default"), "fft": ("default", "fft"),
    }  # fmt: skip
    assert choose_methods("gaunt", method="grid") == ("grid", "grid")
    with pytest.raises(ValueError, match="has no method 'fft'; it has: default, auto, rows, .*"):
        choose_methods("clebsch_gordan", method="fft")


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
