"""`eqnet info` shows what is in a model file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from morse import model_of, morse_potential

from eqnet.model_file import save
from eqnet.scripts import run
from eqnet.scripts.info import _equivariance, _options


@pytest.fixture
def model(tmp_path: Path) -> str:
    potential = morse_potential()
    path = tmp_path / "model.eqnet"
    training = {"errors": {"forces_mae": 12.3456, "energy_per_atom_rmse": 0.5}, "file": "[a].xyz"}
    config = model_of(potential).config
    save(path, potential, model_name="morse", config=config, training=training, examples=[])
    return str(path)


def test_tables(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", [model]) == 0
    out = capsys.readouterr().out
    for text in ("morse", "r_max", "-6000.000000", "12.346 meV/A", "0.500 meV/atom", "[a].xyz"):
        assert text in out
    assert model in out.replace("\n", "")


def test_only_options_that_apply_are_shown() -> None:
    """Empty names, the rank of exact products and what hidden_irreps overrides say nothing."""
    exact = {"num_channels": 4, "max_L": 0, "hidden_irreps": "", "node_product": "", "rank": 0}
    assert dict(_options(exact)) == {"num_channels": 4, "max_L": 0}
    other = exact | {"hidden_irreps": "4x0e", "node_product": "cp", "rank": 3}
    assert dict(_options(other)) == {"hidden_irreps": "4x0e", "node_product": "cp", "rank": 3}


def test_an_exact_product_declares_no_error() -> None:
    error = dict.fromkeys(("energy_per_atom_rmse", "energy_per_atom_max"), 0.0)
    error |= {"forces_rmse": 0.0, "forces_max": 0.0, "structures": 3, "turns": 8}
    for declared, text in ((1e-15, "none, exact"), (0.42, "0.420 of its output, relative")):
        found = dict(_equivariance({**error, "declared": declared}))
        assert found["declared by the product"].startswith(text)


def test_json(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", [model, "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["potential"]["elements"] == [1, 6, 8]
    assert info["training"]["errors"]["forces_mae"] == 12.3456


def test_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", ["nothing.eqnet"]) == 2
    assert capsys.readouterr().err == "eqnet: error: nothing.eqnet: no such model file\n"
