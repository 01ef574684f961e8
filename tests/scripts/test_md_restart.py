"""`eqnet md --restart`: files as if the run had never stopped, byte by byte."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from ase.build import bulk, molecule
from ase.io import write
from morse import MODELS, model_of, morse_potential

import eqnet.models
from eqnet.data.build import build
from eqnet.errors import InputError
from eqnet.model_file import save
from eqnet.scripts import run
from eqnet.scripts.md import main
from eqnet.scripts.md_restart import RestartFile

ARGV = ["model.eqnet", "crystal.xyz", "--temperature", "900", "--skin", "0.1", "--log_interval=7"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and a crystal, and the process in it."""
    monkeypatch.setitem(eqnet.models.MODELS, "morse", MODELS["morse"])
    potential = morse_potential(r_max=2.5, steepness=3.0)
    config = model_of(potential).config
    path = tmp_path / "model.eqnet"
    save(path, potential, model_name="morse", config=config, training={}, examples=[])
    atoms = bulk("C", "fcc", 1.86, cubic=True)
    atoms.rattle(0.02, seed=1)
    write(tmp_path / "crystal.xyz", atoms, format="extxyz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def same(one: str, other: str) -> bool:
    return all(
        Path(one).with_suffix(suffix).read_bytes() == Path(other).with_suffix(suffix).read_bytes()
        for suffix in (Path(one).suffix, ".csv")
    )


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".traj", ["--ensemble", "langevin", "--friction", "0.05"]),
        (".xyz", ["--ensemble", "npt", "--cell", "anisotropic", "--barostat_time", "100"]),
    ],
)
def test_goes_on_as_if_it_had_never_stopped(folder: Path, suffix: str, options: list[str]) -> None:
    argv = [*ARGV, *options, "--traj_interval", "3"]
    assert main([*argv, "--steps", "200", "--output", f"whole{suffix}"]) == 0
    parts = [*argv, "--output", f"parts{suffix}"]
    assert main([*parts, "--steps", "100"]) == 0
    early = Path("parts.restart").read_bytes()
    assert main([*parts, "--steps", "170", "--restart"]) == 0
    assert main([*parts, "--steps", "200", "--restart"]) == 0
    assert same(f"whole{suffix}", f"parts{suffix}")
    # killed at the end, with the file of step 100 left: 34 frames, and a table that has moved
    Path("parts.restart").write_bytes(early)
    assert main([*parts, "--steps", "200", "--restart"]) == 0
    assert same(f"whole{suffix}", f"parts{suffix}")


def test_from_a_store(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run goes on from a store of the same structures and refuses another one."""
    crystal = bulk("C", "fcc", 1.86, cubic=True)
    for name, scale in (("one.xyz", 1.0), ("other.xyz", 1.01)):
        crystal.set_cell(scale * crystal.cell.array, scale_atoms=True)
        crystal.info["REF_energy"] = 0.0
        write(name, crystal, format="extxyz")
    build(["one.xyz"], "a.store")
    shutil.copytree("a.store", "copy.store")
    build(["other.xyz"], "b.store")
    tail = [*ARGV[2:], "--output", "o.xyz"]
    assert run("md", ["model.eqnet", "a.store", *tail, "--steps", "4"]) == 0
    assert run("md", ["model.eqnet", "copy.store", *tail, "--steps", "8", "--restart"]) == 0
    assert run("md", ["model.eqnet", "b.store", *tail, "--steps", "9", "--restart"]) == 2
    assert "belongs to another structure file" in capsys.readouterr().err


def test_many_structures_go_on(folder: Path) -> None:
    argv = [*ARGV, "--ensemble", "langevin", "--replicas", "2", "--traj_interval", "3"]
    assert main([*argv, "--steps", "60", "--output", "whole.traj"]) == 0
    assert main([*argv, "--steps", "25", "--output", "parts.traj"]) == 0
    assert main([*argv, "--steps", "60", "--output", "parts.traj", "--restart"]) == 0
    assert Path("whole.csv").read_bytes() == Path("parts.csv").read_bytes()
    for number in range(2):
        whole, parts = Path(f"whole_{number}.traj"), Path(f"parts_{number}.traj")
        assert whole.read_bytes() == parts.read_bytes()


def test_a_signal_stops_it_and_it_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*ARGV, "--ensemble", "nose_hoover", "--traj_interval", "8", "--steps", "4000"]
    assert main([*argv, "--output", "whole.traj"]) == 0
    with monkeypatch.context() as patch:
        stop = lambda file, simulation: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
        patch.setattr(RestartFile, "save_now_and_then", stop)
        assert main([*argv, "--output", "parts.traj"]) == 128 + signal.SIGTERM
    assert "go on with --restart" in capsys.readouterr().err
    assert main([*argv, "--output", "parts.traj", "--restart"]) == 0
    assert same("whole.traj", "parts.traj")


def test_refusals(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*ARGV, "--output", "a.traj"]

    def refused(message: str, *more: str) -> None:
        assert run("md", [*argv, *more]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1

    refused("a.restart: no such restart file", "--restart")
    assert main([*argv, "--steps", "10"]) == 0
    capsys.readouterr()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    refused("a.traj exists")
    refused("with temperature = 900.0, not 900.5", "--restart", "--temperature", "900.5")
    refused("with dtype = float32, not float64", "--restart", "--dtype", "float64")
    refused("ask for more --steps", "--restart", "--steps", "10")
    refused("--overwrite has no effect with --restart", "--restart", "--overwrite")
    shutil.copy("crystal.xyz", "kept.xyz")
    write("crystal.xyz", molecule("H2O"), format="extxyz")
    refused("belongs to another structure file", "--restart", "--steps", "20")
    shutil.move("kept.xyz", "crystal.xyz")
    data = bytearray(before["a.restart"])
    data[len(data) // 2] ^= 1
    Path("a.restart").write_bytes(data)
    refused("start the simulation again without --restart", "--restart", "--steps", "20")
    Path("a.restart").write_bytes(before["a.restart"])
    Path("a.csv").write_text("step\n")
    refused("a.csv is not the file that a.restart goes on with", "--restart", "--steps", "20")
    Path("a.csv").write_bytes(before["a.csv"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_state_of_another_simulation_is_refused() -> None:
    from eqnet.simulate import Simulation

    potential = morse_potential(r_max=2.5)
    one = Simulation(potential, molecule("H2O"))
    with pytest.raises(InputError, match="belongs to another structure or ensemble"):
        one.restore(Simulation(potential, molecule("CH4")).saved())
