"""Frame: one structure with its labels, in eV and angstrom, the host side's only currency."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms


@dataclass(frozen=True, eq=False)
class Frame:
    """One structure with the labels that are known; n atoms, arrays are numpy float64.

    A label that is absent is None and weighs nothing. Weights multiply the loss of that label.
    """

    numbers: np.ndarray  # [n] int, atomic numbers
    positions: np.ndarray  # [n, 3] angstrom, as they stand in the file
    cell: np.ndarray  # [3, 3] rows are lattice vectors
    pbc: np.ndarray  # [3] bool
    energy: float | None = None  # eV
    forces: np.ndarray | None = None  # [n, 3] eV/A
    stress: np.ndarray | None = None  # [3, 3] eV/A^3, dE/dstrain / V
    config_type: str = "Default"
    energy_weight: float = 1.0
    forces_weight: float = 1.0
    stress_weight: float = 1.0
    tensors: dict[str, np.ndarray] = field(default_factory=dict)  # by name, see `tensor_labels`
    file: str = ""
    index: int = 0  # position in the file, from 0
    info: dict[str, Any] = field(default_factory=dict)  # other values of the structure
    arrays: dict[str, np.ndarray] = field(default_factory=dict)  # other values of the atoms

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def volume(self) -> float:
        """Volume in A^3, 0 unless all three directions are periodic."""
        return abs(float(np.linalg.det(self.cell))) if self.pbc.all() else 0.0

    @property
    def name(self) -> str:
        """How errors name this frame: file and position."""
        return f"{self.file}, frame {self.index}" if self.file else f"frame {self.index}"


def to_atoms(frame: Frame) -> Atoms:
    """Make ASE atoms that `read` turns into the same frame: labels are under REF_*."""
    from ase import Atoms

    atoms = Atoms(frame.numbers, positions=frame.positions, cell=frame.cell, pbc=frame.pbc)
    atoms.info.update(frame.info)
    for name, array in frame.arrays.items():
        atoms.set_array(name, array)
    if frame.config_type != "Default":
        atoms.info["config_type"] = frame.config_type
    for label in ("energy", "forces", "stress"):
        if getattr(frame, f"{label}_weight") != 1.0:
            atoms.info[f"config_{label}_weight"] = getattr(frame, f"{label}_weight")
    if frame.energy is not None:
        atoms.info["REF_energy"] = frame.energy
    if frame.forces is not None:
        atoms.set_array("REF_forces", frame.forces)
    if frame.stress is not None:
        atoms.info["REF_stress"] = frame.stress.reshape(9)
    return atoms


def from_atoms(atoms: Atoms, *, file: str = "", index: int = 0) -> Frame:
    """Take the structure of ASE atoms and its charge; `labels.label_frames` reads labels too."""
    return Frame(
        numbers=np.asarray(atoms.numbers, dtype=np.int64).copy(),
        positions=np.asarray(atoms.positions, dtype=np.float64).copy(),
        cell=np.asarray(atoms.cell.array, dtype=np.float64).copy(),
        pbc=np.asarray(atoms.pbc, dtype=bool).copy(),
        file=file,
        index=index,
        info={name: atoms.info[name] for name in ("charge",) if name in atoms.info},
    )
