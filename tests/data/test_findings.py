"""What would ruin a training is found and named; sound data raise nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import units
from copper import converted, copper

from eqnet.data.demo import demo_path
from eqnet.data.findings import ALLOWABLE, Findings, allowed, find, refuse, volume_correlation
from eqnet.data.frame import Frame
from eqnet.data.items import make_items
from eqnet.data.labels import LabelReport, LabelRow
from eqnet.data.read import Dataset, read
from eqnet.data.reference_energies import atomic_energies
from eqnet.errors import InputError

CRYSTALS = copper()


@cache
def ethanol() -> tuple[Frame, ...]:
    """The first frames of the built-in example."""
    return tuple(read(demo_path()).frames[:200])


def found_in(
    frames, E0s: str | Mapping[Any, float] = "auto", isolated: dict[int, float] | None = None
) -> Findings:
    frames, isolated = list(frames), isolated or {}
    elements = sorted({int(z) for f in frames for z in f.numbers})
    rows = [LabelRow(k, f"my_{k}", "structure", 1, 0, 0, "") for k in ("energy", "forces")]
    rows.append(LabelRow("stress", "my_stress", "structure", 1, 0, 0, ""))
    dataset = Dataset(frames, isolated, LabelReport("train.xyz", len(frames), rows))
    items = {"train": make_items(frames, elements, 5.0)}
    _, references = atomic_energies(E0s, frames, isolated, elements)
    return find(dataset, {"train": frames}, items, references)


def changed(frames, **change) -> list[Frame]:
    return [replace(f, **{k: make(f) for k, make in change.items()}) for f in frames]


def test_sound_data_raise_nothing() -> None:
    for frames in (ethanol(), CRYSTALS, ethanol()[:3]):
        assert not found_in(frames).found
        assert refuse(found_in(frames), None) == []


def test_overlapping_atoms_are_named() -> None:
    frames = list(ethanol()[:12])
    positions = frames[7].positions.copy()
    positions[5] = positions[2] + (0, 0, 0.25)
    frames[7] = replace(frames[7], positions=positions)
    (finding,) = found_in(frames).found
    assert (finding.kind, finding.level) == ("overlap", "error")
    place = f"{demo_path()}, frame {frames[7].index}: atoms 2 and 5 are 0.250 A apart"
    assert place in finding.text
    with pytest.raises(InputError, match="2 and 5 are 0.250 A.*--allow overlap trains on it"):
        refuse(found_in(frames), "stress_sign")
    assert refuse(found_in(frames), "overlap, E0s") == [finding.text]
    positions[5] = positions[2] + (0, 0, 0.31)
    frames[7] = replace(frames[7], positions=positions)
    assert not found_in(frames).found


def test_gradients_as_forces() -> None:
    (finding,) = found_in(changed(ethanol(), forces=lambda f: -f.forces)).found
    assert finding.kind == "forces_sign" and finding.level == "error"
    assert "train.xyz: the forces (my_forces) have the wrong sign" in finding.text


def test_forces_that_were_never_computed() -> None:
    frames = changed(ethanol(), forces=lambda f: 0 * f.forces)
    assert [f.kind for f in found_in(frames).found] == ["zero_forces"]
    perfect = changed(copper(12, 0.02, 0.0), forces=lambda f: 0 * f.forces)  # zero by symmetry
    assert not found_in(perfect).found


def test_stress_of_the_other_sign_and_virials() -> None:
    (finding,) = found_in(changed(CRYSTALS, stress=lambda f: -f.stress)).found
    assert finding.kind == "stress_sign" and "VASP" in finding.text and "my_stress" in finding.text
    virials = found_in(changed(CRYSTALS, stress=lambda f: -f.volume * f.stress)).found
    text = next(f.text for f in virials if f.kind == "stress_sign")
    assert "they are virials: --virials_key my_stress reads them" in text


def test_volume_alone_warns() -> None:
    """Structures too different for pairs: the stress must rise with the volume."""
    rng, frames = np.random.default_rng(0), []
    for scale in np.linspace(0.98, 1.04, 12):
        cell = 8 * scale * np.eye(3)
        stress = (scale - 1.01) * np.eye(3)
        frames.append(
            Frame(np.full(4, 29), rng.random((4, 3)) @ cell, cell, np.ones(3, bool), stress=stress)
        )
    volume = volume_correlation(frames)
    assert volume is not None and volume[0] > 0.99 and volume[1] == 12
    volume = volume_correlation(changed(frames, stress=lambda f: -f.stress))
    assert volume is not None and volume[0] < -0.99
    assert volume_correlation(frames[:5]) is None
    assert volume_correlation([replace(f, stress=None) for f in frames]) is None


def test_units_are_a_warning_with_factor_and_evidence() -> None:
    (finding,) = found_in(converted(CRYSTALS, stress=units.GPa)).found
    assert (finding.kind, finding.level) == ("units", "warning")
    assert "stress in GPa (x 0.00624151 = eV/A^3)" in finding.text
    assert "work of the stress" in finding.text and "Nothing is converted" in finding.text
    assert refuse(found_in(converted(CRYSTALS, stress=units.GPa)), None) == [finding.text]


TOTAL = {6: -1030.0, 8: -2043.0}  # eV, of atoms


def oxides() -> list[Frame]:
    """Bound by 4 eV per atom, nearly."""
    compositions, frames = ((1, 2), (2, 1), (3, 1), (1, 1)), []
    for index, (carbons, oxygens) in enumerate(compositions * 3):
        numbers = np.repeat([6, 8], [carbons, oxygens])
        positions = np.outer(np.arange(len(numbers)), [1.3, 0, 0])
        energy = sum(TOTAL[z] - 4.0 for z in numbers) + 0.01 * (index % 3)
        frames.append(Frame(numbers, positions, np.zeros((3, 3)), np.zeros(3, bool), energy))
    return frames


def test_reference_energies_of_another_method() -> None:
    frames = oxides()
    assert not found_in(frames, TOTAL).found
    assert not found_in(frames, isolated=TOTAL).found
    assert not found_in(frames, "least_squares").found
    (finding,) = found_in(frames, {6: -150.0, 8: -430.0}).found
    assert finding.kind == "E0s" and "--E0s least_squares" in finding.text
    (finding,) = found_in(frames, isolated={6: -150.0, 8: -430.0}).found
    assert "the energies of the isolated atoms leave" in finding.text


def test_reference_energies_subtracted_twice() -> None:
    """Cohesive energies beside energies of atoms, given or found in the file."""
    frames = changed(oxides(), energy=lambda f: f.energy - sum(TOTAL[z] for z in f.numbers))
    assert not found_in(frames, {6: 0.0, 8: 0.0}).found
    for found in (found_in(frames, TOTAL), found_in(frames, isolated=TOTAL)):
        (finding,) = found.found
        assert (finding.kind, finding.level) == ("E0s", "error")
        with pytest.raises(InputError, match="--allow E0s trains on it as it is"):
            refuse(found, None)


def test_kinds_that_may_be_allowed() -> None:
    assert allowed(None) == set() and allowed("overlap, E0s") == {"overlap", "E0s"}
    assert allowed(",".join(ALLOWABLE)) == set(ALLOWABLE)
    with pytest.raises(InputError, match="--allow overlaps is unknown; it may be overlap,"):
        allowed("overlaps")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "rmd17/uracil_train_01", "3bpa/train_300K", "random_methane/train", "ecemc_liquid/train",
        "spice_dipeptides/train", "water_pbe0ts/train", "zuo2020/Li_train", "zuo2020/Si_train",
        "nbmotaw/train", "mptrj_1k/train", "sio2_response/train", "lips/train", "si_qe/sitraj",
    ],
)  # fmt: skip
def test_public_data_raise_nothing(data_folder: Path, name: str) -> None:
    assert not found_in(read(data_folder / f"{name}.xyz").frames).found
