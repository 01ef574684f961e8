"""The frames of a file that `--index` names."""

from __future__ import annotations

from pathlib import Path

import pytest
from ase import Atoms
from ase.io import write

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
