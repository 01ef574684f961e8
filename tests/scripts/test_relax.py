"""`eqnet relax` finds minima of atoms and cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import read, write
from interruption import interrupt
from morse import MODELS, by_hand, model_of, morse_potential

import eqnet.models
from eqnet.answers import Answers
from eqnet.errors import InputError
from eqnet.model_file import save
from eqnet.scripts import run

POTENTIAL = morse_potential(r_max=2.5, steepness=3.0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(eqnet.models.MODELS, "morse", MODELS["morse"])
    config = model_of(POTENTIAL).config
    path = tmp_path / "model.eqnet"
    save(path, POTENTIAL, model_name="morse", config=config, training={}, examples=[])
    water = molecule("H2O")
    water.rattle(0.05, seed=1)
    write(tmp_path / "water.xyz", water, format="extxyz")
    crystal = bulk("C", "fcc", 2.2)
    crystal.rattle(0.02, seed=1)
    write(tmp_path / "crystal.xyz", crystal * (1, 1, 2), format="extxyz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def frame(path: str, index: int = -1) -> Atoms:
    atoms = read(path, index=index)
    assert isinstance(atoms, Atoms)
    return atoms


def frames(path: str) -> list[Atoms]:
    atoms = read(path, index=":")
    assert isinstance(atoms, list)
    return atoms


def energy(atoms: Atoms) -> float:
    return by_hand(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, POTENTIAL, images=4)


@pytest.mark.parametrize("optimizer", ["bfgs", "lbfgs", "fire"])
def test_molecule(folder: Path, capsys: pytest.CaptureFixture[str], optimizer: str) -> None:
    assert run("relax", ["model.eqnet", "water.xyz", "--optimizer", optimizer]) == 0
    relaxed, way = frame("water_relaxed.xyz"), frames("water_relaxed.traj")
    assert np.linalg.norm(relaxed.get_forces(), axis=1).max() <= 0.01
    np.testing.assert_allclose(way[-1].positions, relaxed.positions, atol=1e-7)
    assert way[0].get_potential_energy() > way[-1].get_potential_energy()
    for axis in range(3):  # a minimum of the brute-force energy too
        for sign in (1, -1):
            moved = relaxed.copy()
            moved.positions[0, axis] += sign * 0.05
            assert energy(moved) > energy(relaxed)
    out = capsys.readouterr().out
    assert "largest force (eV/A)" in out and "water_relaxed.xyz" in out


def test_cell(folder: Path) -> None:
    argv = ["model.eqnet", "crystal.xyz", "--cell", "--fmax", "0.001", "--output", "end.xyz"]
    assert run("relax", argv) == 0
    relaxed = frame("end.xyz")
    assert np.abs(relaxed.get_stress()).max() < 1e-3
    for factor in (0.995, 1.005):
        strained = relaxed.copy()
        strained.set_cell(relaxed.cell.array * factor, scale_atoms=True)
        assert energy(strained) > energy(relaxed)


def test_an_answer_that_is_not_finite_keeps_the_last_good_step(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calculate, calls = Answers._run, []

    def overflow(self, graph, sizes):
        calls.append(sizes)
        found = calculate(self, graph, sizes)
        if len(calls) > 3:
            found[0][0].forces[1, 2] = np.nan
        return found

    monkeypatch.setattr(Answers, "_run", overflow)
    assert run("relax", ["model.eqnet", "water.xyz", "--fmax", "1e-6"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("eqnet: error: ") and err.count("\n") == 1
    assert "the model's answer for atom 1 (H) is not finite" in err
    assert err.endswith("; water_relaxed.traj ends with the last good step\n")
    way = frames("water_relaxed.traj")
    assert len(way) == len(calls) - 1 and np.isfinite(way[-1].get_forces()).all()
    assert not Path("water_relaxed.xyz").exists()


def test_not_converged(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("relax", ["model.eqnet", "water.xyz", "--steps", "1", "--fmax", "1e-9"]) == 1
    assert "not relaxed to 1e-09 eV/A within 1 steps" in capsys.readouterr().err
    assert Path("water_relaxed.xyz").exists()


def test_side_by_side(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = [molecule(name) for name in ("CH3CH2OH", "H2O", "CH4", "CO2")]
    for seed, atoms in enumerate(start):
        atoms.rattle(0.05, seed=seed)
    write("all.xyz", start, format="extxyz")
    argv = ["model.eqnet", "all.xyz", "--fmax", "0.005"]
    assert run("relax", [*argv, "--index", "1:"]) == 0
    relaxed = frames("all_relaxed.xyz")
    assert [len(atoms) for atoms in relaxed] == [3, 5, 3]
    for atoms, index in zip(relaxed, ("1", "2", "-1"), strict=True):
        assert run("relax", [*argv, "--index", index, "--output", "one.xyz", "--overwrite"]) == 0
        alone = frame("one.xyz")
        np.testing.assert_allclose(atoms.positions, alone.positions, atol=2e-8)  # digits of a file
        np.testing.assert_allclose(atoms.get_forces(), alone.get_forces(), atol=2e-7)
        assert atoms.get_potential_energy() == pytest.approx(alone.get_potential_energy(), abs=1e-8)
        assert atoms.info["converged"]
    assert not Path("all_relaxed.traj").exists()
    out = capsys.readouterr().out
    assert ["converged", "3"] in [line.split() for line in out.splitlines()]


def test_those_that_did_not_converge_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    close = frame("water.xyz")
    assert run("relax", ["model.eqnet", "water.xyz", "--fmax", "1e-6"]) == 0
    write("two.traj", [close, frame("water_relaxed.xyz"), close])
    assert run("relax", ["model.eqnet", "two.traj", "--index", ":", "--steps", "2"]) == 1
    err = capsys.readouterr().err
    assert "2 of 3 structures are not relaxed to 0.01 eV/A within 2 steps: 0, 2 of " in err
    written = frames("two_relaxed.xyz")
    assert [atoms.info["converged"] for atoms in written] == [False, True, False]
    assert all(np.isfinite(atoms.get_forces()).all() for atoms in written)


def written_are_true() -> list[Atoms]:
    """Whether energies in the file are those of the positions beside them; the structures."""
    written = frames("three_relaxed.xyz")
    for atoms in written:
        assert atoms.get_potential_energy() == pytest.approx(energy(atoms), abs=1e-5)
        assert np.isfinite(atoms.get_forces()).all()
    return written


@pytest.fixture
def three(folder: Path) -> list[Atoms]:
    """Three structures in a file, the second relaxed."""
    assert run("relax", ["model.eqnet", "water.xyz", "--fmax", "1e-6"]) == 0
    start = [frame("water.xyz"), frame("water_relaxed.xyz"), frame("water.xyz")]
    start[2].rattle(0.02, seed=2)
    write("three.traj", start)
    return start


def test_interrupted(three: list[Atoms], monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, KeyboardInterrupt(), call=3)
    assert run("relax", ["model.eqnet", "three.traj", "--index", ":"]) == 130
    written = written_are_true()
    assert [atoms.info["converged"] for atoms in written] == [False, True, False]
    assert all(energy(written[i]) < energy(three[i]) for i in (0, 2))


def test_an_error_of_all_ends_the_command(
    three: list[Atoms], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, InputError("out of memory"), call=3)
    argv = ["model.eqnet", "three.traj", "--index", ":"]
    assert run("relax", argv) == 2
    assert capsys.readouterr().err == (
        "eqnet: error: out of memory; three_relaxed.xyz has what was relaxed so far\n"
    )
    assert [atoms.info["converged"] for atoms in written_are_true()] == [False, True, False]
    Path("three_relaxed.xyz").unlink()
    interrupt(monkeypatch, InputError("out of memory"), call=1)
    assert run("relax", argv) == 2
    assert capsys.readouterr().err == "eqnet: error: out of memory\n"
    assert not Path("three_relaxed.xyz").exists()


def test_errors_name_frames_of_the_file(
    three: list[Atoms], capsys: pytest.CaptureFixture[str]
) -> None:
    three[1].positions[2] = three[1].positions[1]
    write("three.traj", three)
    argv = ["model.eqnet", "three.traj", "--overwrite"]
    for index, place in (("1:", 0), ("-1:-3:-1", 1)):
        assert run("relax", [*argv, "--index", index]) == 1
        err = capsys.readouterr().err
        assert "warning: three.traj, frame 1: atoms 1 and 2 coincide" in err
        assert f"eV/A within 1000 steps: {place} of three_relaxed.xyz" in err
    three[2].symbols[0] = "He"
    write("three.traj", three)
    assert run("relax", [*argv, "--index", "2:"]) == 2
    assert "three.traj, frame 2: element He" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["water.xyz", "--cell"], "--cell needs three periodic axes"),
        (["water.xyz", "--fmax", "0"], "--fmax must be a positive number"),
        (["water.xyz", "--optimizer", "newton"], "invalid choice"),
        (["water.xyz", "--output", "water.qqq"], "ASE cannot write"),
        (["water.xyz", "--output", "water.traj"], "same name"),
        (["water.xyz", "--steps", "0"], "--steps must be at least 1"),
        (["water.xyz", "--index", "1"], "there is no frame 1"),
        (["water.xyz", "--index", "all"], "--index must be one frame"),
        (["water.xyz", "--index", ":", "--cell"], "(frame 0): relax the atoms alone"),
        (["water.xyz", "--index", ":", "--output", "POSCAR"], "holds one structure"),
    ],
)
def test_refusals(
    folder: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    before = sorted(path.name for path in folder.iterdir())
    assert run("relax", ["model.eqnet", *argv]) == 2
    err = capsys.readouterr().err
    assert err.startswith("eqnet: error: ") and message in err and err.count("\n") == 1
    assert sorted(path.name for path in folder.iterdir()) == before
