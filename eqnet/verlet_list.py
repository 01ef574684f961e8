"""Neighbours of structures that stay valid while their atoms move a little (Verlet 1967).

Pairs are found on the host up to cutoff + skin. Until an atom has moved more than half the skin, no
pair within the cutoff is missing, and pairs beyond the cutoff contribute exactly zero because the
envelope of every model is zero there. Room in the graph is rounded up a ladder, so that lists of
different length share one compiled program.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from eqnet.data.elements import symbol
from eqnet.data.frame import Frame
from eqnet.data.items import Item, make_item, rows_per_atom
from eqnet.data.packing import Shape, choose_slots, holds, make_shape, pack
from eqnet.errors import InputError
from eqnet.graph import AtomGraph
from eqnet.ops.apart import platform

# Slots that may be computed in vain, all structures together, before a smaller shape is compiled:
# some 10 s of a core both (64 channels, two layers); a GPU computes a hundred times as many.
# Waiting so long never costs much more than twice the best choice.
COMPILATION = {"cpu": 500_000}
COMPILATION_ELSEWHERE = 50_000_000
GROWTH = 2.0  # room for larger structures in a shape for many
ATOMS, SLOTS, NEIGHBORS = 16, 16, 96  # that has room for so many, slots of a row, neighbours each
FAR = 5.0  # angstrom an atom may move when no pair can be missing; then float32 is centred anew


class VerletList:
    """The neighbour list of the last structure seen, or of several side by side, as a graph.

    Attributes:
        graph: the packed structures (numpy); the positions are those of the last build.
        frames: the structures.
        offset: [N, 3] float64, positions in the graph minus those of the structure: whole lattice
            vectors and centring; zero for padding.
        shape: that of the graph.
        shapes: all shapes handed out so far.
        spare: slots of the shape that the structure would not need in one of its own.
        in_vain: their sum over all structures since the last new shape.
        builds: how often neighbours were searched.
        reach: how far an atom may move (angstrom) before they must be searched again, [S] for S
            structures.
    """

    def __init__(
        self, elements: Sequence[int], cutoff: float, skin: float, dtype: str = "float32"
    ) -> None:
        self.elements = tuple(elements)
        self.cutoff = cutoff
        self.skin = skin
        self.dtype = np.dtype(dtype)
        self.shape: Shape
        self.shapes: list[Shape] = []
        self.spare = self.in_vain = 0
        self.builds = 0
        self.reach = np.zeros(0)
        self.graph: AtomGraph | None = None
        self.offset = np.zeros((0, 3))
        self.frames: list[Frame] = []

    def size_of(self, frames: Sequence[Frame]) -> str:
        """Atoms and, if they are known, edges of structures, in words."""
        words = f"{sum(map(len, frames))} atoms"
        if self.graph is None or not self.frames:  # no list has been made
            return words
        return f"{words} and {int(self.graph.neighbor_mask.sum())} edges"

    def covers(self, *frames: Frame) -> bool:
        """Whether the list serves for `frames`: every pair within the cutoff, and not too roomy."""
        holds_all = len(frames) == len(self.frames) and all(
            reach > 0
            and same_kind(old, new)
            and bool(np.sum((new.positions - old.positions) ** 2, axis=1).max() <= reach**2)
            for old, new, reach in zip(self.frames, frames, self.reach, strict=True)
        )
        self.in_vain += self.spare * holds_all
        return holds_all and (self.spare == 0 or self.in_vain <= compilation())

    def trouble(self, frame: Frame) -> InputError | None:
        """Why there can be no list for a frame; None if there can."""
        try:
            self._items([frame])
        except InputError as error:
            return error
        return None

    def build(self, *frames: Frame) -> AtomGraph:
        """Find the neighbours of the frames and pack them.

        Raises:
            InputError: see `check_structure`; two atoms at the same place.
        """
        self.frames = []  # an error below leaves no list behind
        items = self._items(frames)
        atoms = sum(map(len, frames))
        same_size = self.graph is not None and int(self.graph.atom_mask.sum()) == atoms
        self.shape = self._choose(items, fine=same_size or not self.shapes)
        self.builds += 1
        return self._pack(items)

    def memory(self) -> dict[str, np.ndarray]:
        """What `recall` needs: where neighbours were found, and all that shapes depend on."""
        counts = [self.shapes.index(self.shape), self.spare, self.in_vain, self.builds]
        return {
            "positions": np.concatenate([frame.positions for frame in self.frames]),
            "cells": np.stack([frame.cell for frame in self.frames]),
            "shapes": np.array(self.shapes, np.int64),
            "counts": np.array(counts, np.int64),
        }

    def recall(self, memory: Mapping[str, np.ndarray]) -> None:
        """The list of the same structures, and what comes after, as they were in `memory`."""
        parts = np.split(memory["positions"], np.cumsum([len(f) for f in self.frames])[:-1])
        frames = [
            replace(frame, positions=positions, cell=cell)
            for frame, positions, cell in zip(self.frames, parts, memory["cells"], strict=True)
        ]
        items = self._items(frames)
        index, self.spare, self.in_vain, self.builds = (int(x) for x in memory["counts"])
        self.shapes = [Shape(*map(int, shape)) for shape in memory["shapes"]]
        self.shape = self.shapes[index]
        self._pack(items)

    def _items(self, frames: Sequence[Frame]) -> list[Item]:
        for frame in frames:
            check_structure(frame, self.elements)
        return [make_item(frame, self.elements, self.cutoff + self.skin) for frame in frames]

    def _pack(self, items: Sequence[Item]) -> AtomGraph:
        """The graph in the shape chosen, and how far it reaches."""
        self.graph = pack(items, self.shape, self.dtype)
        offsets = np.concatenate([-item.offset for item in items])
        self.offset = np.zeros((self.shape.atoms, 3))
        self.offset[: len(offsets)] = offsets
        frames = [item.frame for item in items]
        self.frames = [replace(frame, positions=frame.positions.copy()) for frame in frames]
        self.reach = np.array([FAR if _complete(item) else self.skin / 2 for item in items])
        return self.graph

    def beside(self, frames: Sequence[Frame]) -> list[AtomGraph] | None:
        """Other structures in the shape of the list; None if that is too small, or a waste."""
        items = [make_item(frame, self.elements, self.cutoff) for frame in frames]
        if len(items) * _size(self.shape) > compilation():
            return None
        if not all(fits(self.shape, [item]) for item in items):
            return None
        return [pack([item], self.shape, self.dtype) for item in items]

    def place(self, positions: np.ndarray) -> np.ndarray:
        """Positions [n, 3] of all structures as the graph wants them, [N, 3] in its precision."""
        placed = self.offset.copy()
        placed[: len(positions)] += positions
        return placed.astype(self.dtype)

    def _choose(self, items: Sequence[Item], *, fine: bool) -> Shape:
        """A shape in use that fits, until the padding has cost a compilation; or a new one."""
        atoms = sum(item.num_atoms for item in items)
        own = roomy(items) if fine else roomy(items, round_up(atoms, 2) / atoms)
        fitting = [shape for shape in self.shapes if fits(shape, items)]
        chosen = own
        if fitting:
            best = min(fitting, key=_size)
            if self.in_vain + max(0, _size(best) - _size(own)) <= compilation():
                chosen = best
        elif not fine:
            chosen = roomy(items, GROWTH, beside=max(self.shapes, key=_size))
        if chosen not in self.shapes:
            self.shapes.append(chosen)
            self.in_vain = 0
        self.spare = max(0, _size(chosen) - _size(own))
        self.in_vain += self.spare
        return chosen


def same_kind(old: Frame, new: Frame) -> bool:
    """Whether two structures differ in nothing but positions."""
    return (
        np.array_equal(old.numbers, new.numbers)
        and np.array_equal(old.pbc, new.pbc)
        and np.array_equal(old.cell, new.cell)
    )


def compilation() -> int:
    """Slots that take as long to compute as a program takes to compile."""
    return COMPILATION.get(platform(), COMPILATION_ELSEWHERE)


def round_up(number: int, steps: int) -> int:
    """The next size on a ladder with so many steps per doubling (a power of two)."""
    if number <= steps:
        return max(number, 1)
    step = 2 ** ((number - 1).bit_length() - 1) // steps
    return -(-number // step) * step


def _complete(item: Item) -> bool:
    """Whether all pairs are in the list: a molecule smaller than the cutoff."""
    return not item.frame.pbc.any() and item.num_edges == item.num_atoms * (item.num_atoms - 1)


def fits(shape: Shape, items: Sequence[Item]) -> bool:
    """Whether the shape holds the structures."""
    split = max(int(rows_per_atom(item.counts, shape.slots).max()) for item in items)
    atoms, rows = (
        sum(item.num_atoms for item in items),
        sum(item.num_rows(shape.slots) for item in items),
    )
    return (
        len(items) <= shape.structures
        and split <= shape.rows_per_atom
        and holds(shape, atoms, rows)
    )


def _size(shape: Shape) -> int:
    """Slots that are computed."""
    return shape.rows * shape.slots


def roomy(items: Sequence[Item], growth: float = 1.0, beside: Shape | None = None) -> Shape:
    """A shape for structures with room for a tenth more neighbours.

    Args:
        items: the structures.
        growth: room for so many times their atoms.
        beside: a shape that is to fit into the new one.
    """
    counts = np.concatenate([_room(item) for item in items])
    slots, _ = choose_slots([counts])
    atoms, rows, split = round(growth * len(counts)), 0, 1
    if beside is not None:
        atoms, slots = max(atoms, beside.atoms, ATOMS), max(slots, beside.slots, SLOTS)
        rows, split = max(atoms, beside.rows), max(beside.rows_per_atom, -(-NEIGHBORS // slots))
    per_atom = rows_per_atom(counts, slots)
    rows, split = max(rows, int(growth * per_atom.sum())), max(split, int(per_atom.max()))
    shape = make_shape(atoms, rows, len(items), slots, split)
    return shape._replace(atoms=atoms, rows=atoms if shape.rows_per_atom == 1 else shape.rows)


def _room(item: Item) -> np.ndarray:
    """Neighbours of each atom for which there is to be room."""
    counts = np.ceil(1.1 * item.counts).astype(item.counts.dtype)
    if not item.frame.pbc.any():  # no images: an atom has at most all others as neighbours
        counts = np.minimum(counts, item.num_atoms - 1)
    return counts


def check_structure(frame: Frame, elements: Sequence[int]) -> None:
    """Refuse what has no answer.

    Raises:
        InputError: no atoms, an element the model does not know, positions or cell that are not
            finite, periodic axes that span no volume.
    """
    where = f"{frame.name}: " if frame.file else ""
    if len(frame) == 0:
        raise InputError(f"{where}the structure has no atoms")
    unknown = ~np.isin(frame.numbers, elements)
    if unknown.any():
        first = int(np.argmax(unknown))
        raise InputError(
            f"{where}element {symbol(int(frame.numbers[first]))} (atom {first}) is unknown to this "
            f"model, which knows {', '.join(symbol(z) for z in elements)}"
        )
    bad = ~np.isfinite(frame.positions).all(axis=1)
    if bad.any():
        first = int(np.argmax(bad))
        raise InputError(
            f"{where}the position of atom {first} ({symbol(int(frame.numbers[first]))}) is not "
            f"finite: {frame.positions[first]}"
        )
    vectors = frame.cell[frame.pbc]
    if not np.isfinite(vectors).all():
        raise InputError(f"{where}the cell is not finite: {frame.cell.tolist()}")
    lengths = np.linalg.norm(vectors, axis=1)
    if len(vectors) and (
        lengths.min() == 0
        or np.linalg.svd(vectors / lengths[:, None], compute_uv=False).min() < 1e-6
    ):
        raise InputError(
            f"{where}the lattice vectors of the periodic axes are zero or linearly dependent: "
            f"{vectors.tolist()}"
        )
