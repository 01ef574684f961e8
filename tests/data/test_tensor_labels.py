"""Tensor labels: symmetries, Voigt's order, keys, refusals."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import write

from eqnet.data.batches import Loader, make_items
from eqnet.data.build import build
from eqnet.data.tensor_labels import ELASTICITY, TENSORS, TensorKind, read_tensors, symmetrised
from eqnet.errors import InputError


def water(**info) -> Atoms:
    atoms = Atoms("OHH", [[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    atoms.info |= info
    return atoms


def kinds(*names: str) -> dict[str, TensorKind]:
    return {name: TENSORS[name] for name in names}


def test_symmetrised_is_the_mean_over_all_allowed_permutations() -> None:
    t = np.random.default_rng(0).normal(size=(2, 3, 3, 3, 3))
    pairs = [p for p in permutations(range(4)) if {*p[:2]} in ({0, 1}, {2, 3})]
    expected = np.mean([t.transpose(0, *(1 + i for i in p)) for p in pairs], axis=0)
    assert len(pairs) == 8
    np.testing.assert_allclose(symmetrised(ELASTICITY, t), expected, atol=1e-15)
    m = t[0, 0, 0]
    np.testing.assert_allclose(symmetrised("ij=-ji", m), (m - m.T) / 2)
    np.testing.assert_allclose(symmetrised("ij", m), m)


def test_read_and_packed(tmp_path: Path) -> None:
    """A label of atoms and one of the structure, by their keys; what is absent weighs nothing."""
    born = np.arange(27.0).reshape(3, 9)
    first = water(REF_polarizability=np.diag([1.0, 2.0, 3.0]).ravel())
    first.set_array("zstar", born)
    write(tmp_path / "w.xyz", [first, water()], format="extxyz")
    wanted = kinds("polarizability", "born_effective_charges")
    frames = read_tensors(tmp_path / "w.xyz", wanted, {"born_effective_charges": "zstar"})
    assert not frames[1].tensors
    items = make_items(frames, (1, 8), 2.0)
    loader = Loader(
        items, 2, reference_energy=lambda s: 0.0, shuffle=False, tensors=wanted, dtype=np.float64
    )
    ((graph, targets),) = loader.batches(0)
    at = int(np.argmax(targets.tensor_weights["polarizability"]))
    np.testing.assert_array_equal(targets.tensors["polarizability"][at], np.diag([1.0, 2.0, 3.0]))
    assert targets.tensor_weights["polarizability"].sum() == 1
    weights = targets.tensor_weights["born_effective_charges"]
    assert weights.sum() == 3 and (graph.structure[weights > 0] == at).all()
    found = targets.tensors["born_effective_charges"][weights > 0]
    np.testing.assert_array_equal(found, born.reshape(3, 3, 3))


def test_voigt_matrix_is_an_elasticity_tensor(tmp_path: Path) -> None:
    """Of an isotropic material: lambda delta delta + mu (delta delta + delta delta)."""
    lame, shear = 1.3, 0.7
    voigt = np.diag([2 * shear] * 3 + [shear] * 3)
    voigt[:3, :3] += lame
    atoms = water(elasticity=voigt)
    atoms.cell, atoms.pbc = np.eye(3) * 5, True
    write(tmp_path / "w.xyz", atoms, format="extxyz")
    (frame,) = read_tensors(tmp_path / "w.xyz", kinds("elasticity"))
    d = np.eye(3)
    expected = lame * np.einsum("ij,kl->ijkl", d, d)
    expected += shear * (np.einsum("ik,jl->ijkl", d, d) + np.einsum("il,jk->ijkl", d, d))
    np.testing.assert_allclose(frame.tensors["elasticity"], expected)


@pytest.mark.parametrize(
    ("target", "info", "message"),
    [
        ("dipole", {}, "no structure has REF_dipole or dipole"),
        ("dipole", {"REF_dipole": [1.0, 2.0]}, r"has shape \(2,\), \(3,\) is wanted"),
        ("dipole", {"REF_dipole": [0.0, 1.0, 0.0], "charge": 1}, "depends on the origin"),
        ("charges", {"charges": np.arange(3.0), "charge": -1}, "are made to add up to zero"),
        ("polarizability", {"polarizability": np.arange(9.0)}, "does not have the symmetry"),
        ("elasticity", {"elasticity": np.eye(6)}, "not periodic"),
    ],
)
def test_refused(tmp_path: Path, target: str, info: dict, message: str) -> None:
    write(tmp_path / "w.xyz", water(**info), format="extxyz")
    with pytest.raises(InputError, match=message):
        read_tensors(tmp_path / "w.xyz", kinds(target))


def test_a_periodic_dipole_is_refused(tmp_path: Path) -> None:
    atoms = water(REF_dipole=[0.0, 0.0, 1.0])
    atoms.cell, atoms.pbc = np.eye(3) * 9, True
    write(tmp_path / "w.xyz", atoms, format="extxyz")
    with pytest.raises(InputError, match="choice of the cell"):
        read_tensors(tmp_path / "w.xyz", kinds("dipole"))


def test_a_store_keeps_no_tensors(tmp_path: Path) -> None:
    """Refused where they are needed; its structures are read where they are not."""
    write(tmp_path / "a.xyz", water(REF_energy=1.0, REF_dipole=np.ones(3)), format="extxyz")
    build([tmp_path / "a.xyz"], tmp_path / "a.store")
    with pytest.raises(InputError, match=r"a\.store: a store keeps no tensors; give the files"):
        read_tensors(tmp_path / "a.store", kinds("dipole"))
    (frame,) = read_tensors(tmp_path / "a.store", kinds("dipole"), required=False)
    assert len(frame) == 3 and not frame.tensors


def test_kinds_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="zero_sum is of tensors per atom"):
        TensorKind("ij", "sum", zero_sum=True)
    with pytest.raises(ValueError, match="positive is of the symmetry"):
        TensorKind("ij=ji", "mean", positive="exp")


def test_weights_leave_labels_out_or_are_refused(tmp_path: Path) -> None:
    path, told = tmp_path / "w.xyz", []
    images = [water(dipole=[1.0, 0.0, 0.0], **more) for more in ({}, {"config_dipole_weight": 0})]
    write(path, images, format="extxyz")
    frames = read_tensors(path, kinds("dipole"), tell=told.append)
    assert ["dipole" in frame.tensors for frame in frames] == [True, False]
    assert told == [f"{path}: dipole from dipole, of 1 of 2 structures"]
    write(path, [images[0], water(dipole=[1.0, 0.0, 0.0], config_weight=0.5)], format="extxyz")
    with pytest.raises(InputError, match="frame 1: config_weight 0.5 has no effect, tensors count"):
        read_tensors(path, kinds("dipole"))
    assert len(read_tensors(path, kinds("dipole"), required=False)) == 2


def test_two_keys_of_one_tensor_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.xyz"
    write(path, [water(dipole=[1.0, 0, 0]), water(REF_dipole=[2.0, 0, 0])], format="extxyz")
    with pytest.raises(
        InputError, match="frame 1: dipole is called REF_dipole here, and dipole in e"
    ):
        read_tensors(path, kinds("dipole"))


def test_forces_are_read_as_direct_ones(tmp_path: Path) -> None:
    path, forces = tmp_path / "w.xyz", np.arange(9.0).reshape(3, 3)
    atoms = water()
    atoms.set_constraint(FixAtoms([0]))  # ASE would zero those of this atom
    atoms.calc = SinglePointCalculator(atoms, forces=forces)
    write(path, atoms, format="extxyz")
    (frame,) = read_tensors(path, kinds("direct_forces"))
    np.testing.assert_array_equal(frame.tensors["direct_forces"], forces)
