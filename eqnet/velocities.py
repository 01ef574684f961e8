"""Velocities to begin with, and how many of them are independent."""

from __future__ import annotations

import numpy as np
from ase import Atoms, units
from ase.constraints import FixAtoms

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


def draw_velocities(
    atoms: Atoms, temperature: float, seed: int = 0, *, conserving: bool = True
) -> None:
    """Give atoms Maxwell-Boltzmann velocities of exactly this temperature; fixed atoms none.

    Args:
        atoms: get the velocities.
        temperature: K, over the degrees of freedom of `degrees_of_freedom(conserving=conserving)`.
        seed: of the velocities.
        conserving: whether the dynamics to come conserves momentum. If so, the total momentum is
            zero unless atoms are fixed, and so is the angular momentum of a molecule (no periodic
            axis); a heat bath moves and turns the whole like any other degree of freedom.
    """
    rng = np.random.default_rng(seed)
    fixed = fixed_atoms(atoms)
    spread = np.sqrt(units.kB * temperature * atoms.get_masses())[:, None]
    momenta = spread * rng.standard_normal((len(atoms), 3))
    atoms.set_momenta(np.where(fixed[:, None], 0.0, momenta))
    if conserving and not fixed.any():
        _stop_drift_and_rotation(atoms)
    wanted = 0.5 * degrees_of_freedom(atoms, conserving=conserving) * units.kB * temperature
    if wanted > 0:
        atoms.set_momenta(atoms.get_momenta() * np.sqrt(wanted / atoms.get_kinetic_energy()))


def _stop_drift_and_rotation(atoms: Atoms) -> None:
    """Take out the total momentum, and of a molecule the angular momentum."""
    masses, velocities = atoms.get_masses()[:, None], atoms.get_velocities()
    velocities -= (masses * velocities).sum(axis=0) / masses.sum()
    if not atoms.pbc.any() and len(atoms) > 1:
        arms = atoms.positions - atoms.get_center_of_mass()
        inertia = (masses[:, :, None] * _inertia(arms)).sum(axis=0)
        momentum = np.cross(arms, masses * velocities).sum(axis=0)
        # A linear molecule has no inertia about its axis, and no momentum either.
        velocities -= np.cross(np.linalg.pinv(inertia, rcond=1e-9) @ momentum, arms)
    atoms.set_velocities(velocities)


def _inertia(arms: np.ndarray) -> np.ndarray:
    """Tensor of inertia of unit masses at `arms` [n, 3], [n, 3, 3]."""
    squares = (arms**2).sum(axis=1)[:, None, None]
    return squares * np.eye(3) - arms[:, :, None] * arms[:, None, :]


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
