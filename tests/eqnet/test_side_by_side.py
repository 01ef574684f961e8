"""Structures that move side by side move as each does alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase.build import molecule
from dynamics import ethanol, hot, joined
from morse import morse_potential

from eqnet.simulate import Simulation

POTENTIAL = morse_potential()


def test_side_by_side_is_alone() -> None:
    structures = [hot(molecule("H2O"), 300, 1), hot(ethanol(), 500, 2)]
    options: dict[str, Any] = {"temperature": 400, "friction": 0.05}
    together = Simulation(
        POTENTIAL, structures, ensemble="langevin", dtype="float64", seed=3, **options
    )
    both = joined(together, 30, 30)
    for s, atoms in enumerate(structures):
        alone = Simulation(
            POTENTIAL, atoms, ensemble="langevin", dtype="float64", seed=3 + s, **options
        )
        one = joined(alone, 30, 30)
        frame, twin = [f for f in both.frames if f.structure == s][-1], one.frames[-1]
        np.testing.assert_allclose(frame.positions, twin.positions, atol=1e-11, rtol=0)
        np.testing.assert_allclose(both.conserved[:, s], one.conserved, atol=1e-9, rtol=0)
        np.testing.assert_allclose(
            together.temperature(both.kinetic)[:, s], alone.temperature(one.kinetic), rtol=1e-9
        )
        assert together.atoms_of(frame).symbols.get_chemical_formula() == (
            atoms.symbols.get_chemical_formula()
        )
