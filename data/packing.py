"""Packing structures into one graph of fixed shapes, and their labels beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import DTypeLike

from eqnet.data.items import Item, rows_per_atom
from eqnet.data.tensor_labels import TensorKind
from eqnet.errors import InputError
from eqnet.graph import AtomGraph

Array = Any  # numpy on the host, jax on the device

SLOT_STEP = 2  # slots of a row come in multiples of this
MIN_SPLIT = 6  # fewest slots of a row where atoms have several
MAX_WASTE = 0.2  # padding of rows that is taken for their convenience
ROW_COST = 0.5  # a row, and a place in the sum over rows, costs so many slots (training, 2 cores)


class Shape(NamedTuple):
    """Fixed sizes of a graph; S = rows_per_atom. S == 1 means that row r belongs to atom r."""

    atoms: int
    structures: int
    rows: int
    slots: int
    rows_per_atom: int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Targets:
    """Labels of the structures of a graph; what is missing or padding weighs 0 and is 0."""

    energy: Array  # [G] eV, total minus reference
    forces: Array  # [N, 3] eV/A
    stress: Array  # [G, 3, 3] eV/A^3
    energy_weight: Array  # [G]
    forces_weight: Array  # [G]
    stress_weight: Array  # [G]
    num_atoms: Array  # [G] number of atoms, 1 for padding so that it can divide
    tensors: dict[str, Array] = field(default_factory=dict)  # by name [G or N, 3, ...]
    tensor_weights: dict[str, Array] = field(default_factory=dict)  # by name [G or N]


def ladder(size: int) -> int:
    """Smallest size of the ladder that holds `size`: all to 16, then steps of 6 to 12 %."""
    step = 1 << max(0, (max(size, 1) - 1).bit_length() - 4)
    return max(-(-size // step) * step, 1)


def choose_slots(counts: Iterable[np.ndarray]) -> tuple[int, int]:
    """Slots K of a row, and rows S of an atom, for structures with these neighbour counts.

    K makes slots, padding included, plus a small cost for every row smallest, as long as no more
    than a fifth of the slots is padding.
    """
    times = histogram(counts)
    times[0] += 1
    values = np.flatnonzero(times)
    times = times[values]
    top = max(int(values[-1]), 1)
    best = (np.inf, np.inf, 0, 0)
    for slots in range(SLOT_STEP, top + SLOT_STEP, SLOT_STEP):
        rows = rows_per_atom(values, slots)
        split = int(rows[-1])
        if split > 1 and slots < MIN_SPLIT:
            continue
        cost = (rows * times).sum() * (slots + ROW_COST)
        cost += times.sum() * split * ROW_COST * (split > 1)
        waste = 1 - (values * times).sum() / ((rows * times).sum() * slots)
        best = min(best, (max(float(waste), MAX_WASTE), float(cost), slots, split))
    return best[2], best[3]


def histogram(counts: Iterable[np.ndarray]) -> np.ndarray:
    """How many atoms have 0, 1, 2, ... neighbours, for structures with these counts."""
    times, rest = np.zeros(1, dtype=np.int64), iter(counts)
    while some := list(islice(rest, 10_000)):
        more = np.bincount(np.concatenate(some), minlength=len(times))
        more[: len(times)] += times
        times = more
    return times


def shape_of(items: Sequence[Item]) -> Shape:
    """Smallest shape of the ladder that holds these structures."""
    slots, split = choose_slots(item.counts for item in items)
    atoms = sum(item.num_atoms for item in items)
    rows = sum(item.num_rows(slots) for item in items)
    return make_shape(atoms, rows, len(items), slots, split)


def make_shape(atoms: int, rows: int, structures: int, slots: int, split: int) -> Shape:
    """Shape with the next sizes of the ladder for atoms and rows."""
    if split == 1:
        return Shape(ladder(atoms), structures, ladder(atoms), slots, 1)
    return Shape(ladder(atoms), structures, ladder(rows + 1), slots, split)  # one row is padding


def holds(shape: Shape, atoms: int, rows: int) -> bool:
    """Whether structures with so many atoms and rows fit into the shape."""
    return atoms <= shape.atoms and rows + (shape.rows_per_atom > 1) <= shape.rows


def pack(
    items: Sequence[Item], shape: Shape | None = None, dtype: DTypeLike = np.float32
) -> AtomGraph:
    """Pack structures into one graph of numpy arrays.

    Args:
        items: at most shape.structures; none at all make a graph of padding of a given shape.
        shape: fixed sizes; None takes the smallest of the ladder that fits.
        dtype: of positions and cells.

    Raises:
        InputError: the structures do not fit into the shape.
    """
    if shape is None and not items:
        raise InputError("there are 0 structures to pack; give at least one, or a shape")
    shape = shape_of(items) if shape is None else shape
    _check_fit(items, shape)
    graph = _padding(shape, np.dtype(dtype))
    slots = shape.slots
    atom = row = 0
    for g, item in enumerate(items):
        layout = item.rows(slots)
        atoms, rows = slice(atom, atom + item.num_atoms), slice(row, row + len(layout.centers))
        graph.positions[atoms] = item.positions
        graph.species[atoms] = item.species
        graph.cell[g] = item.cell
        graph.structure[atoms] = g
        np.add(layout.neighbors, atom, out=graph.neighbors[rows])
        np.add(layout.reverse, row * slots, out=graph.reverse[rows])
        np.less(np.arange(slots), layout.filled[:, None], out=graph.neighbor_mask[rows])
        if layout.shifts is not None:
            graph.shifts[rows] = layout.shifts
        if shape.rows_per_atom > 1:
            graph.centers[rows] = layout.centers + atom
            of_atom = np.arange(shape.rows_per_atom)
            mine = (layout.first + row)[:, None] + of_atom
            graph.rows[atoms] = np.where(of_atom < layout.per_atom[:, None], mine, shape.rows - 1)
        atom, row = atoms.stop, rows.stop
    graph.atom_mask[:atom] = True
    graph.structure_mask[: len(items)] = True
    return graph


def _padding(shape: Shape, dtype: np.dtype) -> AtomGraph:
    """A graph of nothing but padding."""
    n, g, r, k, s = shape
    single = s == 1
    last_row = np.full((n, s), r - 1, np.int32)
    centers = np.arange(n, dtype=np.int32) if single else np.full(r, n - 1, np.int32)
    neighbors = np.empty((r, k), np.int32)
    neighbors[:] = centers[:, None]
    return AtomGraph(
        positions=np.zeros((n, 3), dtype),
        species=np.zeros(n, np.int32),
        cell=np.zeros((g, 3, 3), dtype),
        structure=np.full(n, g - 1, np.int32),
        centers=centers,
        rows=np.arange(n, dtype=np.int32)[:, None] if single else last_row,
        neighbors=neighbors,
        shifts=np.zeros((r, k, 3), np.int32),
        neighbor_mask=np.zeros((r, k), bool),
        reverse=np.arange(r * k, dtype=np.int32).reshape(r, k),
        atom_mask=np.zeros(n, bool),
        structure_mask=np.zeros(g, bool),
    )


def _check_fit(items: Sequence[Item], shape: Shape) -> None:
    atoms = sum(item.num_atoms for item in items)
    rows = sum(len(item.rows(shape.slots).centers) for item in items)
    split = max((int(item.rows(shape.slots).per_atom.max()) for item in items), default=0)
    fits = holds(shape, atoms, rows) and split <= shape.rows_per_atom
    if len(items) > shape.structures or not fits:
        raise InputError(
            f"{len(items)} structures with {atoms} atoms in {rows} rows ({split} per atom) do not "
            f"fit into {shape}; take a larger shape or fewer structures"
        )


def pack_targets(
    items: Sequence[Item],
    shape: Shape,
    reference_energy: Callable[[np.ndarray], float],
    dtype: DTypeLike = np.float32,
) -> Targets:
    """Labels of structures in the order of `pack`.

    Args:
        items: the structures.
        shape: the shape they are packed into.
        reference_energy: species [n] -> eV, subtracted in float64 before the cast.
        dtype: of all floating values.
    """
    return targets(items, shape, [reference_energy(item.species) for item in items], dtype)


def targets(
    items: Sequence[Item], shape: Shape, references: Sequence[float], dtype: DTypeLike
) -> Targets:
    """`pack_targets` with the reference energy (eV) of every structure known."""
    n, g = shape.atoms, shape.structures
    out = Targets(
        energy=np.zeros(g, dtype),
        forces=np.zeros((n, 3), dtype),
        stress=np.zeros((g, 3, 3), dtype),
        energy_weight=np.zeros(g, dtype),
        forces_weight=np.zeros(g, dtype),
        stress_weight=np.zeros(g, dtype),
        num_atoms=np.ones(g, np.int32),
    )
    atom = 0
    for i, (item, reference) in enumerate(zip(items, references, strict=True)):
        frame = item.frame
        out.num_atoms[i] = item.num_atoms
        if frame.energy is not None:
            out.energy[i] = frame.energy - reference
            out.energy_weight[i] = frame.energy_weight
        if frame.forces is not None:
            out.forces[atom : atom + item.num_atoms] = frame.forces
            out.forces_weight[i] = frame.forces_weight
        if frame.stress is not None:
            out.stress[i] = frame.stress
            out.stress_weight[i] = frame.stress_weight
        atom += item.num_atoms
    return out


def tensor_targets(
    items: Sequence[Item], shape: Shape, kinds: Mapping[str, TensorKind], dtype: DTypeLike
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Tensor labels in the order of `pack` and their weights, 0 where there is none; by name."""
    tensors, weights = {}, {}
    for name, kind in kinds.items():
        size = shape.atoms if kind.per_atom else shape.structures
        tensor, weight = np.zeros((size, *kind.shape), dtype), np.zeros(size, dtype)
        start = 0
        for item in items:
            stop = start + (item.num_atoms if kind.per_atom else 1)
            if name in item.frame.tensors:
                tensor[start:stop], weight[start:stop] = item.frame.tensors[name], 1
            start = stop
        tensors[name], weights[name] = tensor, weight
    return tensors, weights
