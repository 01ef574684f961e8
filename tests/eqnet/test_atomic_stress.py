"""Stresses of atoms against loops over pairs, and their sum against the stress."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import PropertyNotImplementedError
from flax import nnx
from morse import by_hand, morse_potential

from eqnet import EqnetCalculator
from eqnet.models import MODELS
from eqnet.models.egennet import EGenNetConfig
from eqnet.models.frame_averaging import LearnedFrames
from eqnet.potential import Potential

ELEMENTS = (1, 6, 8)


def crystal() -> Atoms:
    atoms = bulk("Cu", a=2.6) * (2, 1, 1)
    atoms.numbers[:] = [6, 8]
    atoms.set_cell(atoms.cell.array + 0.1 * np.random.default_rng(0).normal(size=(3, 3)))
    atoms.rattle(0.1, seed=1)
    return atoms


def pairs(atoms: Atoms, potential: Potential) -> np.ndarray:
    """Sum over the neighbours of each atom of r_ij dE/dr_ij, by differences of the energy of two.

    The energy of a pair has one half of each of the two atoms, which differ by their scale.
    """
    images = itertools.product(range(-3, 4), repeat=3)
    shifts = np.array(list(images)) @ atoms.cell.array
    virials = np.zeros((len(atoms), 3, 3))
    for i, j in itertools.product(range(len(atoms)), repeat=2):
        two = atoms.numbers[[i, j]]
        scale = np.array([potential.scale[ELEMENTS.index(z)] for z in two])

        def energy(r: float, two: np.ndarray = two, part: float = scale[0] / scale.sum()) -> float:
            positions = np.array([[0.0, 0.0, 0.0], [r, 0.0, 0.0]])
            return part * by_hand(two, positions, np.zeros((3, 3)), [False] * 3, potential)

        for shift in shifts:
            r_ij = atoms.positions[j] + shift - atoms.positions[i]
            r = float(np.linalg.norm(r_ij))
            if 0 < r < potential.cutoff:
                slope = (energy(r + 1e-4) - energy(r - 1e-4)) / 2e-4
                virials[i] += np.outer(r_ij, r_ij) * slope / r
    return virials


def test_a_sum_over_pairs() -> None:
    atoms, potential = crystal(), morse_potential(ELEMENTS)
    atoms.calc = EqnetCalculator(potential, dtype="float64")
    found = atoms.get_stresses(voigt=False) * atoms.get_volume()
    expected = pairs(atoms, potential)
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())
    np.testing.assert_allclose(atoms.get_stresses().sum(0), atoms.get_stress(), atol=1e-13)
    assert np.abs(found[0] - found[1]).max() > 0.01 * np.abs(found).max()
    atoms.pbc = (True, True, False)
    with pytest.raises(PropertyNotImplementedError, match="has no volume"):
        atoms.get_stresses()


def learned_frames(config: Any, rngs: nnx.Rngs) -> LearnedFrames:
    backbone = MODELS["tensornet"][1](config, rngs=rngs)
    vectors = EGenNetConfig(ELEMENTS, r_max=3.0, num_channels=2, num_interactions=1)
    return LearnedFrames(backbone, vectors, rngs=rngs)


@pytest.mark.parametrize("name", ["mace", "tensornet", "local_frames", "learned frames"])
def test_the_sum_is_the_stress(name: str) -> None:
    config_class, make = MODELS.get(name, (MODELS["tensornet"][0], learned_frames))
    config = config_class(ELEMENTS, r_max=3.0, num_channels=4, num_interactions=1)
    one = [1.0] * len(ELEMENTS)
    potential = Potential(
        make(config, rngs=nnx.Rngs(0)), elements=ELEMENTS, cutoff=3.0,
        atomic_energies=one, scale=one, shift=one,
    )  # fmt: skip
    atoms = crystal()
    atoms.calc = EqnetCalculator(potential)
    stress = atoms.get_stress()
    stresses = atoms.get_stresses()
    assert stresses.shape == (2, 6) and np.abs(stresses).max() > 0
    size = np.abs(stresses).max()
    np.testing.assert_allclose(stresses.sum(0), stress, atol=1e-5 * size)
    assert np.abs(stresses[0] - stresses[1]).max() > 0.01 * size
    other = atoms[[1, 0]]
    other.calc = atoms.calc
    np.testing.assert_allclose(other.get_stresses(), stresses[[1, 0]], atol=1e-5 * size)
    turn, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))
    other.set_cell(other.cell.array @ turn.T, scale_atoms=False)
    other.positions = other.positions @ turn.T
    expected = turn @ atoms.get_stresses(voigt=False)[[1, 0]] @ turn.T
    np.testing.assert_allclose(other.get_stresses(voigt=False), expected, atol=1e-4 * size)
