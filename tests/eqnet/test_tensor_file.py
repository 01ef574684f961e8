"""Files of tensor models: round trip, replay, and files that are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from emt import emt_potential
from flax import nnx

import eqnet
from eqnet import EqnetCalculator, archive
from eqnet.data.frame import Frame
from eqnet.data.tensor_labels import TENSORS, TensorKind
from eqnet.errors import InputError
from eqnet.model_file import load as load_potential
from eqnet.model_file import read_info
from eqnet.model_parts import MEMBERS, OPTIONAL, to_json, weights_of
from eqnet.models.nequip import NequIP, NequIPConfig
from eqnet.tensor_evaluation import predict
from eqnet.tensor_file import load, save
from eqnet.tensor_model import TensorModel, needed_irreps

CONFIG = NequIPConfig(
    (1, 8), r_max=3.0, num_channels=2, max_L=1, max_ell=2, num_interactions=1, radial_MLP=(4,)
)
KINDS = {"dipole": TENSORS["dipole"], "polarizability": TENSORS["polarizability"]}


def water(index: int = 0) -> Frame:
    positions = [[0.0, 0.0, 0.1 * index], [0.9, 0.2, -0.2], [-0.3, 0.8, 0.4]]
    return Frame(np.array([8, 1, 1]), np.array(positions), np.zeros((3, 3)), np.zeros(3, bool))


@pytest.fixture(scope="module")
def model() -> TensorModel:
    zero = ((0.0,) * 3,) * 3
    return TensorModel(
        NequIP(CONFIG, rngs=nnx.Rngs(0), needed=needed_irreps(KINDS)),
        KINDS,
        elements=CONFIG.elements,
        cutoff=CONFIG.r_max,
        scale={"dipole": 0.5, "polarizability": 2.0},
        shift={"dipole": ((0.0,) * 3,) * 2, "polarizability": (zero, zero)},
        channels=3,
        rngs=nnx.Rngs(1),
    )


@pytest.fixture(scope="module")
def file(model: TensorModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tensors") / "model.eqnet"
    examples = [water(), water(1)]
    save(path, model, model_name="nequip", config=CONFIG, training={"seed": 3}, examples=examples)
    return path


def test_tensors_do_not_hide_what_a_potential_answers(tmp_path: Path) -> None:
    kinds = {"forces": TensorKind("i", "atom")}
    direct = TensorModel(
        NequIP(CONFIG, rngs=nnx.Rngs(0), needed=needed_irreps(kinds)), kinds,
        elements=CONFIG.elements, cutoff=CONFIG.r_max, rngs=nnx.Rngs(1),
        scale={"forces": 1.0}, shift={"forces": ((0.0,) * 3,) * 2},
    )  # fmt: skip
    path = tmp_path / "f.eqnet"
    save(path, direct, model_name="nequip", config=CONFIG, training={}, examples=[water()])
    with pytest.raises(InputError, match="f.eqnet: its forces would hide those of the potential"):
        EqnetCalculator(emt_potential(), tensors=path)


def altered(file: Path, target: Path, member: str, change) -> Path:
    """The file with one of its JSON members changed, and sealed again."""
    members = archive.read(file, MEMBERS, ("config.json", lambda data: None), OPTIONAL)
    content = json.loads(members[member])
    change(content)
    archive.write(target, members | {member: to_json(content)})
    return target


def test_round_trip(model: TensorModel, file: Path) -> None:
    """Same weights, same answers, and the labels that it was trained with are told."""
    loaded = eqnet.load_tensors(file)
    before, after = weights_of(model), weights_of(loaded)
    assert before.keys() == after.keys() and len(before) > 10
    assert all((before[name] == after[name]).all() for name in before)
    (here,), (there,) = predict(model, [water(3)]), predict(loaded, [water(3)])
    assert here.keys() == set(KINDS) and np.abs(here["dipole"]).max() > 1e-3
    for name in KINDS:
        np.testing.assert_allclose(there[name], here[name], rtol=0, atol=1e-6)
    info = read_info(file)
    assert info["tensors"]["dipole"]["charges"] and info["num_examples"] == 2


def test_other_numbers_are_refused(file: Path, tmp_path: Path) -> None:
    def change(examples: list) -> None:
        examples[1]["tensors"]["dipole"][2] += 1e-3

    wrong = altered(file, tmp_path / "wrong.eqnet", "examples.json", change)
    with pytest.raises(InputError, match="wrong.eqnet: example 1 gives another dipole here"):
        load(wrong)
    load(wrong, verify=False)


def test_lattices_and_atoms_are_told_apart(model: TensorModel, file: Path, tmp_path: Path) -> None:
    """Lengths of one are radii of struts, of the other angstrom: neither may pass for the other."""
    lattice = replace(water(), info={"struts": [[0, 1, 0, 0, 0]], "strut_radius": 0.1})
    with pytest.raises(InputError, match="a lattice of struts, but the model is for atoms"):
        predict(model, [water(), lattice])
    other = altered(file, tmp_path / "o.eqnet", "config.json", lambda c: c.update(struts=True))
    with pytest.raises(InputError, match="a lattice needs struts"):
        predict(load(other, verify=False), [water()])


def test_answers_that_symmetry_makes_zero(model: TensorModel, tmp_path: Path) -> None:
    """The dipole of O2 is rounding, which differs between precisions."""
    positions = np.array([[0.1, 0.2, 0.3], [0.9, 1.0, 0.7]])
    oxygen = Frame(np.array([8, 8]), positions, np.zeros((3, 3)), np.zeros(3, bool))
    path = tmp_path / "model.eqnet"
    save(path, model, model_name="nequip", config=CONFIG, training={}, examples=[oxygen])
    for dtype in ("float32", "float64"):
        load(path, dtype=dtype)


def test_kinds_of_files_are_told_apart(file: Path) -> None:
    with pytest.raises(InputError, match="has tensors, not energies: open it with eqnet.load_ten"):
        load_potential(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["tensors"]["dipole"].update(shift=[[0.0] * 3]), r"of shape \(2, 3\)"),
        (lambda c: c["tensors"]["dipole"].update(scale=None), "dipole has no numbers"),
        (lambda c: c["tensors"]["dipole"].pop("scale"), "dipole lacks its scale or shift"),
        (lambda c: c["tensors"]["dipole"].update(per="atom"), "charges times positions"),
        (lambda c: c["tensors"]["dipole"].update(colour="red"), "has the option 'colour'"),
        (lambda c: c.update(channels=7), "has shape"),
        (lambda c: c.pop("tensors"), "no valid 'tensors'"),
    ],
)
def test_damaged_descriptions_are_refused(file: Path, tmp_path: Path, change, message: str) -> None:
    wrong = altered(file, tmp_path / "wrong.eqnet", "config.json", change)
    with pytest.raises(InputError, match=message):
        load(wrong)
