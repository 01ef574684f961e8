"""Reference energies: closed forms, exact recovery, and what is said about the rest."""

from __future__ import annotations

import numpy as np
import pytest

from eqnet.data.frame import Frame
from eqnet.data.reference_energies import atomic_energies
from eqnet.errors import InputError

ELEMENTS = (1, 6, 8)
TRUE = {1: -13.6, 6: -1029.3, 8: -2041.8}


def frames(compositions, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    found = []
    for counts in compositions:
        numbers = np.repeat(ELEMENTS, counts)
        energy = sum(TRUE[int(z)] for z in numbers) + noise * rng.normal() * len(numbers)
        n = len(numbers)
        found.append(
            Frame(numbers, np.zeros((n, 3)), np.zeros((3, 3)), np.zeros(3, bool), energy=energy)
        )
    return found


VARIED = [(4, 1, 0), (2, 0, 1), (6, 2, 1), (4, 1, 1), (2, 2, 2)]


def test_least_squares_finds_what_made_the_energies():
    energies, report = atomic_energies("least_squares", frames(VARIED), {}, ELEMENTS)
    np.testing.assert_allclose(energies, list(TRUE.values()), atol=1e-8)
    assert report.rms < 1e-6 and report.num_frames == 5 and not report.notes


def test_residual_is_the_spread_per_atom():
    _, report = atomic_energies(TRUE, frames(VARIED * 400, noise=0.010), {}, ELEMENTS)
    assert report.method == "given"
    assert report.rms == pytest.approx(10.0, rel=0.05)
    assert report.mean == pytest.approx(0.0, abs=1e-3)


def test_one_composition_cannot_tell_elements_apart():
    ethanol = frames([(6, 2, 1)] * 4)
    energies, report = atomic_energies("least_squares", ethanol, {}, ELEMENTS)
    np.testing.assert_allclose(energies, ethanol[0].energy / 9)
    assert "one composition" in report.notes[0]
    average, _ = atomic_energies("average", ethanol, {}, ELEMENTS)
    np.testing.assert_allclose(energies, average)


def test_an_element_without_data_gets_the_mean():
    energies, report = atomic_energies("least_squares", frames(VARIED), {}, (1, 6, 7, 8))
    per_atom = np.mean([f.energy / len(f) for f in frames(VARIED)])
    assert energies[2] == pytest.approx(per_atom)
    np.testing.assert_allclose(energies[[0, 1, 3]], list(TRUE.values()), atol=1e-6)
    assert "only 3 of 4" in report.notes[0]


@pytest.mark.parametrize("name", ["isolated", "IsolatedAtom", "auto"])
def test_isolated_atoms(name):
    energies, report = atomic_energies(name, frames(VARIED), {**TRUE, 26: 0.0}, ELEMENTS)
    np.testing.assert_array_equal(energies, list(TRUE.values()))
    assert report.method == "isolated"


def test_auto_fits_when_an_isolated_atom_is_missing():
    _, report = atomic_energies("auto", frames(VARIED), {1: -13.6}, ELEMENTS)
    assert report.method == "least_squares"


def test_symbols_and_numbers_may_be_given():
    energies, _ = atomic_energies({"H": -1, 6: -2.5, "8": 3}, frames(VARIED), {}, ELEMENTS)
    np.testing.assert_array_equal(energies, [-1, -2.5, 3])


def test_energies_of_another_method_are_noticed():
    _, report = atomic_energies({1: 0, 6: 0, 8: 0}, frames(VARIED), {}, ELEMENTS)
    assert "same method" in report.notes[-1]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("isolated", "no energy for H, C, O"),
        ({1: -1.0}, "no energy for C, O"),
        ("foundation", "unknown"),
        ({"Qq": 1.0}, "'Qq'"),
        ({1: float("nan")}, "finite"),
        ({1: "a"}, "number in eV"),
        ({0: 1.0}, "neither"),
    ],
)
def test_mistakes_are_named(how, words):
    with pytest.raises(InputError, match=words):
        atomic_energies(how, frames(VARIED), {}, ELEMENTS)


def test_a_fit_needs_energies():
    bare = [
        Frame(np.array([1]), np.zeros((1, 3)), np.zeros((3, 3)), np.zeros(3, bool)) for _ in "ab"
    ]
    with pytest.raises(InputError, match="need frames with energies"):
        atomic_energies("average", bare, {}, (1,))
