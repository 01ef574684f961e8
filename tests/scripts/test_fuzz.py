"""What the fuzzer damages is valid before, so that damages reach all of a reader."""

from __future__ import annotations

from pathlib import Path

import pytest

from eqnet.data.read import read
from eqnet.scripts.fuzz import XYZ, main, valid_file


@pytest.mark.parametrize("text", XYZ)
def test_structures_are_read_undamaged(tmp_path: Path, text: str) -> None:
    path = tmp_path / "frames.xyz"
    path.write_text(text * 2)
    frames = read(path).frames
    assert len(frames) == 2  # and the isolated atom
    assert all(frame.energy is not None and frame.forces is not None for frame in frames)


@pytest.mark.parametrize("kind", ["traj", "db"])
def test_files_of_ase_are_read_undamaged(tmp_path: Path, kind: str) -> None:
    frames = read(valid_file(tmp_path / f"valid.{kind}")).frames
    assert [frame.energy for frame in frames] == [-1.5]


def test_a_few_damaged_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reader", "--minutes", "0.02", "--seed", "7"]) == 0
    assert "'refused'" in capsys.readouterr().out
