"""Work between near structures against closed forms and effective medium theory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from copper import copper

from eqnet.data.frame import Frame
from eqnet.data.frame_pairs import forces_slope, stress_slope, works


def springs(number: int, rng: np.random.Generator, *, stiffness: float = 3.0) -> list[Frame]:
    """Atoms bound to the places of a skewed lattice: E = k/2 sum u^2, F = -k u, anywhere."""
    cell = np.array([[4.0, 0, 0], [1.0, 5.0, 0], [0, 0.5, 6.0]])
    places = rng.random((4, 3)) @ cell
    frames = []
    for index in range(number):
        moved = rng.normal(scale=0.2, size=(4, 3))
        moved -= moved.mean(axis=0)
        images = rng.integers(-2, 3, size=(4, 3)) @ cell
        frames.append(
            Frame(
                np.array([6, 6, 8, 8]), places + moved + images, cell, np.ones(3, bool),
                energy=0.5 * stiffness * float((moved**2).sum()), forces=-stiffness * moved,
                index=index,
            )
        )  # fmt: skip
    return frames


def dimers(number: int, rng: np.random.Generator) -> list[Frame]:
    """Springs of length 1.1 A, turned and moved at random."""
    frames = []
    for index in range(number):
        axis = rng.normal(size=3)
        axis /= np.linalg.norm(axis)
        length = 1.1 + rng.normal(scale=0.1)
        force = 20.0 * (length - 1.1) * axis
        frames.append(
            Frame(
                np.array([6, 8]), np.array([0 * axis, length * axis]) + rng.normal(size=3),
                np.zeros((3, 3)), np.zeros(3, bool),
                energy=10.0 * (length - 1.1) ** 2, forces=np.array([force, -force]), index=index,
            )
        )  # fmt: skip
    return frames


@pytest.mark.parametrize("make", [springs, dimers])
def test_trapezoidal_rule_is_exact_for_quadratic_energies(make) -> None:
    found = works(make(30, np.random.default_rng(0)))
    assert len(found.energy) >= 15 and np.abs(found.energy).max() > 0.01
    np.testing.assert_allclose(found.forces, found.energy, atol=1e-10)
    slope = forces_slope(found)
    assert slope is not None
    assert slope.value == pytest.approx(1) and slope.correlation == pytest.approx(1)


def test_pairs_are_named_by_their_frames() -> None:
    frames = springs(12, np.random.default_rng(1))
    found = works(frames)
    for a, b, energy in zip(found.first, found.second, found.energy, strict=True):
        difference = (frames[int(b)].energy or 0) - (frames[int(a)].energy or 0)
        assert energy == pytest.approx(difference)


def test_pressure_is_the_slope_of_energy_and_volume() -> None:
    """E = B/2 (V - V0)^2 / V0, so that the stress is B (V - V0) / V0 times the unit matrix."""
    frames = []
    for index, scale in enumerate(np.linspace(0.97, 1.03, 20)):
        volume, rest = (4 * scale) ** 3, 4.0**3
        frames.append(
            Frame(
                np.array([29, 29]), scale * np.array([[0.0, 0, 0], [2, 2, 2]]),
                4 * scale * np.eye(3), np.ones(3, bool), forces=np.zeros((2, 3)), index=index,
                energy=0.5 * 0.8 * (volume - rest) ** 2 / rest,
                stress=0.8 * (volume - rest) / rest * np.eye(3),
            )
        )  # fmt: skip
    slope = stress_slope(works(frames))
    assert slope is not None
    assert slope.value == pytest.approx(1, rel=1e-3) and slope.correlation > 0.9999


def test_effective_medium_theory_agrees_with_itself() -> None:
    found = works(copper())
    forces, stress = forces_slope(found), stress_slope(found)
    assert forces is not None and stress is not None
    assert forces.value == pytest.approx(1, rel=0.1) and forces.correlation > 0.98
    assert stress.value == pytest.approx(1, rel=0.1) and stress.correlation > 0.98


def test_signs_and_virials_show() -> None:
    frames = [
        replace(f, forces=-f.forces, stress=-f.volume * f.stress)
        for f in copper()
        if f.forces is not None and f.stress is not None
    ]
    forces = forces_slope(works(frames))
    assert forces is not None and forces.value == pytest.approx(-1, rel=0.1)
    frames = [replace(f, forces=-f.forces) for f in frames if f.forces is not None]
    stress, virial = stress_slope(works(frames)), stress_slope(works(frames), virial=True)
    assert stress is not None and stress.correlation < -0.98
    assert virial is not None and virial.value == pytest.approx(1, rel=0.1)


def test_structures_without_partners_give_no_slope() -> None:
    frames = springs(3, np.random.default_rng(2))
    assert forces_slope(works(frames)) is None and stress_slope(works(frames)) is None
    bare = [replace(f, forces=None) for f in springs(20, np.random.default_rng(3))]
    assert not len(works(bare).energy)
