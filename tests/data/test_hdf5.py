"""HDF5 files in the layouts that MACE and mlip write, made here by h5py alone."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from eqnet.data.labels import LabelRow
from eqnet.data.read import read, read_images
from eqnet.errors import InputError

h5py = pytest.importorskip("h5py")

RNG = np.random.default_rng(3)
STRUCTURES = [(RNG.normal(size=(n, 3)), RNG.normal(), RNG.normal(size=(n, 3))) for n in (2, 3) * 12]


def mace_file(path: Path, **changed: Any) -> Path:
    """As `save_configurations_as_HDF5` of MACE writes it, two structures in each batch."""
    with h5py.File(path, "w") as file:
        for k, (positions, energy, forces) in enumerate(STRUCTURES):
            group = file.require_group(f"config_batch_{k // 2}").create_group(f"config_{k % 2}")
            values: Mapping[str, Any] = {
                "atomic_numbers": [8, 1, 1][: len(positions)],
                "positions": positions,
                "cell": np.eye(3) * 9.0,
                "pbc": (True, True, k % 3 > 0),
                "weight": 2.0,
                "config_type": "bulk" if k else "Default",
                "properties/energy": energy if k != 5 else "None",
                "properties/forces": forces,
                "properties/stress": np.diag([1.0, 2.0, 3.0]) if k == 1 else "None",
                "properties/dipole": "None",
                "property_weights/energy": 0.25,
                "property_weights/forces": 1.0,
                "property_weights/stress": "None",
                "property_weights/dipole": 0.0,
            }
            for name, value in ({**values, **changed}).items():
                group[name] = value
    return path


def test_layout_of_mace(tmp_path: Path) -> None:
    data = read(mace_file(tmp_path / "m.h5"))
    assert len(data.frames) == 24
    for k, (frame, (positions, energy, forces)) in enumerate(
        zip(data.frames, STRUCTURES, strict=True)
    ):
        np.testing.assert_array_equal(frame.positions, positions)
        np.testing.assert_array_equal(frame.forces, forces)
        assert frame.energy == (energy if k != 5 else None)
        assert (frame.energy_weight, frame.forces_weight) == (0.5 if k != 5 else 2.0, 2.0)
        assert frame.config_type == ("bulk" if k else "Default")
        np.testing.assert_array_equal(frame.pbc, [True, True, k % 3 > 0])
        np.testing.assert_array_equal(frame.cell, np.eye(3) * 9.0)
        stress = np.diag([1.0, 2.0, 3.0]) if k == 1 else None
        np.testing.assert_array_equal(frame.stress, stress)
    rows = {row.label: (row.key, row.count) for row in data.report.rows}
    assert rows == {
        "energy": ("REF_energy", 23), "forces": ("REF_forces", 24), "stress": ("REF_stress", 1),
    }  # fmt: skip


def test_layout_of_mlip(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.hdf5", "w") as file:
        for k, (positions, energy, forces) in enumerate(STRUCTURES):
            group = file.create_group(f"{k:05d}")
            group["elements"] = [8, 1, 1][: len(positions)]
            group["positions"], group["forces"] = positions, forces
            group.attrs["energy"] = energy
            group["stress"] = np.eye(3)
    data = read(tmp_path / "m.hdf5")
    for frame, (positions, energy, forces) in zip(data.frames, STRUCTURES, strict=True):
        np.testing.assert_array_equal(frame.positions, positions)
        np.testing.assert_array_equal(frame.forces, forces)
        assert frame.energy == energy and not frame.pbc.any()
    assert isinstance(data.report.rows[0], LabelRow) and data.report.rows[0].key == "REF_energy"
    atoms = read_images(tmp_path / "m.hdf5")[1]
    atoms.calc = SinglePointCalculator(atoms, energy=1.0, forces=np.ones((3, 3)), stress=np.ones(6))
    write(tmp_path / "answers.xyz", atoms, format="extxyz")
    (found,) = ase.io.iread(tmp_path / "answers.xyz", ":")
    assert found.get_potential_energy() == 1.0 and found.info["REF_energy"] == STRUCTURES[1][1]
    np.testing.assert_allclose(found.arrays["REF_forces"], STRUCTURES[1][2], atol=1e-7)


def test_what_is_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = mace_file(tmp_path / "m.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cut\.h5: no whole HDF5 file"):
        read(tmp_path / "cut.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["particles/position/value"] = np.zeros((3, 4, 3))
    with pytest.raises(InputError, match="neither the layout of MACE nor that of mlip"):
        read(tmp_path / "other.h5")
    with h5py.File(tmp_path / "m.h5", "a") as file:
        del file["config_batch_3/config_1/positions"]
    with pytest.raises(InputError, match=r"m\.h5, frame 7 cannot be read .*positions"):
        read(tmp_path / "m.h5")
    wrong = mace_file(tmp_path / "wrong.h5", positions=np.full((4, 3), 0.0))
    with pytest.raises(InputError, match=r"wrong\.h5, frame 0 cannot be read"):
        read(wrong)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match=r"needs the package h5py: pip install 'eqnet\[hdf5\]'"):
        read_images(tmp_path / "m.h5")
