"""Labels: energies, forces and stresses of frames, from what stands in a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from eqnet.data.frame import Frame, from_atoms
from eqnet.data.label_choice import STRUCTURE, UNITS, WEIGHTS, Seen, Source, Values, values_of
from eqnet.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms


@dataclass(frozen=True)
class LabelRow:
    """One line of the table shown before training."""

    label: str
    key: str
    source: str
    count: int
    minimum: float
    maximum: float
    unit: str


@dataclass(frozen=True)
class LabelReport:
    """What was read from a file: a row per label, and notes a person should see."""

    file: str
    num_frames: int
    rows: list[LabelRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)  # keys that look like labels, and are not read


def label_frames(
    images: Iterable[tuple[Atoms, str, int]],
    seen: Seen,
    sources: dict[str, Source | None],
    notes: list[str],
) -> Iterator[Frame]:
    """Turn ASE structures, each with its file and index, into frames with labels, one at a time.

    A note about stresses that mean nothing, without three periodic directions, comes at the end.

    Raises:
        InputError: a value is not what it should be.
    """
    flat, first = 0, 0
    for atoms, file, index in images:
        frame = _frame(atoms, index, file, seen, sources)
        if frame.stress is not None and not frame.pbc.all():
            first = first if flat else index
            flat += 1
            frame = replace(frame, stress=None)
        yield frame
    if flat:
        notes.append(
            f"stress is ignored in {flat} frames that are not periodic in three directions "
            f"(first: frame {first})"
        )


class Tally:
    """How many frames have each label and between which values, as frames go by."""

    def __init__(self) -> None:
        self.frames = 0
        self._count = dict.fromkeys(UNITS, 0)
        self._low, self._high = dict.fromkeys(UNITS, np.inf), dict.fromkeys(UNITS, -np.inf)
        self._without: dict[str, int] = {}  # index of the first frame without it

    def add(self, frame: Frame) -> None:
        """Count one more frame."""
        self.frames += 1
        for label in UNITS:
            value = getattr(frame, label)
            if value is None:
                self._without.setdefault(label, frame.index)
            else:
                self._count[label] += 1
                self._low[label] = min(self._low[label], float(np.min(value)))
                self._high[label] = max(self._high[label], float(np.max(value)))

    def report(self, file: str, sources: dict[str, Source | None], notes: list[str]) -> LabelReport:
        """Say what the frames hold; labels absent in some frames are noted."""
        rows = [self._row(label, source) for label, source in sources.items()
                if source is not None and self._count[label]]  # fmt: skip
        missing = [
            f"{row.label} is missing in {self.frames - row.count} of {self.frames} frames "
            f"(first: frame {self._without[row.label]}); there it weighs nothing"
            for row in rows
            if row.count < self.frames
        ]
        return LabelReport(file, self.frames, rows, [*notes, *missing])

    def _row(self, label: str, source: Source) -> LabelRow:
        name = f"{source.place}, -virial/volume" if source.virial else source.place
        low, high = self._low[label], self._high[label]
        return LabelRow(label, source.key, name, self._count[label], low, high, UNITS[label])


def _frame(
    atoms: Atoms,
    index: int,
    file: str,
    seen: Seen,
    sources: dict[str, Source | None],
) -> Frame:
    where, values = seen.where(file, index), values_of(atoms)
    frame = from_atoms(atoms, file=file, index=index)
    found: dict[str, Any] = {}
    used: set[str] = {"config_type", "config_weight", *WEIGHTS.values()}
    for label, source in sources.items():
        if source is None:
            continue
        used.add(source.key)
        raw = values.get((source.place, source.key))
        if raw is not None:
            found[label] = _value(label, raw, source, atoms, f"{where}: {source.key}")
    weight = _weight(values, "config_weight", where)
    return replace(
        frame,
        **found,
        config_type=str(values.get((STRUCTURE, "config_type"), "Default")),
        **{f"{k}_weight": weight * _weight(values, name, where) for k, name in WEIGHTS.items()},
        info={k: v for k, v in atoms.info.items() if k not in used},
        arrays={k: v for k, v in atoms.arrays.items() if k not in used | {"numbers", "positions"}},
    )


def _weight(values: Values, name: str, where: str) -> float:
    raw = values.get((STRUCTURE, name), 1.0)
    weight = finite_numbers(raw, f"{where}: {name}")
    if weight.size != 1 or weight.item() < 0:
        raise InputError(f"{where}: {name} is {raw}, a number of 0 or more is wanted")
    return float(weight.item())


def finite_numbers(raw: Any, where: str) -> np.ndarray:
    """The value as finite float64 numbers, or a sentence."""
    array = np.asarray(raw)
    if array.dtype.kind not in "iuf":
        raise InputError(f"{where} is {str(raw)[:40]!r}, which is not a number; correct the file")
    array = array.astype(np.float64)
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        at = f" of atom {bad[0][0]}, column {bad[0][1]}," if array.ndim == 2 else ""
        text = f"{where}{at} is {array[tuple(bad[0])]}, a finite number is wanted"
        raise InputError(f"{text}; correct or remove this frame")
    return array


def _value(label: str, raw: Any, source: Source, atoms: Atoms, where: str) -> Any:
    numbers = finite_numbers(raw, where)
    if label == "energy":
        if numbers.size != 1:
            raise InputError(f"{where} has shape {numbers.shape}, one number in eV is wanted")
        return float(numbers.item())
    if label == "forces":
        if numbers.shape != (len(atoms), 3):
            wanted = f"({len(atoms)}, 3), three numbers in eV/A per atom, is wanted"
            raise InputError(f"{where} has shape {numbers.shape}, {wanted}")
        return numbers
    return _stress(numbers, source, atoms, where)


def _stress(numbers: np.ndarray, source: Source, atoms: Atoms, where: str) -> np.ndarray:
    """Stress as a symmetric 3 x 3 tensor from 6 (xx yy zz yz xz xy), 9 or 3 x 3 numbers."""
    if numbers.shape == (6,):
        xx, yy, zz, yz, xz, xy = numbers
        tensor = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    elif numbers.shape in ((9,), (3, 3)):
        tensor = numbers.reshape(3, 3)
    else:
        raise InputError(
            f"{where} has shape {numbers.shape}, 6 numbers (xx yy zz yz xz xy), 9 or 3 x 3 "
            "are wanted"
        )
    asymmetry = np.abs(tensor - tensor.T).max()
    if asymmetry > 0.01 * np.abs(tensor).max() + 1e-4:
        raise InputError(
            f"{where} is not symmetric (by up to {asymmetry:.3g}); a stress is a symmetric "
            "tensor, check the order of its numbers"
        )
    tensor = 0.5 * (tensor + tensor.T)
    volume = abs(float(np.linalg.det(atoms.cell.array)))
    if source.virial:
        return -tensor / volume if volume > 0 else np.zeros((3, 3))
    return tensor
