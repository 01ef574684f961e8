"""The frames of a file that `--index` names."""

from __future__ import annotations

from pathlib import Path

import pytest
from ase import Atoms
from ase.io import write

from eqnet.data.build import build
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


def test_a_frame_of_a_store(tmp_path: Path) -> None:
    places = [Atoms("He", [[x, 0, 0]], info={"REF_energy": x}, pbc=True, cell=[9, 9, 9])
              for x in range(3)]  # fmt: skip
    write(tmp_path / "a.xyz", places, format="extxyz")
    build([tmp_path / "a.xyz"], tmp_path / "a.store")
    for index in ("1", "-2"):
        (found,) = read_structures(str(tmp_path / "a.store"), index)
        assert found.positions[0, 0] == 1.0 and found.pbc.all()
    assert len(read_structures(str(tmp_path / "a.store"), "1:")) == 2
    with pytest.raises(InputError, match="there is no frame 3; it has 3"):
        read_structures(str(tmp_path / "a.store"), "3")
