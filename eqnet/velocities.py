"""Velocities to begin with, and how many of them are independent."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary, ZeroRotation

from eqnet.errors import InputError


def fixed_atoms(atoms: Atoms) -> np.ndarray:
    """Which atoms FixAtoms constraints hold, [n] bool.

    Raises:
        InputError: another kind of constraint.
    """
    fixed = np.zeros(len(atoms), bool)
    for constraint in atoms.constraints:
        if not isinstance(constraint, FixAtoms):
            raise InputError(
                f"the constraint {type(constraint).__name__} is not supported in dynamics on the "
                "device, only FixAtoms; use ASE's dynamics with EqnetCalculator"
            )
        fixed[constraint.index] = True
    return fixed


def draw_velocities(atoms: Atoms, temperature: float, seed: int = 0) -> None:
    """Give atoms Maxwell-Boltzmann velocities; fixed atoms none.

    The total momentum is zero unless atoms are fixed, and so is the angular momentum of a molecule
    (no periodic axis).
    """
    rng = np.random.default_rng(seed)
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=rng)
    if fixed_atoms(atoms).any():
        return
    Stationary(atoms, preserve_temperature=False)
    if not atoms.pbc.any() and len(atoms) > 1:
        ZeroRotation(atoms, preserve_temperature=False)


def degrees_of_freedom(atoms: Atoms, *, conserving: bool) -> int:
    """Independent velocities: three per mobile atom, less those that dynamics holds at zero.

    Args:
        atoms: with velocities.
        conserving: whether the dynamics conserves momentum (and angular momentum, of molecules);
            what is zero at the start then stays zero and carries no heat.
    """
    fixed = fixed_atoms(atoms)
    count = 3 * int((~fixed).sum())
    if fixed.any() or not conserving:
        return count
    momenta = atoms.get_momenta()
    scale = max(float(np.abs(momenta).max(initial=0.0)), 1e-12)
    if np.abs(momenta.sum(axis=0)).max() < 1e-6 * scale:
        count -= 3
        if not atoms.pbc.any() and len(atoms) > 1:
            arms = np.linalg.norm(atoms.positions - atoms.get_center_of_mass(), axis=1).max()
            if np.abs(atoms.get_angular_momentum()).max() < 1e-6 * scale * max(arms, 1.0):
                linear = atoms.get_moments_of_inertia()[0] < 1e-6
                count -= 2 if linear else 3
    return max(count, 0)
