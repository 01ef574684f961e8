"""Copper of ASE's effective medium theory: rattled and strained, labels in any units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from eqnet.data.frame import Frame, from_atoms


@cache
def copper(number: int = 32, strain: float = 0.015, rattle: float = 0.03) -> tuple[Frame, ...]:
    """Cells of 32 atoms around equilibrium with energy, forces and stress."""
    from ase.build import bulk
    from ase.calculators.emt import EMT

    rng, frames = np.random.default_rng(5), []
    for index in range(number):
        atoms = bulk("Cu", a=3.59, cubic=True).repeat(2)
        change = rng.normal(scale=strain, size=(3, 3)) * (index % 2)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.5 * (change + change.T)), scale_atoms=True)
        atoms.positions += rng.normal(scale=rattle, size=(32, 3))
        atoms.calc = EMT()
        frames.append(
            replace(
                from_atoms(atoms, file="cu.xyz", index=index),
                energy=float(atoms.get_potential_energy()),
                forces=np.array(atoms.get_forces()),
                stress=np.array(atoms.get_stress(voigt=False)),
            )
        )
    return tuple(frames)


def converted(
    frames: Sequence[Frame],
    *,
    length: float = 1.0,
    energy: float = 1.0,
    forces: float = 1.0,
    stress: float = 1.0,
) -> list[Frame]:
    """The same frames in units that are so much in angstrom, eV, eV/A and eV/A^3."""
    return [
        replace(
            frame,
            positions=frame.positions / length,
            cell=frame.cell / length,
            energy=None if frame.energy is None else frame.energy / energy,
            forces=None if frame.forces is None else frame.forces / forces,
            stress=None if frame.stress is None else frame.stress / stress,
        )
        for frame in frames
    ]
