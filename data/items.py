"""Item: a frame with its neighbours, laid out in rows, ready to be packed.

A row holds K slots; an atom with more neighbours than that has several rows. Items in a list are
made and laid out once, so that packing a batch is nothing but copying; lazy ones every time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from eqnet.data.frame import Frame
from eqnet.data.neighbors import Neighbors, neighbor_list, periodic_cell
from eqnet.errors import InputError


class Rows(NamedTuple):
    """Neighbours of one structure in r rows of K slots; atoms and slots count from 0."""

    centers: np.ndarray  # [r] int32
    neighbors: np.ndarray  # [r, K] int32, the centre itself in empty slots
    shifts: np.ndarray | None  # [r, K, 3] int16; None where all are zero
    reverse: np.ndarray  # [r, K] int32, flat slot of the reverse edge; itself in empty slots
    filled: np.ndarray  # [r] int32, slots in use: the first ones of a row
    first: np.ndarray  # [n] int32, first row of each atom
    per_atom: np.ndarray  # [n] int32, rows of each atom, at least one


@dataclass(eq=False)
class Item:
    """One structure as a model sees it, with its edges; n atoms, E edges.

    Positions are moved without changing any distance: into the cell along periodic directions, then
    to the centroid, so that float32 keeps as many digits of them as it can.
    """

    frame: Frame
    positions: np.ndarray  # [n, 3] float64, moved
    offset: np.ndarray  # [n, 3] float64: frame.positions - positions
    cell: np.ndarray  # [3, 3] float64, zero rows where not periodic
    species: np.ndarray  # [n] int32, index into the elements of the model
    neighbors: Neighbors  # of the moved positions
    counts: np.ndarray  # [n] int32, neighbours of each atom
    _rows: tuple[int, Rows] | None = field(default=None, repr=False)

    @property
    def num_atoms(self) -> int:
        """Atoms of the structure."""
        return len(self.species)

    @property
    def num_edges(self) -> int:
        """Directed edges of the structure."""
        return len(self.neighbors.centers)

    @property
    def shortest(self) -> float:
        """Shortest distance within the cutoff in angstrom, infinite without one."""
        return float(self.neighbors.distances.min(initial=np.inf))

    def num_rows(self, slots: int) -> int:
        """Rows that the structure takes with this many slots in a row."""
        return int(rows_per_atom(self.counts, slots).sum())

    def rows(self, slots: int) -> Rows:
        """Neighbours in rows of this many slots; kept until another number is asked for."""
        if self._rows is None or self._rows[0] != slots:
            self._rows = (slots, _lay_out(self.neighbors, self.counts, slots))
        return self._rows[1]


@dataclass(frozen=True)
class Sizes:
    """Numbers of atoms and neighbours of F structures, known without making the structures."""

    counts: Sequence[np.ndarray]  # of each structure [n] int32, neighbours of each atom
    shortest: np.ndarray  # [F] angstrom, shortest distance within the cutoff, infinite without one

    def atoms(self) -> np.ndarray:
        """Atoms of each structure, [F]."""
        return np.array([len(counts) for counts in self.counts])

    def edges(self) -> np.ndarray:
        """Directed edges of each structure, [F]."""
        return np.array([int(counts.sum()) for counts in self.counts])

    def average_num_neighbors(self) -> float:
        """Mean number of neighbours of an atom; 0 without atoms."""
        return int(self.edges().sum()) / max(int(self.atoms().sum()), 1)

    def rows(self, slots: int) -> np.ndarray:
        """Rows that each structure takes with this many slots in a row, [F]."""
        return np.array([int(rows_per_atom(counts, slots).sum()) for counts in self.counts])


class LazyItems(Sequence[Item]):
    """Items that are made when they are asked for; only their sizes are known before."""

    def __init__(
        self, frames: Sequence[Frame], elements: Sequence[int], cutoff: float, sizes: Sizes
    ) -> None:
        self.frames, self.elements, self.cutoff, self.sizes = frames, elements, cutoff, sizes

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: Any) -> Any:  # an item, or a list of items for a slice
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return make_item(self.frames[index], self.elements, self.cutoff)


def sizes_of(items: Sequence[Item]) -> Sizes:
    """Sizes of structures, which lazy items know."""
    if isinstance(items, LazyItems):
        return items.sizes
    shortest = [item.shortest for item in items]
    return Sizes([item.counts for item in items], np.array(shortest, dtype=np.float64))


def rows_per_atom(counts: np.ndarray, slots: int) -> np.ndarray:
    """Rows of atoms with these numbers of neighbours, at least one each."""
    return np.maximum(-(-counts // slots), 1)


def make_item(frame: Frame, elements: Sequence[int], cutoff: float) -> Item:
    """Find the neighbours of a frame and move its positions to where float32 is finest.

    Args:
        frame: the structure.
        elements: atomic numbers that the model knows; species are indices into it.
        cutoff: angstrom.

    Raises:
        InputError: an element that is not among `elements`, coincident atoms, a cutoff of 0.
    """
    species = species_of(frame, elements)
    cell = periodic_cell(frame.cell, frame.pbc)
    positions = _moved(frame.positions, cell, frame.pbc)
    try:
        edges = neighbor_list(positions, cell, frame.pbc, cutoff)
    except InputError as error:
        raise InputError(f"{frame.name}: {error}" if frame.file else str(error)) from None
    counts = np.bincount(edges.centers, minlength=len(frame)).astype(np.int32)
    return Item(frame, positions, frame.positions - positions, cell, species, edges, counts)


def make_items(frames: Iterable[Frame], elements: Sequence[int], cutoff: float) -> list[Item]:
    """`make_item` for many frames."""
    return [make_item(frame, elements, cutoff) for frame in frames]


def species_of(frame: Frame, elements: Sequence[int]) -> np.ndarray:
    """Index of every atom into the elements of a model, [n] int32.

    Raises:
        InputError: an element is not among them.
    """
    known = np.asarray(elements, dtype=np.int64)
    index = np.full(max(int(known.max(initial=0)), int(frame.numbers.max(initial=0))) + 1, -1)
    index[known] = np.arange(len(known))
    species = index[frame.numbers]
    if (species < 0).any():
        from ase.data import chemical_symbols as symbols

        unknown = ", ".join(symbols[z] for z in np.unique(frame.numbers[species < 0]))
        names = ", ".join(symbols[z] for z in known)
        raise InputError(
            f"{frame.name} contains {unknown}, but the model knows only {names}; "
            "train with structures that contain it, or remove the frame"
        )
    return species.astype(np.int32)


def _moved(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Wrap into the cell along periodic directions, then move the centroid to the origin."""
    positions = np.asarray(positions, dtype=np.float64)
    if pbc.any():
        vectors = cell[pbc]
        fractions = positions @ np.linalg.pinv(vectors)
        positions = positions - np.floor(fractions) @ vectors
    return positions - positions.mean(axis=0)


