"""Neighbours of atoms within a cutoff, complete for every boundary condition.

vesin finds every pair once; both directions are made here, so that the list is symmetric bit by bit
and the edge that runs the other way is known without a search.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from vesin import NeighborList

from eqnet.errors import InputError

COINCIDENT = 1e-3  # angstrom; below it the direction of an edge has no meaning
FARTHEST = 1e10  # angstrom from the origin
MOST_CELLS = 1e5  # that vesin 0.6 makes of a box, see `_searchable`


class Neighbors(NamedTuple):
    """Directed edges sorted by centre, neighbour and shift; E edges.

    Edge e runs from atom i = centers[e] to the image of atom j = neighbors[e] displaced by
    shifts[e] cells: r_ij = x_j + shift @ cell - x_i, |r_ij| < cutoff.
    """

    centers: np.ndarray  # [E] int32
    neighbors: np.ndarray  # [E] int32
    shifts: np.ndarray  # [E, 3] int32
    reverse: np.ndarray  # [E] int32, index of the edge (j, i, -shift)
    distances: np.ndarray  # [E] float64, angstrom
    num_atoms: int


def neighbor_list(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> Neighbors:
    """Find all pairs of atoms closer than the cutoff, images included.

    Args:
        positions: [n, 3] angstrom, anywhere in space.
        cell: [3, 3] rows are lattice vectors; rows of directions that are not periodic are ignored.
        pbc: [3] whether each direction is periodic.
        cutoff: angstrom; it may exceed the cell many times over.

    Raises:
        InputError: the cutoff is not positive and finite, two atoms coincide, or one is so far away
            that float64 has no digits for distances.
    """
    if not (np.isfinite(cutoff) and cutoff > 0):
        raise InputError(f"the cutoff is {cutoff} A; give a positive number such as 5.0")
    positions = np.ascontiguousarray(positions, dtype=np.float64)
    pbc = np.asarray(pbc, dtype=bool)
    far = np.abs(positions).max(axis=1, initial=0.0)
    if len(far) and far.max() > FARTHEST:
        worst = int(far.argmax())
        raise InputError(
            f"atom {worst} is {far[worst]:.1e} A from the origin, where distances have no digits "
            "left: correct or remove the structure"
        )
    places, radius = _searchable(positions, periodic_cell(cell, pbc)[pbc], float(cutoff))
    search = NeighborList(cutoff=radius, full_list=False, n_threads=1)
    found = search.compute(places, periodic_cell(cell, pbc), pbc, quantities="ijSd")
    if radius > cutoff:
        near = found[3] < cutoff
        found = [values[near] for values in found]
    i, j, shifts, distances = found
    if len(distances) and distances.min() < COINCIDENT:
        worst = int(distances.argmin())
        raise InputError(
            f"atoms {i[worst]} and {j[worst]} coincide ({distances[worst]:.1e} A apart); "
            "correct or remove the structure"
        )
    return from_pairs(i.astype(np.int64), j.astype(np.int64), shifts, distances, positions)


def _searchable(
    positions: np.ndarray, vectors: np.ndarray, cutoff: float
) -> tuple[np.ndarray, float]:
    """Positions [n, 3] and a radius with which vesin finds all pairs, and perhaps more.

    It divides the box of all atoms into cells, and, where there would be too many, makes them
    larger by the same factor along all directions. That ends the process with a division by zero
    where the box is thin along one: a sheet or a chain of 0.1 micrometre, or two molecules as far
    apart; and many more cells than atoms can take it minutes. Then empty space is cut down to twice
    the cutoff, which is no less far apart, and the radius is raised until there are few enough
    cells.
    """
    free = np.linalg.svd(vectors)[2][len(vectors) :]  # directions that are not periodic
    along = positions @ free.T
    heights = 1 / np.linalg.norm(np.linalg.pinv(vectors), axis=0)

    def cells(along: np.ndarray, radius: float) -> np.ndarray:
        return np.maximum(np.concatenate([heights, np.ptp(along, axis=0)]) // radius, 1)

    def fits(along: np.ndarray, radius: float) -> bool:
        number = cells(along, radius)
        return bool(number.min() >= 1.3 * (number.prod() / MOST_CELLS) ** (1 / 3))

    few = 1000 + 10 * len(positions)
    if not len(positions) or (fits(along, cutoff) and cells(along, cutoff).prod() <= few):
        return positions, cutoff
    packed = np.empty_like(along)
    for axis, values in enumerate(along.T):
        order = np.argsort(values)
        gaps = np.minimum(np.diff(values[order]), 2 * cutoff)
        packed[order, axis] = np.concatenate([[0.0], np.cumsum(gaps)])
    radius = cutoff
    while not fits(packed, radius):
        radius *= 1.25
    return positions + (packed - along) @ free, radius


def periodic_cell(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """The cell with zero rows where it is not periodic, [3, 3] float64."""
    return np.where(np.asarray(pbc, dtype=bool)[:, None], np.asarray(cell, dtype=np.float64), 0.0)


def average_num_neighbors(neighbors: Sequence[Neighbors]) -> float:
    """Mean number of neighbours of an atom over many structures; 0 without atoms."""
    atoms = sum(n.num_atoms for n in neighbors)
    return sum(len(n.centers) for n in neighbors) / max(atoms, 1)


def from_pairs(
    i: np.ndarray, j: np.ndarray, shifts: np.ndarray, distances: np.ndarray, positions: np.ndarray
) -> Neighbors:
    """Add the mirror image of every pair, sort, and say where each mirror image went."""
    half = len(i)
    centers, neighbors = np.concatenate([i, j]), np.concatenate([j, i])
    shifts = np.concatenate([shifts, -shifts]).astype(np.int64)
    order = _order(centers, neighbors, shifts, len(positions))
    place = np.empty(2 * half, dtype=np.int32)
    place[order] = np.arange(2 * half, dtype=np.int32)
    mirror = np.where(order < half, order + half, order - half)
    return Neighbors(
        centers=centers[order].astype(np.int32),
        neighbors=neighbors[order].astype(np.int32),
        shifts=shifts[order].astype(np.int32),
        reverse=place[mirror],
        distances=np.concatenate([distances, distances])[order],
        num_atoms=len(positions),
    )


def _order(centers: np.ndarray, neighbors: np.ndarray, shifts: np.ndarray, n: int) -> np.ndarray:
    """Sorting by centre, neighbour and shift, through one integer where it fits into 62 bits."""
    if not len(centers):
        return np.zeros(0, dtype=np.int64)
    low = shifts.min(axis=0)
    a, b, c = (int(w) for w in shifts.max(axis=0) - low + 1)
    if n * n * a * b * c < 2**62:
        s = shifts - low
        return np.argsort((((centers * n + neighbors) * a + s[:, 0]) * b + s[:, 1]) * c + s[:, 2])
    return np.lexsort((shifts[:, 2], shifts[:, 1], shifts[:, 0], neighbors, centers))
