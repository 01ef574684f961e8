"""From options to data and potential: what is derived is right, what is wrong is refused."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_run
from ase import Atoms
from ase.io import write

from eqnet.data import read as reading
from eqnet.data.frame import Frame, to_atoms
from eqnet.errors import InputError
from eqnet.experiment import build, prepare
from eqnet.options import TrainOptions, resolve_choices
from eqnet.scaling import fit_shift, force_scale

TINY = {"num_channels": 4, "max_L": 0, "max_ell": 1, "correlation": 1, "num_interactions": 1}


def options(**values) -> TrainOptions:
    return resolve_choices(TrainOptions().replace({**TINY, "r_max": 3.0, **values}))


def file_of(tmp_path: Path, frames: list[Frame], name: str = "water.xyz") -> Path:
    write(tmp_path / name, [to_atoms(frame) for frame in frames], format="extxyz")
    return tmp_path / name


def mixture(number: int, seed: int = 0) -> list[Frame]:
    """Frames of 1 to 5 H and 1 to 3 O with energies -2 n_H + 5 n_O + 0.3 n, and random forces."""
    rng, found = np.random.default_rng(seed), []
    for index in range(number):
        numbers = np.array([1] * rng.integers(1, 6) + [8] * rng.integers(1, 4))
        n = len(numbers)
        positions = np.arange(n)[:, None] * np.array([1.1, 0.3, 0.0]) + rng.normal(size=(n, 3)) / 20
        energy = -2.0 * np.sum(numbers == 1) + 5.0 * np.sum(numbers == 8) + 0.3 * n
        found.append(
            Frame(numbers, positions, np.zeros((3, 3)), np.zeros(3, bool), float(energy),
                  rng.normal(size=(n, 3)), index=index)
        )  # fmt: skip
    return found


def test_shift_is_what_composition_explains() -> None:
    shift, residual = fit_shift(mixture(30), (1, 8), np.array([-2.0, 4.0]))
    np.testing.assert_allclose(shift, [0.3, 1.3], atol=1e-10)
    assert residual < 1e-10
    one_kind = [replace(f, numbers=np.array([1, 8]), energy=1.0 + 0.1 * i)
                for i, f in enumerate(mixture(3))]  # fmt: skip
    shift, residual = fit_shift(one_kind, (1, 8), np.zeros(2))
    np.testing.assert_allclose(shift, [0.55, 0.55])  # which element, the data cannot say
    assert residual == pytest.approx(0.1 / 2 * np.sqrt(2 / 3))


def test_scale_is_the_size_of_the_forces() -> None:
    frames = mixture(20)
    components = np.concatenate([frame.forces for frame in frames if frame.forces is not None])
    zero = np.zeros(2)
    expected = np.sqrt(np.mean(components**2))
    assert force_scale(frames, (1, 8), zero, zero) == pytest.approx(expected)
    unlabelled = [replace(frame, forces=None) for frame in frames]
    per_atom = np.array([f.energy / len(f) for f in frames if f.energy is not None])
    expected = np.sqrt(np.mean(per_atom**2))
    assert force_scale(unlabelled, (1, 8), zero, zero) == pytest.approx(expected)


def test_average_number_of_neighbours_and_elements(tmp_path: Path) -> None:
    file = file_of(tmp_path, small_run.frames(12))
    found = prepare(options(valid_fraction=0.25), file)
    assert found.elements == (1, 8) == found.config.elements
    assert found.config.avg_num_neighbors == 2.0  # every atom of a water molecule sees two others
    assert {role: len(frames) for role, frames in found.frames.items()} == {
        "train": 9, "valid": 3, "test": 0,
    }  # fmt: skip
    assert found.options.run.max_num_epochs == 20_000 // 2  # two batches of five


def test_split_by_file_of_indices(tmp_path: Path) -> None:
    file = file_of(tmp_path, small_run.frames(9))
    parts = {"train": [4, 1, 2], "valid": [0], "test": [8, 7]}
    (tmp_path / "split.json").write_text(json.dumps(parts))
    found = prepare(options(split_file=str(tmp_path / "split.json")), file)
    indices = {role: [f.index for f in frames] for role, frames in found.frames.items()}
    assert indices == {"train": [1, 2, 4], "valid": [0], "test": [7, 8]}
    assert set(found.provenance()["files"]) == {"train", "split"}


def test_indices_count_the_frames_of_the_file(tmp_path: Path) -> None:
    """Isolated atoms are frames too, though no structures."""
    water = small_run.frames(3)
    atom = replace(water[0], numbers=np.array([8]), positions=np.zeros((1, 3)),
                   forces=np.zeros((1, 3)), config_type="IsolatedAtom")  # fmt: skip
    file, split = file_of(tmp_path, [atom, *water]), tmp_path / "split.json"
    split.write_text(json.dumps({"train": [1, 3], "valid": [2]}))
    found = prepare(options(split_file=str(split)), file)
    assert [f.index for f in found.frames["train"]] == [1, 3]
    for wrong in (0, 4):
        split.write_text(json.dumps({"train": [1, wrong], "valid": [2]}))
        with pytest.raises(InputError, match=f"names frame {wrong}, which is no structure"):
            prepare(options(split_file=str(split)), file)


def test_model_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    wrong = {"hidden_irreps": "8x0e+4x1o", "num_channels": None, "max_L": None}
    found = prepare(options(**wrong, num_interactions=2), file_of(tmp_path, small_run.frames(9)))
    with pytest.raises(InputError, match="the model cannot be made: .*equal multiplicities"):
        build(found)


def test_a_rank_that_makes_every_product_exact_is_refused(tmp_path: Path) -> None:
    """One scalar times four harmonics has four terms; with three it is approximate."""
    file = file_of(tmp_path, small_run.frames(9))
    build(prepare(options(product="cp", rank=3), file))
    build(prepare(options(product="cp"), file))
    for rank in (4, 7):
        with pytest.raises(InputError, match=f"--rank {rank} has no effect: with so many"):
            build(prepare(options(product="cp", rank=rank), file))


def test_given_atomic_energies(tmp_path: Path) -> None:
    file = file_of(tmp_path, small_run.frames(9))
    for text in ("{1: -1.5, 8: -7}", '{"H": -1.5, "O": -7}', "{H: -1.5, O: -7.0}"):
        found = prepare(options(E0s=text), file)
        np.testing.assert_array_equal(found.atomic_energies, [-1.5, -7.0])
    for text in ("{H -1.5}", "{1, 8}"):
        with pytest.raises(InputError, match="cannot be read: write"):
            prepare(options(E0s=text), file)


def test_second_stage_that_never_begins_is_refused(tmp_path: Path) -> None:
    file = file_of(tmp_path, small_run.frames(9))
    for values in ({"max_num_epochs": 1}, {"max_num_steps": 20, "start_stage_two": 50}):
        with pytest.raises(InputError, match="the second stage would never begin"):
            prepare(options(stage_two=True, **values), file)


def test_stress_weight_follows_the_labels(tmp_path: Path) -> None:
    frames = [
        replace(f, cell=8 * np.eye(3), pbc=np.ones(3, bool), stress=0.01 * np.eye(3))
        for f in small_run.frames(8)
    ]
    found = prepare(options(), file_of(tmp_path, frames))
    assert found.options.loss.stress_weight == 50.0 and found.stress
    found = prepare(options(stress_weight=0.0), file_of(tmp_path, frames))
    assert not found.stress
    plain = file_of(tmp_path, small_run.frames(8), "plain.xyz")
    assert prepare(options(), plain).options.loss.stress_weight is None
    two = {"stage_two": True, "stage_two_stress_weight": 3.0}
    with pytest.raises(InputError, match="--stage_two_stress_weight has no effect: no training"):
        prepare(options(**two), plain)


def without_forces(frames: list[Frame]) -> list[Frame]:
    return [replace(frame, forces=None) for frame in frames]


def with_fluorine(frames: list[Frame]) -> list[Frame]:
    return [replace(frame, numbers=np.array([9, 1, 1])) for frame in frames]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "macee"}, "there is no --model macee; did you mean mace?"),
        ({"model": "mace", "parity": True}, "--parity has no effect on --model mace"),
        ({"model": "nequip", "correlation": 2, "num_interactions": None}, "--correlation has no"),
        (
            {"hidden_irreps": "8x0f", "num_channels": None, "max_L": None},
            "the model cannot be made",
        ),
        ({"r_max": 0.3}, "no atom .* within r_max = 0.3"),
        ({"forces_key": "frc"}, r"water.xyz: no frame has the forces key frc"),
        ({"stress_weight": 1.0}, "no frame has stress"),
        ({"num_train": 12}, "12 frames cannot be split into 12 training, 1 validation"),
        ({"valid_fraction": 0.01}, "is 0 frames"),
        ({"valid_file": "nowhere.xyz"}, "nowhere.xyz: there is no such file"),
        ({"E0s": "isolated"}, "have no energy for H, O"),
    ],
)
def test_mistakes(tmp_path: Path, values: dict, message: str) -> None:
    file = file_of(tmp_path, small_run.frames(12))
    with pytest.raises(InputError, match=message):
        prepare(options(**values), file)


def test_missing_forces_and_new_elements(tmp_path: Path) -> None:
    file = file_of(tmp_path, without_forces(small_run.frames(12)), "energies.xyz")
    with pytest.raises(InputError, match="energies.xyz: no frame has forces: .*--forces_weight 0"):
        prepare(options(), file)
    assert prepare(options(forces_weight=0.0), file).scale > 0
    whole = file_of(tmp_path, small_run.frames(9), "train.xyz")
    others = {"valid_file": str(file), "test_file": str(file)}
    assert len(prepare(options(**others), whole).frames["valid"]) == 12
    bare = [replace(frame, energy=None, forces=None) for frame in small_run.frames(2)]
    others["valid_file"] = str(file_of(tmp_path, bare, "bare.xyz"))
    with pytest.raises(InputError, match="bare.xyz: no frame has energy or forces, so"):
        prepare(options(**others), whole)
    file = file_of(tmp_path, small_run.frames(12))
    test = file_of(tmp_path, with_fluorine(small_run.frames(2)), "test.xyz")
    with pytest.raises(InputError, match=r"test.xyz, frame 0 \(test\) contains F, which no train"):
        prepare(options(test_file=str(test)), file)


def test_digests_are_those_of_what_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = file_of(tmp_path, small_run.frames(9))
    found, before = prepare(options(), file), hashlib.sha256(file.read_bytes()).hexdigest()
    file.write_text(file.read_text() + "\n")
    assert found.provenance()["files"] == {"train": before}
    whole = reading.read_images

    def meanwhile(path: Path) -> list[Atoms]:
        images = whole(path)
        file.write_text(file.read_text() + "\n")
        return images

    monkeypatch.setattr(reading, "read_images", meanwhile)
    with pytest.raises(InputError, match="water.xyz: the file changed while it was read"):
        prepare(options(), file)


def test_structures_in_two_roles_are_told(tmp_path: Path) -> None:
    frames = small_run.frames(10)
    test = file_of(tmp_path, [frames[i] for i in range(10)], "test.xyz")
    found = prepare(options(test_file=str(test)), file_of(tmp_path, frames))
    assert len(found.notes) == 1
    assert found.notes[0].startswith("9 test structures are also among the training structures")
    assert not prepare(options(num_test=3), file_of(tmp_path, frames)).notes


def test_a_batch_larger_than_the_set_is_told(tmp_path: Path) -> None:
    file = file_of(tmp_path, small_run.frames(10))
    assert not prepare(options(batch_size=9), file).notes
    found = prepare(options(batch_size=10), file)
    assert found.notes == ("--batch_size 10 is more than the 9 training structures: one batch",)
    assert found.options.run.max_num_epochs == 20_000  # of one step
