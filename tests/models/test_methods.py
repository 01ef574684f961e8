"""Models whose methods are timed: the same energies, each product timed once and kept on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from graphs import Structure, make_graph

from eqnet.models import MACE, MACEConfig, NequIP, NequIPConfig
from eqnet.ops import choices, choose

ELEMENTS, CUTOFF = (1, 8), 3.0
SMALL: dict[str, Any] = {"r_max": CUTOFF, "max_ell": 1, "num_interactions": 2, "radial_MLP": (4,)}


def mace(method: str) -> MACE:
    config = MACEConfig(
        ELEMENTS, **SMALL, hidden_irreps="2x0e+2x1o", correlation=2, node_product="gaunt"
    )
    return MACE(config, rngs=nnx.Rngs(0), method=method)


def nequip(method: str) -> NequIP:
    config = NequIPConfig(ELEMENTS, **SMALL, hidden_irreps="2x0e+2x1o")
    return NequIP(config, rngs=nnx.Rngs(0), method=method)


def shapes(make: Callable[[str], Any], method: str) -> Any:
    """The model without its numbers, as a model file is opened."""
    return nnx.eval_shape(lambda: make(method))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(choices, "UNWRITTEN", {})
    monkeypatch.setattr(choose, "EDGES", 12)
    return tmp_path / "eqnet" / "methods"


def energies(model: nnx.Module, weights: Any) -> np.ndarray:
    rng = np.random.default_rng(0)
    molecule = Structure(np.array([8, 1, 1, 8]), rng.normal(0, 1.2, (4, 3)), np.zeros((3, 3)))
    graph = make_graph([molecule], ELEMENTS, CUTOFF)
    graphdef = nnx.split(model)[0]
    return np.asarray(jax.jit(lambda w: nnx.merge(graphdef, w)(graph))(weights))


def test_auto_is_timed_once_and_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, x64: None
) -> None:
    weights = nnx.split(nnx.jit(lambda: nequip("default"))())[1]
    expected = energies(shapes(nequip, "default"), weights)
    assert not folder.exists()
    assert np.ptp(expected) > 1e-3

    (chosen,) = shapes(nequip, "auto").methods
    files = list(folder.iterdir())
    assert len(files) == 2  # layers of other irreps are other products
    kept = [json.loads(file.read_text()) for file in files]
    assert sorted(choice["method"] for choice in kept) == sorted(chosen)
    assert all({"rows", "so2"} <= set(choice["milliseconds"]) for choice in kept)

    def fail(*_: object) -> None:
        raise AssertionError("timed again")

    monkeypatch.setattr(choose, "_times", fail)
    for file, choice in zip(files, kept, strict=True):  # an answer that only the disk knows
        file.write_text(json.dumps(choice | {"method": "so2"}))
    again = shapes(nequip, "auto")
    assert again.methods == (["so2", "so2"],)
    np.testing.assert_allclose(energies(again, weights), expected, rtol=1e-12, atol=1e-13)
    with jax.enable_x64(False), pytest.raises(AssertionError, match="timed again"):
        shapes(nequip, "auto")  # in float32 it is another question


def test_layers_and_powers_choose_for_themselves(
    folder: Path, monkeypatch: pytest.MonkeyPatch, x64: None
) -> None:
    times = [{"rows": 2.0, "so2": 1.0}, {"grid": 1.0, "fft": 2.0},
             {"rows": 1.0, "so2": 2.0}, {"grid": 2.0, "fft": 1.0}]  # fmt: skip
    monkeypatch.setattr(choose, "_times", lambda *_: times.pop(0))
    auto, default = shapes(mace, "auto"), shapes(mace, "default")
    assert auto.methods == (["so2", "rows"], ["grid", "fft"])
    assert default.methods == (["rows", "rows"], ["grid", "grid"])
    assert shapes(mace, "so2").methods == (["so2", "so2"], ["grid", "grid"])
    weights = nnx.split(nnx.jit(lambda: mace("default"))())[1]
    expected = energies(default, weights)
    np.testing.assert_allclose(energies(auto, weights), expected, rtol=1e-12, atol=1e-13)
    with pytest.raises(ValueError, match="clebsch_gordan has no method 'quick'"):
        mace("quick")
