"""Shift and scale of a potential from its training structures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from eqnet.data.frame import Frame


def composition(frames: Iterable[Frame], elements: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Atoms of each element in each frame with an energy, [frames, Z] float64, and the energies."""
    known, kind = np.asarray(elements), np.dtype((np.float64, len(elements) + 1))
    rows = (
        np.append((frame.numbers[:, None] == known).sum(axis=0), frame.energy)
        for frame in frames
        if frame.energy is not None
    )
    table = np.fromiter(rows, dtype=kind)
    return table[:, :-1], table[:, -1]


def fit_shift(
    frames: Sequence[Frame], elements: Sequence[int], atomic_energies: np.ndarray
) -> tuple[np.ndarray, float]:
    """Energy per atom of each element beyond the atomic energies.

    The mean over all atoms, plus the least-squares correction for each element as far as the
    compositions of the frames tell elements apart.

    Returns:
        Shift [Z] in eV, and the rms of what remains of the energies, in eV per atom.
    """
    counts, totals = composition((f for f in frames if f.energy_weight > 0), elements)
    if not len(counts):
        return np.zeros(len(elements)), 0.0
    atoms = counts.sum(1)
    energies = totals - counts @ atomic_energies
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
    squares = number = 0
    for frame in frames:
        if frame.forces is not None and frame.forces_weight > 0:
            squares += float((frame.forces**2).sum())
            number += frame.forces.size
    if number:
        scale = math.sqrt(squares / number)
    else:
        counts, totals = composition(frames, elements)
        energies = totals - counts @ (atomic_energies + shift)
        scale = math.sqrt(np.mean((energies / counts.sum(1)) ** 2)) if len(counts) else 0.0
    return scale if scale > 1e-6 else 1.0
