"""Units guessed from physics: sound data are left alone, converted data are recognised."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from ase import units
from copper import converted, copper

from eqnet.data.demo import demo_path
from eqnet.data.frame import Frame
from eqnet.data.frame_pairs import works
from eqnet.data.items import make_items
from eqnet.data.read import read
from eqnet.data.unit_guess import Guess, all_electron_energy, gather, guess, ours

HARTREE, BOHR = units.Hartree, units.Bohr  # of ASE, not our own constants
KCAL, KJ = units.kcal / units.mol, units.kJ / units.mol
ATOMIC = {"energy": HARTREE, "forces": HARTREE / BOHR}


@cache
def ethanol() -> tuple[tuple[Frame, ...], dict[int, float]]:
    """Every second of the first frames of the built-in example, and its isolated atoms."""
    data = read(demo_path())
    return tuple(data.frames[:300]), data.isolated


def guessed(frames, isolated=None) -> Guess:
    elements = sorted({int(z) for f in frames for z in f.numbers})
    items = make_items(frames, elements, 5.0)
    return guess(gather(items, isolated or {}, works(frames)))


def test_sound_data_raise_nothing() -> None:
    frames, isolated = ethanol()
    assert guessed(frames, isolated).units == ours()
    assert guessed(frames).units == ours()
    assert guessed(copper()).units == ours()
    assert guessed(frames[:1]).units == ours()
    assert guessed([replace(f, energy=None, forces=None) for f in frames[:5]]).units == ours()


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ({"energy": HARTREE}, {"energy": "Hartree"}),
        ({"energy": HARTREE, "forces": HARTREE}, {"energy": "Hartree", "forces": "Hartree/A"}),
        (ATOMIC, {"energy": "Hartree", "forces": "Hartree/bohr"}),
        (
            {**ATOMIC, "length": BOHR},
            {"length": "bohr", "energy": "Hartree", "forces": "Hartree/bohr"},
        ),
        ({"length": BOHR}, {"length": "bohr"}),
        ({"energy": KCAL, "forces": KCAL}, {"energy": "kcal/mol", "forces": "kcal/mol/A"}),
        ({"energy": KJ, "forces": KJ}, {"energy": "kJ/mol", "forces": "kJ/mol/A"}),
        ({"forces": HARTREE / BOHR}, {"forces": "Hartree/bohr"}),
        ({"energy": KCAL}, {"energy": "kcal/mol"}),
    ],
)
def test_molecules_in_other_units(factors, expected) -> None:
    frames, isolated = ethanol()
    other = {z: e / factors.get("energy", 1.0) for z, e in isolated.items()}
    found = guessed(converted(frames, **factors), other)
    assert expected in (found.others, *({k: v for k, v in r.items() if v != ours()[k]}
                                        for r in found.rivals))  # fmt: skip
    assert found.better >= 8


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ({"energy": HARTREE}, {"energy": "Hartree"}),
        ({"energy": KCAL, "forces": KCAL}, {"energy": "kcal/mol", "forces": "kcal/mol/A"}),
        (ATOMIC, {"energy": "Hartree", "forces": "Hartree/bohr"}),
        ({"stress": units.GPa}, {"stress": "GPa"}),
        ({"stress": 0.1 * units.GPa}, {"stress": "kbar"}),
    ],
)
def test_crystals_in_other_units(factors, expected) -> None:
    assert guessed(converted(copper(), **factors)).others == expected


def test_statistical_atom_is_near_published_total_energies() -> None:
    """Non-relativistic energies of atoms in Hartree (Koga and Thakkar 1996, Hartree-Fock)."""
    known = {1: -0.5, 6: -37.6886, 8: -74.8094, 14: -288.8544, 29: -1638.9637}
    found = all_electron_energy(np.array(list(known))) / HARTREE
    np.testing.assert_allclose(found, list(known.values()), rtol=0.08)
    np.testing.assert_allclose(found[1:], list(known.values())[1:], rtol=0.01)


def test_total_energies_in_hartree_without_forces() -> None:
    """Energies of neutral atoms are those of the statistical atom: no other label is needed."""
    frames = [
        replace(f, energy=float(all_electron_energy(f.numbers).sum()), forces=None)
        for f in ethanol()[0][:10]
    ]
    assert guessed(frames).units == ours()
    assert guessed(converted(frames, energy=HARTREE)).others == {"energy": "Hartree"}
    assert guessed(converted(frames, energy=KCAL)).others == {"energy": "kcal/mol"}
