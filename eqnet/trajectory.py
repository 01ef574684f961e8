"""What a simulation gives: energies of every step, and some steps in full."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

LOUD = 10.0  # meV/atom of fluctuation about a conserved energy, a hundred times a sound run's


class Snapshot(NamedTuple):
    """One step of a structure in full, n atoms, float64."""

    step: int
    positions: np.ndarray  # [n, 3] angstrom, not wrapped
    velocities: np.ndarray  # [n, 3] in ASE's units
    forces: np.ndarray  # [n, 3] eV/angstrom
    energy: float  # potential energy, eV
    cell: np.ndarray  # [3, 3] rows are lattice vectors
    stress: np.ndarray | None = None  # [3, 3] eV/angstrom^3, ASE's sign; where the cell changes
    structure: int = 0  # of several that move side by side


@dataclass(frozen=True)
class Block:
    """Consecutive steps, B of them; energies in eV. A list of S structures has [B, S] for [B]."""

    step: np.ndarray  # [B] int
    potential: np.ndarray  # [B]
    kinetic: np.ndarray  # [B]
    heat: np.ndarray  # [B] put in by the bath; with pressure, less pressure times volume
    frames: list[Snapshot]
    seconds: float  # wall-clock time it took, compilation included
    volume: np.ndarray | None = None  # [B] angstrom^3, where the cell changes
    pressure: np.ndarray | None = None  # [B] GPa, with that of the moving atoms; likewise

    @property
    def total(self) -> np.ndarray:
        """Potential and kinetic energy."""
        return self.potential + self.kinetic

    @property
    def conserved(self) -> np.ndarray:
        """What an exact integrator keeps constant: the total energy less the heat put in."""
        return self.total - self.heat


def drift(time_fs: np.ndarray, energy: np.ndarray, num_atoms: int) -> tuple[float, float]:
    """Straight line through a conserved energy (eV) by least squares.

    Returns:
        The slope in meV per atom and ps, and the standard deviation from the line in meV per atom.
    """
    if len(time_fs) < 2:
        return 0.0, 0.0
    times, values = time_fs - time_fs.mean(), 1000 * (energy - energy.mean()) / num_atoms
    slope = float(times @ values / (times @ times))
    return 1000 * slope, float(np.std(values - slope * times))
