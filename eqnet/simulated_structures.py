"""The structures of a simulation: what dynamics needs of them, and what it gives back of each.

Dynamics knows one row of atoms, padding at its end; here is where each structure is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress

from eqnet.data.frame import Frame, from_atoms
from eqnet.ensembles import CONSERVING, Ensemble
from eqnet.errors import InputError
from eqnet.integrators import Phase
from eqnet.motion import Bodies, State, make_bodies
from eqnet.potential import Potential
from eqnet.trajectory import Snapshot
from eqnet.velocities import degrees_of_freedom, fixed_atoms
from eqnet.verlet_list import check_structure


class Structures:
    """S structures that move side by side, N atoms with padding; they are copied.

    Args:
        atoms: one structure with its velocities, or a list of them.
        potential: the model.
        ensemble: of the dynamics.

    Attributes:
        single: whether it is one structure and no list.
        atoms: the structures.
        frames: likewise.
        reference: energies that the model adds to what it learned, [S] eV.
        freedom: degrees of freedom, [S].

    Raises:
        InputError: no structure, one that the model does not know, a constraint other than
            FixAtoms, an ensemble that does not suit a structure.
    """

    def __init__(
        self, atoms: Atoms | Sequence[Atoms], potential: Potential, ensemble: Ensemble
    ) -> None:
        self.single = isinstance(atoms, Atoms)
        self.atoms = [atoms.copy()] if isinstance(atoms, Atoms) else [a.copy() for a in atoms]
        if not self.atoms:
            raise InputError("there are no structures to simulate")
        name, elements = "" if self.single else "structures", potential.elements
        self.frames = [from_atoms(a, file=name, index=i) for i, a in enumerate(self.atoms)]
        for own, frame in zip(self.atoms, self.frames, strict=True):
            check_structure(frame, elements)
            _check_ensemble(own, ensemble)
        species = [np.searchsorted(elements, frame.numbers) for frame in self.frames]
        self.reference = np.array([potential.reference_energy(s) for s in species])
        self.freedom = _freedom(self.atoms, ensemble)

    @property
    def sizes(self) -> list[int]:
        """Atoms of each structure."""
        return list(map(len, self.atoms))

    def one(self, values: Any) -> Any:
        """Values [..., S], without the last axis for a single structure."""
        return values[..., 0] if self.single else values

    def temperature(self, kinetic: Any) -> Any:
        """Temperature in K of a kinetic energy in eV; 0 where nothing can move."""
        freedom = self.one(np.maximum(self.freedom, 1))
        return 2 * np.asarray(kinetic) / (freedom * units.kB)

    # -------------------------------------------------------------------------------- to the device

    def bodies(self, size: int) -> Bodies:
        """The atoms, N = size; those that are fixed have infinite mass."""
        masses = [np.where(fixed_atoms(a), np.inf, a.get_masses()) for a in self.atoms]
        return make_bodies(masses, self.freedom, size)

    def state(self, size: int, bath: Any) -> State:
        """Where they are and how they move at the start, N = size; fixed atoms do not."""
        velocities = [
            np.where(fixed_atoms(a)[:, None], 0.0, a.get_velocities()) for a in self.atoms
        ]
        positions = [frame.positions for frame in self.frames]
        cells = np.stack([frame.cell for frame in self.frames])
        return State(joined(positions, size), joined(velocities, size), cells, bath)

    # ------------------------------------------------------------------------------ from the device

    def moved(self, state: State) -> list[Frame]:
        """The structures where they are now."""
        positions = self._parts(np.array(state.positions))
        return [
            replace(frame, positions=own, cell=cell)
            for frame, own, cell in zip(self.frames, positions, np.array(state.cell), strict=True)
        ]

    def snapshot(self, step: int, frames: Phase, index: int, structure: int) -> Snapshot:
        """A structure in one of the frames [F, ...] that were kept."""

        def own(values: np.ndarray) -> np.ndarray:
            return np.array(self._parts(values[index])[structure])

        cell, stress = np.array(frames.cell[index, structure]), None
        if frames.push.virial is not None:
            stress = np.array(frames.push.virial[index, structure]) / abs(np.linalg.det(cell))
        energy = float(own(frames.push.node_energy).sum()) + float(self.reference[structure])
        return Snapshot(
            step=step,
            positions=own(frames.positions),
            velocities=own(frames.velocities),
            forces=own(frames.push.forces),
            energy=energy,
            cell=cell,
            stress=stress,
            structure=structure,
        )

    def atoms_of(self, frame: Snapshot) -> Atoms:
        """ASE atoms of a snapshot with velocities, energy, forces, and stress if it is known."""
        atoms = self.atoms[frame.structure].copy()
        atoms.set_cell(frame.cell)
        atoms.positions[:] = frame.positions
        atoms.arrays["momenta"] = frame.velocities * atoms.get_masses()[:, None]
        results: dict[str, Any] = {"energy": frame.energy, "free_energy": frame.energy}
        if frame.stress is not None:
            results["stress"] = full_3x3_to_voigt_6_stress(frame.stress)
        atoms.calc = SinglePointCalculator(atoms, **results, forces=frame.forces)
        return atoms

    def _parts(self, values: np.ndarray) -> list[np.ndarray]:
        """Values of all atoms [N, ...], structure by structure."""
        ends = np.cumsum(self.sizes)
        return np.split(values[: ends[-1]], ends[:-1])


def joined(parts: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Vectors of structures one after the other, [size, 3], zeros at the end."""
    out = np.zeros((size, 3))
    values = np.concatenate(parts)
    out[: len(values)] = values
    return out


def _check_ensemble(atoms: Atoms, ensemble: Ensemble) -> None:
    """Refuse an ensemble that does not suit a structure."""
    fixed = fixed_atoms(atoms)
    if ensemble == "npt" and not atoms.pbc.all():
        raise InputError(
            "npt needs a structure that is periodic in three directions, not "
            f"pbc = {[bool(axis) for axis in atoms.pbc]}; choose another ensemble"
        )
    if ensemble == "npt" and fixed.any():
        raise InputError(
            f"npt moves all atoms with the cell, and {int(fixed.sum())} of them are fixed: "
            "remove the constraint or choose another ensemble"
        )
    if ensemble == "bussi" and not atoms.get_velocities()[~fixed].any():
        raise InputError(
            "bussi rescales velocities, and here all are zero: draw them, or choose "
            "another ensemble"
        )


def _freedom(structures: Sequence[Atoms], ensemble: Ensemble) -> np.ndarray:
    """Independent velocities of each structure, [S]."""
    conserving = ensemble in CONSERVING
    counts = [degrees_of_freedom(atoms, conserving=conserving) for atoms in structures]
    if ensemble in ("bussi", "nose_hoover", "npt") and min(counts) < 1:
        raise InputError(f"{ensemble} has nothing to heat: no atom can move by itself")
    return np.array(counts)
