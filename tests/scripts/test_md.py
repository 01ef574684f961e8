"""`eqnet md` writes a trajectory and a log, and refuses before it works."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import small_run
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.constraints import FixAtoms
from ase.io import read, write
from flax import nnx
from morse import MODELS, model_of, morse_potential

import eqnet.models
from eqnet import EqnetCalculator
from eqnet.committee import Member
from eqnet.data.frame import from_atoms, to_atoms
from eqnet.errors import InputError, OutOfDomain
from eqnet.model_file import save
from eqnet.models import MACE, MACEConfig
from eqnet.potential import Potential
from eqnet.scripts import md_watch, run
from eqnet.scripts.md import main
from eqnet.simulate import Simulation
from eqnet.uncertainty import calibrate


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and an ethanol, and the process in it."""
    monkeypatch.setitem(eqnet.models.MODELS, "morse", MODELS["morse"])
    potential = morse_potential()
    config = model_of(potential).config
    path = tmp_path / "model.eqnet"
    save(path, potential, model_name="morse", config=config, training={}, examples=[])
    write(tmp_path / "ethanol.xyz", molecule("CH3CH2OH"), format="extxyz")
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


def rows(path: str) -> list[dict[str, float]]:
    with open(path, newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def test_nve(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["model.eqnet", "ethanol.xyz", "--steps", "50", "--traj-interval", "20"]
    assert main([*argv, "--log_interval=25", "--dtype", "float64"]) == 0
    images, log = frames("ethanol_md.traj"), rows("ethanol_md.csv")
    assert [row["step"] for row in log] == [0, 25, 50]
    assert log[1]["time_fs"] == 12.5
    assert len(images) == 4  # 0, 20, 40 and the end
    assert images[0].get_potential_energy() == pytest.approx(log[0]["potential_eV"], abs=1e-8)
    assert images[-1].get_potential_energy() == pytest.approx(log[-1]["potential_eV"], abs=1e-8)
    assert images[-1].get_kinetic_energy() == pytest.approx(log[-1]["kinetic_eV"], abs=1e-8)
    assert images[-1].get_forces().shape == (9, 3)
    assert np.ptp([row["total_eV"] for row in log]) < 1e-2
    out = capsys.readouterr().out
    assert "drift" in out and "meV/atom/ps" in out and "ethanol_md.csv" in out
    assert "not conserved" not in out


def test_energy_that_is_not_conserved_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["model.eqnet", "ethanol.xyz", "--steps", "40", "--time_step", "20"]
    assert main(argv) == 0
    assert "not conserved: take a shorter --time_step" in capsys.readouterr().out


def test_langevin_to_xyz_and_on_with_its_velocities(folder: Path) -> None:
    argv = ["model.eqnet", "ethanol.xyz", "--ensemble", "langevin", "--time_ps", "0.02"]
    assert main([*argv, "--output", "hot.xyz", "--temperature", "500", "--seed", "3"]) == 0
    images, log = frames("hot.xyz"), rows("hot.csv")
    assert len(images) == 3 and len(log) == 5
    assert "conserved_eV" in log[0] and images[-1].has("momenta")
    argv = ["model.eqnet", "hot.xyz", "--velocities", "file", "--steps", "2", "--output", "on.traj"]
    assert main(argv) == 0
    first = frame("on.traj", 0)
    np.testing.assert_allclose(first.get_momenta(), images[-1].get_momenta(), atol=1e-6)


def test_pressure_changes_the_cell(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("crystal.xyz", bulk("C", "fcc", 2.4, cubic=True), format="extxyz")
    argv = ["model.eqnet", "crystal.xyz", "--ensemble", "npt", "--barostat_time", "500"]
    assert main([*argv, "--cell", "anisotropic", "--pressure", "20", "--steps", "10"]) == 0
    images, log = frames("crystal_md.traj"), rows("crystal_md.csv")
    assert images[0].get_volume() == pytest.approx(log[0]["volume_A3"], abs=1e-6)
    assert images[-1].get_volume() == pytest.approx(log[-1]["volume_A3"], abs=1e-6)
    assert abs(log[-1]["volume_A3"] / 2.4**3 - 1) > 1e-4
    inner = -np.trace(images[-1].get_stress(voigt=False, include_ideal_gas=True)) / 3 / units.GPa
    assert inner == pytest.approx(log[-1]["pressure_GPa"], abs=1e-4)
    assert "conserved_eV" in log[0] and "GPa" in capsys.readouterr().out


def test_fixed_atoms_and_chosen_frame(folder: Path) -> None:
    images = [molecule("H2O"), molecule("CH3CH2OH")]
    images[0].set_constraint(FixAtoms([0]))
    write("two.traj", images)
    assert main(["model.eqnet", "two.traj", "--index", "0", "--steps", "20"]) == 0
    first, last = frame("two_md.traj", 0), frame("two_md.traj", -1)
    assert str(last.symbols) == "OH2"
    assert (first.positions[0] == last.positions[0]).all()
    assert (first.positions[1] != last.positions[1]).any()


def test_many_structures_move_as_they_do_alone(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two copies of two molecules are the four runs of one molecule with seeds 5, 6, 7, 8."""
    write("two.xyz", [molecule("H2O"), molecule("CH3CH2OH")], format="extxyz")
    argv = ["model.eqnet", "two.xyz", "--ensemble", "bussi", "--steps", "20", "--dtype", "float64"]
    assert main([*argv, "--index", ":", "--replicas", "2", "--seed", "5"]) == 0
    out = capsys.readouterr().out
    assert "4 structures, 24 atoms" in out and "two_md_0.traj to two_md_3.traj" in out
    log = rows("two_md.csv")
    assert [row["structure"] for row in log] == [0, 1, 2, 3] * 3
    for number in range(4):
        alone = ["--index", str(number // 2), "--seed", str(5 + number), "--output", "alone.traj"]
        assert main([*argv, *alone, "--overwrite"]) == 0
        images, expected = frames(f"two_md_{number}.traj"), frames("alone.traj")
        assert len(images) == len(expected) == 2
        np.testing.assert_allclose(images[-1].positions, expected[-1].positions, atol=1e-9)
        assert abs(images[-1].positions - images[0].positions).max() > 0.01
        own = [row for row in log if row["structure"] == number]
        for row, single in zip(own, rows("alone.csv"), strict=True):
            assert {name: row[name] for name in single} == pytest.approx(single, abs=1e-7)


def test_trajectories_of_other_structures_are_not_left_among_new_ones(folder: Path) -> None:
    Path("ethanol_md_12.traj").touch()
    with pytest.raises(InputError, match="ethanol_md_12.traj is of a run with other structures"):
        main(["model.eqnet", "ethanol.xyz", "--replicas", "3", "--steps", "1", "--overwrite"])


@pytest.mark.parametrize(
    ("ensemble", "freedom"), [("nve", 21), ("langevin", 27), ("bussi", 21), ("nose_hoover", 21)]
)
def test_starts_at_the_temperature(folder: Path, ensemble: str, freedom: int) -> None:
    argv = ["model.eqnet", "ethanol.xyz", "--steps", "1", "--temperature", "1000"]
    assert main([*argv, "--ensemble", ensemble]) == 0
    row = rows("ethanol_md.csv")[0]
    assert row["temperature_K"] == pytest.approx(1000)
    assert row["kinetic_eV"] == pytest.approx(0.5 * freedom * units.kB * 1000, abs=1e-8)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["none.eqnet", "ethanol.xyz"], "none.eqnet: no such model file"),
        (["model.eqnet", "none.xyz"], "none.xyz: there is no such file"),
        (["model.eqnet", "ethanol.xyz", "--index", "3"], "no frame 3; it has 1"),
        (["model.eqnet", "ethanol.xyz", "--steps", "5", "--time_ps", "1"], "twice"),
        (["model.eqnet", "ethanol.xyz", "--steps", "0"], "0 steps"),
        (["model.eqnet", "ethanol.xyz", "--friction", "0.1"], "friction has no effect with"),
        (["model.eqnet", "ethanol.xyz", "--ensemble", "bussi", "--pressure", "1"], "pressure has"),
        (["model.eqnet", "ethanol.xyz", "--ensemble", "npt"], "periodic in three directions"),
        (["model.eqnet", "ethanol.xyz", "--temperature", "-1"], "--temperature"),
        (["model.eqnet", "ethanol.xyz", "--time_step", "nan"], "--time_step"),
        (["model.eqnet", "ethanol.xyz", "--traj_interval", "0"], "--traj_interval"),
        (["model.eqnet", "ethanol.xyz", "--replicas", "0"], "--replicas must be at least 1"),
        (
            ["model.eqnet", "ethanol.xyz", "--replicas", "2", "--velocities", "file"],
            "--replicas would be equal with --ensemble nve --velocities file",
        ),
        (["model.eqnet", "ethanol.xyz", "--index", "5:"], "takes none of its 1 frames"),
        (["model.eqnet", "ethanol.xyz", "--output", "a.pdb"], "end the name with .traj or .xyz"),
        (["model.eqnet", "ethanol.xyz", "--output", "ethanol.xyz"], "overwrite an input"),
        (["model.eqnet", "ethanol.xyz", "--output", "no/a.xyz"], "folder no does not exist"),
        (["model.eqnet", "ethanol.xyz", "--velocities", "file"], "has no velocities"),
        (
            ["model.eqnet", "ethanol.xyz", "--velocities", "file", "--temperature", "300"],
            "--temperature has no effect with",
        ),
        (
            ["model.eqnet", "ethanol.xyz", "--velocities", "file", "--seed", "0"],
            "--seed has no effect with",
        ),
        (["model.eqnet", "ethanol.xyz", "--tempratur", "1"], "did you mean --temperature"),
        (["model.eqnet", "ethanol.xyz", "--device", "abacus"], "abacus"),
        (["model.eqnet", "neon.xyz"], "element Ne"),
    ],
)
def test_refusals(
    folder: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    write("neon.xyz", Atoms("Ne"), format="extxyz")
    before = sorted(path.name for path in folder.iterdir())
    assert run("md", argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("eqnet: error: ") and message in captured.err
    assert captured.err.count("\n") == 1
    assert sorted(path.name for path in folder.iterdir()) == before


def test_files_are_not_overwritten_by_chance(folder: Path) -> None:
    argv = ["model.eqnet", "ethanol.xyz", "--steps", "2"]
    assert run("md", argv) == 0
    before = Path("ethanol_md.traj").read_bytes()
    assert run("md", argv) == 2
    assert Path("ethanol_md.traj").read_bytes() == before
    assert run("md", [*argv, "--overwrite", "--seed", "1"]) == 0
    assert Path("ethanol_md.traj").read_bytes() != before


def test_unstable_run_keeps_the_last_good_frame(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["model.eqnet", "ethanol.xyz", "--ensemble", "langevin", "--friction", "0.1"]
    assert run("md", [*argv, "--temperature", "60000", "--steps", "5000"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("eqnet: error: stopped at step ") and "last good step" in err
    last = frame("ethanol_md.traj", -1)
    assert np.isfinite(last.positions).all() and np.isfinite(last.get_forces()).all()


@pytest.mark.parametrize("command", ["md", "relax", "info"])
def test_help_needs_no_jax(command: str) -> None:
    code = (
        f"import sys; from eqnet.scripts import run\n"
        f"try: run({command!r}, ['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'jax' not in sys.modules and 'ase' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: eqnet" in done.stdout


def test_atoms_that_get_far_from_the_training_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The novelty that is shown is that of a frame by the calculator, beyond the bound it warns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(md_watch, "FIRST", -np.inf)
    monkeypatch.setattr(md_watch, "SHARE", np.inf)
    known = small_run.frames(20)
    config = MACEConfig(
        (1, 8), r_max=3.0, num_channels=4, max_L=0, max_ell=1, correlation=2, num_interactions=1
    )
    potential = Potential(
        MACE(config, rngs=nnx.Rngs(0)), elements=(1, 8), cutoff=3.0,
        atomic_energies=[0.0, 0.0], scale=[0.1, 0.1], shift=[0.0, 0.0],
    )  # fmt: skip
    sure = calibrate(potential, known[:12], known[12:])
    save(
        "small.eqnet", potential, model_name="mace", config=config, training={}, examples=[],
        uncertainty=sure,
    )  # fmt: skip
    water = to_atoms(known[0])
    water.positions *= 1.5
    write("water.xyz", water)
    words = ["small.eqnet", "water.xyz", "--steps", "60", "--traj_interval", "1"]
    assert main([*words, "--temperature", "3000"]) == 0
    out = capsys.readouterr().out
    (shown,) = re.findall(r"up to ([\d.]+) where it was looked at", out)
    notes = re.findall(r"at step (\d+) atom (\d) \((\w)\) is ([\d.]+) times as far", out)
    calculator = EqnetCalculator("small.eqnet")
    novelties = []
    for image in frames("water_md.traj"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OutOfDomain)
            novelties.append(calculator.get_property("novelty", image))
    assert any(float(shown) == pytest.approx(n.max(), abs=0.006) for n in novelties)
    assert notes and float(shown) > 2
    for step, atom, element, value in notes:
        assert water.get_chemical_symbols()[int(atom)] == element
        assert novelties[int(step)][int(atom)] == pytest.approx(float(value), abs=0.06)


def test_an_atom_that_stays_far_is_told_once() -> None:
    told: list[str] = []
    atoms = molecule("H2O")
    simulation = Simulation(morse_potential(), [atoms, atoms], dtype="float64")
    watch = md_watch.Watch(Member(morse_potential()), simulation, told.append)
    for step, novelty in enumerate([3.0, 4.0, 1.0, 2.5]):
        watch.judge(step, 1, from_atoms(atoms), np.array([0.5, novelty, 0.1]))
    assert len(told) == 2 and watch.largest == 4.0
    assert "at step 0 atom 1 (H) of structure 1 is 3.0 times" in told[0] and "step 3" in told[1]
