"""`eqnet evaluate` from the command line: table, files, refusals."""

import json
from dataclasses import replace

import numpy as np
import pytest
from ase.io import iread, write
from pair_potential import Pairs, PairsConfig, by_hand, pair_potential, random_frame

import eqnet.models
from eqnet import metrics, model_file
from eqnet.data.frame import to_atoms
from eqnet.evaluation import evaluate
from eqnet.files import digest
from eqnet.scripts import main

QUANTITIES = [f"{q}_{kind}" for q in metrics.QUANTITIES for kind in ("mae", "rmse")]


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model file of the pair potential."""
    monkeypatch.setitem(eqnet.models.MODELS, "pairs", (PairsConfig, Pairs))
    path = tmp_path / "model.eqnet"
    potential = pair_potential()
    model_file.save(
        path, potential, model_name="pairs", config=PairsConfig(), training={}, examples=[]
    )
    return path


@pytest.fixture
def frames():
    """Molecules and crystals whose labels are the closed form, 1 meV per structure off."""
    rng = np.random.default_rng(11)
    result = []
    for index in range(8):
        periodic = index % 2 == 1
        frame = random_frame(rng, 2 + index % 3, (periodic,) * 3, index)
        energy, forces, virial = by_hand(frame)
        stress = virial / np.linalg.det(frame.cell) if periodic else None
        kind = "bulk" if periodic else "gas"
        result.append(
            replace(frame, energy=energy + 0.001, forces=forces, stress=stress, config_type=kind)
        )
    return result


@pytest.fixture
def labelled(tmp_path, frames):
    path = tmp_path / "labelled.xyz"
    write(path, [to_atoms(frame) for frame in frames])
    return path


def run(capsys, *arguments):
    code = main(["evaluate", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys, *arguments):
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert err.startswith("eqnet: error: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


def test_table_and_json(capsys, tmp_path, model, labelled):
    target = tmp_path / "errors.json"
    code, out, err = run(capsys, model, labelled, "--json", target, "--dtype", "float64")
    assert code == 0 and err == ""
    for word in ("bulk", "gas", "all", "naive", "RMSE", "meV/Å", "energy (REF_energy)"):
        assert word in out
    found = json.loads(target.read_text())
    assert found["num_structures"] == 8
    assert found["energy_mae"] == pytest.approx(1.0, rel=1e-4)  # the file keeps 8 decimals
    assert found["energy_rmse"] == pytest.approx(1.0, rel=1e-4)  # the file keeps 8 decimals
    assert found["forces_rmse"] < 1e-4  # the digits that the file keeps
    assert set(QUANTITIES) <= set(found)
    assert set(found["config_types"]) == {"bulk", "gas"}
    assert found["config_types"]["gas"]["num_structures"] == 4
    assert "stress_mae" not in found["config_types"]["gas"]
    assert found["naive"]["forces_rmse"] > 1.0


def test_file_of_the_training_is_told(capsys, tmp_path, model, labelled):
    code, out, _ = run(capsys, model, labelled)
    assert code == 0 and "saw this file before" not in out
    seen = tmp_path / "seen.eqnet"
    model_file.save(
        seen,
        pair_potential(),
        model_name="pairs",
        config=PairsConfig(),
        training={"data": {"train": digest(labelled)}},
        examples=[],
    )
    code, out, _ = run(capsys, seen, labelled)
    assert code == 0 and "saw this file before (train data)" in " ".join(out.split())


def test_a_store_is_evaluated_as_its_file(capsys, tmp_path, model, labelled):
    store, errors = tmp_path / "labelled.store", []
    assert main(["data", "build", str(labelled), "--output", str(store)]) == 0
    for file in (labelled, store):
        code, _, err = run(capsys, model, file, "--json", tmp_path / "errors.json")
        assert code == 0 and err == ""
        errors.append(json.loads((tmp_path / "errors.json").read_text()))
        assert errors[-1].pop("file") == str(file)
    assert errors[0] == errors[1]


def test_output_has_labels_and_answers(capsys, tmp_path, model, labelled, frames):
    target = tmp_path / "answers.extxyz"
    code, _, _ = run(capsys, model, labelled, "--output", target, "--dtype", "float64")
    assert code == 0
    answers = evaluate(pair_potential(), frames, dtype="float64")
    for frame, answer, atoms in zip(frames, answers, iread(target), strict=True):
        assert atoms.info["eqnet_energy"] == pytest.approx(answer.energy, abs=1e-6)
        assert atoms.info["REF_energy"] == pytest.approx(frame.energy)
        np.testing.assert_allclose(atoms.arrays["eqnet_forces"], answer.forces, atol=1e-6)
        np.testing.assert_allclose(atoms.arrays["REF_forces"], frame.forces, atol=1e-6)
        assert ("eqnet_stress" in atoms.info) == frame.pbc.all()
        if answer.stress is not None:
            found = np.reshape(atoms.info["eqnet_stress"], (3, 3))
            np.testing.assert_allclose(found, answer.stress, atol=1e-6)


def test_answers_alone_for_structures_without_labels(capsys, tmp_path, model, frames):
    path, target = tmp_path / "bare.xyz", tmp_path / "answers.xyz"
    bare = [replace(frame, energy=None, forces=None, stress=None) for frame in frames]
    write(path, [to_atoms(frame) for frame in bare])
    code, out, _ = run(capsys, model, path, "--output", target)
    assert code == 0 and "labels: none" in out
    assert len(list(iread(target))) == 8
    assert "--energy_key" in refused(capsys, model, path)


def test_report(capsys, tmp_path, model, labelled):
    folder = tmp_path / "report"
    code, out, _ = run(capsys, model, labelled, "--report", folder)
    assert code == 0 and "report.html" in out
    assert (folder / "report.html").is_file()
    assert (folder / "plots" / "forces.png").is_file()


@pytest.mark.parametrize("option", ["--json", "--output", "--report"])
def test_inputs_are_never_overwritten(capsys, model, labelled, option):
    before = labelled.read_bytes(), model.read_bytes()
    assert "overwrite" in refused(capsys, model, labelled, option, labelled)
    spelt = labelled.parent / "." / ".." / labelled.parent.name / model.name
    assert "overwrite" in refused(capsys, model, labelled, option, spelt)
    assert (labelled.read_bytes(), model.read_bytes()) == before


def test_refusals(capsys, tmp_path, model, labelled):
    here = tmp_path / "x"
    cases = {
        "no such file": (model, here),
        "not an eqnet model": (labelled, labelled),
        "there is no such file": (here, labelled),
        "batch_size": (model, labelled, "--batch_size", "0"),
        "unknown option --jsn": (model, labelled, "--jsn", here),
        "different files": (model, labelled, "--json", here, "--output", here),
        "is a folder": (model, labelled, "--json", tmp_path),
        "does not exist": (model, labelled, "--output", here / "y" / "z.xyz"),
        "say the same thing": (model, labelled, "--stress_key", "a", "--virials_key", "b"),
        "dft_energy": (model, labelled, "--energy_key", "dft_energy"),
    }
    for words, arguments in cases.items():
        assert words in refused(capsys, *arguments)
    assert not here.exists()


def test_unknown_element(capsys, tmp_path, model, frames):
    path, target = tmp_path / "iron.xyz", tmp_path / "out.json"
    write(path, [to_atoms(frames[0]), to_atoms(replace(frames[1], numbers=np.full(3, 26)))])
    message = refused(capsys, model, path, "--json", target)
    assert "iron.xyz, frame 1" in message and "Fe" in message and "H, O" in message
    assert not target.exists()


def test_answers_that_are_not_numbers(capsys, tmp_path, model, labelled, monkeypatch):
    from eqnet import evaluation

    def broken(potential, frames, **options):
        answers = evaluate(potential, frames)
        answers[3].forces[0, 0] = np.nan
        return answers

    monkeypatch.setattr(evaluation, "evaluate", broken)
    target = tmp_path / "out.json"
    message = refused(capsys, model, labelled, "--json", target)
    assert "frame 3" in message and "finite" in message
    assert not target.exists()
