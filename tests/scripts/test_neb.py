"""`eqnet neb` finds the path between two structures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.constraints import FixAtoms
from ase.io import read, write
from interruption import interrupt
from morse import MODELS, by_hand, model_of, morse_potential

import eqnet.models
from eqnet.errors import InputError
from eqnet.model_file import save
from eqnet.scripts import run

POTENTIAL = morse_potential(r_max=2.5, steepness=3.0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tetrahedron of four different places, and its mirror image."""
    monkeypatch.setitem(eqnet.models.MODELS, "morse", MODELS["morse"])
    config = model_of(POTENTIAL).config
    path = tmp_path / "model.eqnet"
    save(path, POTENTIAL, model_name="morse", config=config, training={}, examples=[])
    left = Atoms("C3O", [[0.8, 0, 0], [-0.4, 0.7, 0], [-0.4, -0.7, 0], [0, 0, 1.1]])
    left.rattle(0.03, seed=1)
    write(tmp_path / "left.xyz", left, format="extxyz")
    left.positions[:, 2] *= -1
    write(tmp_path / "right.xyz", left, format="extxyz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def images(path: str) -> list[Atoms]:
    atoms = read(path, index=":")
    assert isinstance(atoms, list)
    return atoms


@pytest.mark.parametrize("climb", [[], ["--climb"]])
def test_mirror_images(folder: Path, capsys: pytest.CaptureFixture[str], climb: list[str]) -> None:
    argv = ["model.eqnet", "left.xyz", "right.xyz", "--images", "3", "--relax_ends", *climb]
    assert run("neb", argv) == 0
    out, err = capsys.readouterr()
    assert "left_neb.xyz" in out
    assert err.count("\n") == 1 and "atoms 0, 2 end where others" in err  # an inversion
    words = next(line for line in out.splitlines() if line.startswith("barrier")).split()
    forward, backward = float(words[4]), float(words[7])
    assert forward == pytest.approx(backward, abs=1e-4) and forward > 0.01
    band = images("left_neb.xyz")
    energies = np.array([atoms.get_potential_energy() for atoms in band])
    for atoms, energy in zip(band, energies, strict=True):
        exact = by_hand(
            atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, POTENTIAL, images=0
        )
        assert energy == pytest.approx(exact, abs=1e-5)  # eight digits of positions in the file
    np.testing.assert_allclose(energies, energies[::-1], atol=1e-3)
    assert energies[2] - energies[0] == pytest.approx(forward, abs=1e-3 if climb else 0.05)
    rows = [line.split() for line in out.splitlines() if line.split()[:1] == ["2"]]
    assert float(rows[-1][2]) == pytest.approx(energies[2] - energies[0], abs=1e-4)


def test_an_end_that_is_higher_than_the_band(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    atoms = images("left.xyz")[0]
    atoms.positions[3, 2] += 0.3
    write("up.xyz", atoms, format="extxyz")
    run("neb", ["model.eqnet", "left.xyz", "up.xyz", "--images", "3", "--steps", "60"])
    assert "the highest image is up.xyz: there is no barrier" in capsys.readouterr().err


def test_frames_of_a_trajectory(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left = images("left.xyz")[0]
    left.cell, left.pbc = np.eye(3) * 6.0, True  # nothing is turned
    right = left.copy()
    right.rattle(0.1, seed=0)
    right.positions[[1, 2]] = right.positions[[2, 1]]  # two carbons
    write("both.xyz", [right, left, left])
    argv = ["model.eqnet", "both.xyz", "both.xyz", "--start_index", "1", "--end_index", "0"]
    run("neb", [*argv, "--steps", "1", "--images", "1"])
    out, err = capsys.readouterr()
    assert "warning: atoms 1, 2 end where others of their element begin" in err
    band = images("both_neb.xyz")
    np.testing.assert_allclose(band[0].positions, left.positions, atol=1e-7)
    assert run("neb", [*argv[:-1], "3", "--overwrite"]) == 2
    assert "both.xyz" in capsys.readouterr().err


def test_not_converged_and_ends_that_are_no_minima(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["model.eqnet", "left.xyz", "right.xyz", "--steps", "2", "--output", "band.traj"]
    assert run("neb", argv) == 1
    err = capsys.readouterr().err
    assert "left.xyz is no minimum" in err and "right.xyz is no minimum" in err
    assert "not relaxed to 0.05 eV/A within 2 steps" in err
    assert len(images("band.traj")) == 9


def test_the_end_is_held_as_the_start_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left, right = images("left.xyz")[0], images("right.xyz")[0]
    left.positions[:3, 2] = right.positions[:3, 2] = 0
    left.set_constraint(FixAtoms([0, 1, 2]))
    write("left.traj", left)
    write("right.traj", right)
    argv = ["model.eqnet", "left.traj", "right.traj", "--images", "1", "--relax_ends"]
    assert run("neb", [*argv, "--output", "band.traj"]) == 0
    for atoms in images("band.traj"):
        np.testing.assert_array_equal(atoms.positions[:3], left.positions[:3])
    right.set_constraint(FixAtoms([0]))
    write("right.traj", right)
    assert run("neb", [*argv, "--output", "other.traj"]) == 2
    assert "the constraints of the ends differ" in capsys.readouterr().err


@pytest.mark.parametrize("error", [InputError("out of memory"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", [1, 4])
def test_the_last_good_band_is_kept(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    call: int,
) -> None:
    interrupt(monkeypatch, error, call)
    named = isinstance(error, InputError)
    argv = ["model.eqnet", "left.xyz", "right.xyz", "--images", "3", "--climb"]
    assert run("neb", argv) == (2 if named else 130)
    err = capsys.readouterr().err
    if call == 1:
        assert err == ("eqnet: error: out of memory\n" if named else "")
        assert not Path("left_neb.xyz").exists()
        return
    assert err.endswith("out of memory; left_neb.xyz has the last good band\n" if named else "")
    band = images("left_neb.xyz")
    assert len(band) == 5
    for atoms in band:
        exact = by_hand(
            atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, POTENTIAL, images=0
        )
        assert atoms.get_potential_energy() == pytest.approx(exact, abs=1e-5)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["left.xyz", "left.xyz"], "one structure"),
        (["left.xyz", "right.xyz", "--images", "0"], "--images must be at least 1"),
        (["left.xyz", "right.xyz", "--fmax", "0"], "--fmax must be a positive number"),
        (
            ["left.xyz", "right.xyz", "--output", "band.cif"],
            "band.cif: end the name with .traj or .xyz",
        ),
        (["left.xyz", "right.xyz", "--output", "right.xyz"], "would overwrite an input"),
        (["left.xyz", "right.xyz", "--relax_ends", "--steps", "1"], "left.xyz cannot be relaxed"),
    ],
)
def test_refusals(
    folder: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    before = sorted(path.name for path in folder.iterdir())
    assert run("neb", ["model.eqnet", *argv]) == 2
    err = capsys.readouterr().err
    assert err.startswith("eqnet: error: ") and message in err and err.count("\n") == 1
    assert sorted(path.name for path in folder.iterdir()) == before
