"""What a simulation gives: energies of every step, and some steps in full."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

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


class Line:
    """Straight lines through values that arrive in blocks, by least squares, in constant memory."""

    def __init__(self) -> None:
        self.count = 0
        self.start: tuple[Any, Any] = (0.0, 0.0)  # sums of small numbers lose no digits
        self.sums: list[Any] = [0.0] * 5  # of x, x x, y, y y, x y

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Take in x [B] and values [B, S] of S lines."""
        if not self.count:
            self.start = x[0], y[0]
        u, v = x - self.start[0], y - self.start[1]
        self.count += len(u)
        new = [u.sum(), u @ u, v.sum(axis=0), (v * v).sum(axis=0), u @ v]
        self.sums = [old + term for old, term in zip(self.sums, new, strict=True)]

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation of all values of all lines."""
        y, yy = (self.sums[k] / max(self.count, 1) for k in (2, 3))
        means, variances = self.start[1] + y, np.maximum(yy - y**2, 0)
        return float(np.mean(means)), float(np.sqrt(np.mean(variances) + np.var(means)))

    def fit(self) -> tuple[np.ndarray, np.ndarray]:
        """Slopes [S] and standard deviations from the lines [S]; zero for less than two values."""
        x, xx, y, yy, xy = self.sums
        n = max(self.count, 1)
        spread, both, own = xx - x * x / n, xy - x * y / n, yy - y * y / n
        if self.count < 2 or spread == 0:
            return np.zeros_like(own), np.zeros_like(own)
        return both / spread, np.sqrt(np.maximum(own - both**2 / spread, 0) / n)


def drift(time_fs: np.ndarray, energy: np.ndarray, num_atoms: int) -> tuple[float, float]:
    """Straight line through a conserved energy (eV) by least squares.

    Returns:
        The slope in meV per atom and ps, and the standard deviation from the line in meV per atom.
    """
    line = Line()
    line.add(time_fs, energy[:, None])
    slope, noise = (1000 * float(value[0]) / num_atoms for value in line.fit())
    return 1000 * slope, noise
