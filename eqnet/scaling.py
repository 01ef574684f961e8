"""Shift and scale of a potential from its training structures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from eqnet.data.frame import Frame


def composition(frames: Sequence[Frame], elements: Sequence[int]) -> np.ndarray:
    """Atoms of each element in each frame, [frames, Z] float64."""
    return np.array([[np.sum(frame.numbers == z) for z in elements] for frame in frames], float)


def fit_shift(
    frames: Sequence[Frame], elements: Sequence[int], atomic_energies: np.ndarray
) -> tuple[np.ndarray, float]:
    """Energy per atom of each element beyond the atomic energies.

    The mean over all atoms, plus the least-squares correction for each element as far as the
    compositions of the frames tell elements apart.

    Returns:
        Shift [Z] in eV, and the rms of what remains of the energies, in eV per atom.
    """
    labelled = [frame for frame in frames if frame.energy is not None and frame.energy_weight > 0]
    if not labelled:
        return np.zeros(len(elements)), 0.0
    counts = composition(labelled, elements)
    atoms = counts.sum(1)
    energies = np.array([frame.energy for frame in labelled]) - counts @ atomic_energies
    mean = float(np.mean(energies / atoms))
    rest = (energies - mean * atoms) / atoms
    correction = np.linalg.lstsq(counts / atoms[:, None], rest, rcond=1e-3)[0]
    left = rest - counts / atoms[:, None] @ correction
    return mean + correction, float(np.sqrt(np.mean(left**2)))


def force_scale(
    frames: Sequence[Frame],
    elements: Sequence[int],
    atomic_energies: np.ndarray,
    shift: np.ndarray,
) -> float:
    """Root mean square of the force components; without forces, of the energies per atom left."""
    forces = [f.forces for f in frames if f.forces is not None and f.forces_weight > 0]
    if forces:
        scale = math.sqrt(np.mean(np.concatenate(forces) ** 2))
    else:
        labelled = [f for f in frames if f.energy is not None]
        counts = composition(labelled, elements)
        energies = np.array([f.energy for f in labelled]) - counts @ (atomic_energies + shift)
        scale = math.sqrt(np.mean((energies / counts.sum(1)) ** 2)) if labelled else 0.0
    return scale if scale > 1e-6 else 1.0
