"""Graphs by brute force: all pairs of atoms and images, no neighbour-list code, no packer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from eqnet.graph import AtomGraph


class Structure(NamedTuple):
    """Atoms: numbers [n], positions [n, 3] and the cell [3, 3] (zero rows: not periodic)."""

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray


Edge = tuple[int, int, tuple[int, int, int]]


def edges_within(structure: Structure, cutoff: float) -> list[Edge]:
    """Every (i, j, shift) with 0 < |x_j + shift @ cell - x_i| < cutoff."""
    positions, cell = structure.positions, structure.cell
    ranges = []
    for a in range(3):
        if not np.any(cell[a]):
            ranges.append(range(1))
            continue
        # complete the cell with unit vectors to get the distance between its planes
        full = np.where(np.any(cell, axis=1)[:, None], cell, np.eye(3))
        height = abs(np.linalg.det(full)) / np.linalg.norm(
            np.cross(full[(a + 1) % 3], full[(a + 2) % 3])
        )
        spread = np.ptp(positions @ np.linalg.inv(full)[:, a])
        number = int(np.ceil(cutoff / height + spread)) + 1
        ranges.append(range(-number, number + 1))
    found = []
    for shift in product(*ranges):
        moved = positions + np.array(shift) @ cell
        distance = np.linalg.norm(moved[None] - positions[:, None], axis=-1)
        found += [
            (int(i), int(j), tuple(shift)) for i, j in np.argwhere(distance < cutoff) if
            not (i == j and not any(shift))
        ]  # fmt: skip
    return sorted(found)


def make_graph(
    structures: Sequence[Structure],
    elements: Sequence[int],
    cutoff: float,
    *,
    extra_atoms: int = 0,
    groups: int | None = None,
    width: int | None = None,
    slots: int | None = None,
    dtype: type = np.float64,
) -> AtomGraph:
    """Pack structures into one graph.

    Args:
        structures: at least one.
        elements: atomic numbers of the model.
        cutoff: angstrom.
        extra_atoms: padding atoms, in a padding structure of their own.
        groups: number of structures, padding included.
        width: slots per row, padding included; the longest row if not given.
        slots: split rows longer than this into several.
        dtype: of positions and cell.
    """
    positions = np.concatenate([s.positions for s in structures])
    numbers = np.concatenate([s.numbers for s in structures])
    real, total = len(numbers), len(numbers) + extra_atoms
    groups = groups or len(structures) + (extra_atoms > 0)
    per_atom: list[list[tuple[int, tuple]]] = [[] for _ in range(total)]
    start = 0
    for s in structures:
        for i, j, shift in edges_within(s, cutoff):
            per_atom[start + i].append((start + j, shift))
        start += len(s.numbers)
    longest = max(1, *(len(p) for p in per_atom))
    full = min(longest, slots or longest)
    width = width or full
    rows_of = [max(1, -(-len(p) // full)) for p in per_atom]
    several = max(rows_of)
    num_rows = total if several == 1 else sum(rows_of) + 1
    # Every slot starts as padding: from the centre to itself, its own reverse.
    centers = np.full(num_rows, total - 1, np.int32)
    rows = np.full((total, several), num_rows - 1, np.int32)
    place: dict[Edge, int] = {}
    row = 0
    filled = []
    for i in range(total):
        for k in range(rows_of[i]):
            rows[i, k], centers[row] = row, i
            part = per_atom[i][k * full : (k + 1) * full]
            for slot, (j, shift) in enumerate(part):
                place[i, j, shift] = row * width + slot
                filled.append((row, slot, j, shift))
            row += 1
    neighbors = np.repeat(centers[:, None], width, axis=1)
    shifts = np.zeros((num_rows, width, 3), np.int32)
    mask = np.zeros((num_rows, width), bool)
    reverse = np.arange(num_rows * width, dtype=np.int32).reshape(num_rows, width)
    for r, k, j, shift in filled:
        neighbors[r, k], shifts[r, k], mask[r, k] = j, shift, True
        reverse[r, k] = place[j, int(centers[r]), tuple(-c for c in shift)]
    cell = np.zeros((groups, 3, 3), dtype)
    for g, s in enumerate(structures):
        cell[g] = s.cell
    owner = [g for g, s in enumerate(structures) for _ in s.numbers] + [groups - 1] * extra_atoms
    return AtomGraph(
        positions=np.concatenate([positions, np.zeros((extra_atoms, 3))]).astype(dtype),
        species=np.concatenate(
            [np.searchsorted(elements, numbers), np.zeros(extra_atoms, int)]
        ).astype(np.int32),
        cell=cell,
        structure=np.array(owner, np.int32),
        centers=centers,
        rows=rows,
        neighbors=neighbors.astype(np.int32),
        shifts=shifts,
        neighbor_mask=mask,
        reverse=reverse,
        atom_mask=np.arange(total) < real,
        structure_mask=np.arange(groups) < len(structures),
    )
