"""The frames of a file that `--index` names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import write

from eqnet.data import read
from eqnet.data.build import build
from eqnet.data.frame import to_atoms as frame_to_atoms
from eqnet.errors import InputError
from eqnet.scripts.structures import read_structures


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "five.xyz"
    write(path, [Atoms("He", [[x, 0, 0]]) for x in range(5)], format="extxyz")
    return str(path)


@pytest.mark.parametrize(
    ("index", "frames"),
    [
        ("0", [0]),
        ("-1", [4]),
        (":", [0, 1, 2, 3, 4]),
        ("1:3", [1, 2]),
        ("-2:", [3, 4]),
        ("::2", [0, 2, 4]),
        ("::-1", [4, 3, 2, 1, 0]),
        ("3:99", [3, 4]),
    ],
)
def test_frames(file: str, index: str, frames: list[int]) -> None:
    assert [atoms.positions[0, 0] for atoms in read_structures(file, index)] == frames


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("5", "there is no frame 5; it has 5"),
        ("5:", "--index 5: takes none of its 5 frames"),
        ("all", "one frame, such as 0 or -1, or a slice"),
        ("", "one frame, such as 0 or -1, or a slice"),
        ("::0", "one frame, such as 0 or -1, or a slice"),
        ("1:2:3:4", "one frame, such as 0 or -1, or a slice"),
    ],
)
def test_refusals(file: str, index: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_structures(file, index)


def test_labels_of_other_places_are_left_behind(tmp_path: Path) -> None:
    """REF_*, answers, well-known names and ASE's own; momenta, tags, constraints and info stay."""
    atoms = Atoms("He2", [[0, 0, 0], [2, 0, 0]], tags=[1, 2], momenta=np.ones((2, 3)))
    atoms.set_constraint(FixAtoms([1]))
    atoms.info |= {
        "REF_energy": 1.0,
        "REF_dipole": np.ones(3),
        "dft_energy": 1.0,
        "dft_virial": np.ones(9),
    }
    atoms.info |= {"eqnet_energy": 1.0, "charge": 1, "config_type": "bulk"}
    for name in ("REF_forces", "dft_forces", "eqnet_forces"):
        atoms.set_array(name, np.ones((2, 3)))
    atoms.calc = SinglePointCalculator(atoms, energy=1.0, forces=np.ones((2, 3)))
    write(tmp_path / "a.xyz", [atoms, atoms], format="extxyz")
    atoms.info |= {"data": {"dft_energy": 1.0, "note": "kept"}}  # as rows of a database have it
    write(tmp_path / "a.traj", [atoms, atoms])
    for name, data in (("a.xyz", {}), ("a.traj", {"data": {"note": "kept"}})):
        (found,) = read_structures(str(tmp_path / name), "1:")
        assert found.calc is None
        assert set(found.arrays) == {"numbers", "positions", "tags", "momenta"}
        np.testing.assert_array_equal(found.constraints[0].index, [1])
        assert found.info == {"charge": 1, "config_type": "bulk"} | data


def test_a_frame_of_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [Atoms("He", [[x, 0, 0]], info={"REF_energy": x}, pbc=True, cell=[9, 9, 9])
              for x in range(3)]  # fmt: skip
    write(tmp_path / "a.xyz", places, format="extxyz")
    build([tmp_path / "a.xyz"], tmp_path / "a.store")
    for index in ("1", "-2"):
        (found,) = read_structures(str(tmp_path / "a.store"), index)
        assert found.positions[0, 0] == 1.0 and found.pbc.all() and not found.info
    made: list[int] = []
    monkeypatch.setattr(
        read, "to_atoms", lambda frame: made.append(frame.index) or frame_to_atoms(frame)
    )
    found = read_structures(str(tmp_path / "a.store"), "1:")
    assert [atoms.positions[0, 0] for atoms in found] == [1.0, 2.0] and made == [1, 2]
    with pytest.raises(InputError, match="--index 3: takes none of its 3 frames"):
        read_structures(str(tmp_path / "a.store"), "3:")
    with pytest.raises(InputError, match="there is no frame 3; it has 3"):
        read_structures(str(tmp_path / "a.store"), "3")