def _lay_out(edges: Neighbors, counts: np.ndarray, slots: int) -> Rows:
    """Put the edges of one structure, sorted by centre, into rows."""
    n = len(counts)
    count = rows_per_atom(counts, slots)
    first = np.concatenate([[0], np.cumsum(count)[:-1]]).astype(np.int64)
    centers = np.repeat(np.arange(n, dtype=np.int32), count)
    r = len(centers)
    rank = np.arange(len(edges.centers)) - np.repeat(np.cumsum(counts) - counts, counts)
    slot = first[edges.centers] * slots + rank  # the rows of an atom follow each other
    neighbors = np.repeat(centers[:, None], slots, axis=1)
    neighbors.reshape(-1)[slot] = edges.neighbors
    reverse = np.arange(r * slots, dtype=np.int32)
    reverse[slot] = slot[edges.reverse]
    shifts = None
    if edges.shifts.any():
        shifts = np.zeros((r * slots, 3), dtype=np.int16)
        shifts[slot] = edges.shifts
        shifts = shifts.reshape(r, slots, 3)
    within = np.arange(r) - first[centers]
    filled = np.clip(counts[centers] - within * slots, 0, slots).astype(np.int32)
    return Rows(
        centers,
        neighbors,
        shifts,
        reverse.reshape(r, slots),
        filled,
        first.astype(np.int32),
        count.astype(np.int32),
    )
