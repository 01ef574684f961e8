"""`eqnet check` from the command line, and what `eqnet train` refuses by the same rules."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import units
from ase.io import read as read_images
from ase.io import write
from copper import converted, copper

from eqnet.data.demo import demo_path
from eqnet.data.frame import Frame, to_atoms
from eqnet.data.read import read
from eqnet.scripts import main

TINY = (
    "--num_channels 2 --max_L 0 --max_ell 1 --correlation 1 --num_interactions 1 --r_max 3 "
    "--radial_MLP 4 --num_train 12 --num_valid 4 --max_num_epochs 1"
).split()


def file_of(folder: Path, frames: list[Frame] | tuple[Frame, ...], name: str = "t.xyz") -> str:
    write(folder / name, [to_atoms(frame) for frame in frames], format="extxyz")
    return str(folder / name)


def ethanol() -> list[Frame]:
    return list(read(demo_path()).frames[:60])


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(["check", *argv])
    out, err = capsys.readouterr()
    return code, " ".join(out.split()), err


def checked(
    folder: Path, capsys: pytest.CaptureFixture[str], *argv: str
) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON."""
    target = folder / "found.json"
    code, out, err = run(capsys, *argv, "--json", str(target))
    assert code in (0, 1, 2), err
    found = json.loads(target.read_text())
    for finding in found["findings"]:
        assert " ".join(finding["text"].split()) in out
    return code, found


def test_sound_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, test = file_of(tmp_path, ethanol()[:40]), file_of(tmp_path, ethanol()[40:], "v.xyz")
    code, found = checked(
        tmp_path, capsys, train, "--test_file", test, "--r_max", "4", "--batch_size", "8"
    )
    assert code == 0 and not found["findings"]
    assert found["frames"] == {"train": 40, "test": 20} and found["elements"] == ["H", "C", "O"]
    labels = {(row["role"], row["label"]): row for row in found["labels"]}
    energies = [frame.energy for frame in ethanol()[:40] if frame.energy is not None]
    assert labels["train", "energy"]["key"] == "REF_energy"
    assert labels["train", "energy"]["mean"] == pytest.approx(np.mean(energies))
    assert labels["train", "energy"]["std"] == pytest.approx(np.std(energies), rel=1e-5)
    assert labels["test", "forces"]["frames"] == 20
    assert found["units"]["ours"] and len(found["units"]["evidence"]) >= 2
    assert found["neighbours"]["r_max"] == 4
    assert found["E0s"]["used"]["method"] == "least_squares"


def test_training_shows_what_is_allowed_and_has_the_batches_of_the_forecast(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from eqnet.scripts import train as command

    loaders = []

    def fit(experiment: Any, potential: Any, *_: Any) -> int:
        loaders.append(experiment.loader("train", potential))
        return 0

    monkeypatch.setattr(command, "_fit", fit)
    monkeypatch.chdir(tmp_path)
    argv = [file_of(tmp_path, ethanol()[:20]), *TINY, "--E0s", "{H: 0.0, C: 0.0, O: 0.0}"]
    argv += ["--allow", "E0s,overlap"]
    _, found = checked(tmp_path, capsys, *argv)
    assert main(["train", *argv]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert out.count("WARNING:") == 1 and out.count("the given E0s leave") == 1
    assert "WARNING:" in Path("runs/t/log.txt").read_text()
    (loader,), forecast = loaders, found["forecast"]["train"]
    assert forecast["structures"] == 12 and forecast["batches"] == 3 == loader.num_batches
    assert forecast["shapes"] == [shape._asdict() for shape in loader.shapes]
    batches = [[*vars(graph).values(), *vars(labels).values()] for graph, labels in
               loader.batches(0)]  # fmt: skip
    sizes = [sum(getattr(array, "nbytes", 0) for array in arrays) for arrays in batches]
    assert forecast["bytes"] == max(sizes)


@pytest.mark.slow
def test_measure_runs_the_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = checked(tmp_path, capsys, file_of(tmp_path, ethanol()[:20]), *TINY, "--measure")
    measured = found["forecast"]["measured"]
    assert code == 0 and 0 < measured["train_wall"] < 60 and measured["peak_rss_mb"] > 10


def test_units_end_with_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = file_of(tmp_path, converted(copper(), stress=units.GPa))
    code, found = checked(tmp_path, capsys, file)
    (warning,) = [f for f in found["findings"] if f["level"] != "note"]
    assert code == 1 and warning["kind"] == "units" and "stress in GPa" in warning["text"]
    assert found["units"]["guess"]["stress"] == "GPa"


@pytest.mark.parametrize("kind", ["overlap", "forces_sign", "E0s"])
def test_check_and_train_refuse_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    frames, more = ethanol()[:60], []
    if kind == "overlap":
        positions = frames[7].positions.copy()
        positions[5] = positions[2] + (0, 0, 0.25)
        frames[7] = replace(frames[7], positions=positions)
    elif kind == "forces_sign":
        frames = [replace(f, forces=-f.forces) for f in frames if f.forces is not None]
    else:
        more = ["--E0s", "{H: 0.0, C: 0.0, O: 0.0}"]
    file = file_of(tmp_path, frames)
    whole = [*TINY, *more, "--num_train", "56"]
    code, found = checked(tmp_path, capsys, file, *whole)
    assert code == 1 and [f["kind"] for f in found["findings"] if f["level"] == "error"] == [kind]
    assert main(["train", file, *whole]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"eqnet: error: {file}") and error.count("\n") == 1
    assert f"--allow {kind} trains on it as it is" in error and not Path("runs").exists()
    code, found = checked(tmp_path, capsys, file, *whole, "--allow", kind)
    assert code == 0 and kind in [f["kind"] for f in found["findings"] if f["level"] == "note"]


def test_unused_labels_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [to_atoms(frame) for frame in ethanol()[:20]]
    for atoms in images:
        atoms.info["mp2_energy"] = -1.5
        atoms.info["energy_unit"] = "eV"
        atoms.set_array("old_forces", np.ones((9, 3)))
    write(tmp_path / "t.xyz", images, format="extxyz")
    code, out, _ = run(capsys, str(tmp_path / "t.xyz"))
    assert code == 0 and "t.xyz: mp2_energy (structure), old_forces (atoms)" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere.xyz"], "nowhere.xyz: there is no such file"),
        (["t.xyz", "--energy_key", "nothing"], "no frame has the energy key nothing"),
        (["t.xyz", "--allow", "everything"], "--allow everything is unknown; it may be overlap,"),
        (["t.xyz", "--json", "t.xyz"], "--json t.xyz would overwrite an input"),
        (["t.xyz", "--json", "no/a.json"], "--json no/a.json: name a file in a folder that exists"),
        (["t.xyz", "--jason", "a"], "unknown option --jason; did you mean --json?"),
        (["broken.xyz"], "broken.xyz, frame 0: 9 atoms are announced in line 1"),
    ],
)
def test_refusals(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path(file_of(tmp_path, ethanol()[:6]))
    before = file.read_text()
    (tmp_path / "broken.xyz").write_text("\n".join(before.splitlines()[:5]))
    code, _, error = run(capsys, *argv)
    assert code == 2 and message in error and error.count("\n") == 1
    assert file.read_text() == before


def test_what_cannot_be_trained_is_still_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = file_of(tmp_path, ethanol()[:3])  # a tenth of 3 frames is none
    code, found = checked(tmp_path, capsys, file)
    assert code == 2 and "0 frames" in found["forecast"]["refused"]
    assert len(read_images(file, ":")) == 3
