"""AtomGraph: the only input of a model, a pytree of fixed shapes with masks.

Neighbours are stored in rows, not as a list of edges: the sum over the neighbours of an atom is then
the inner index of a matrix product, and every gradient is a gather through `reverse`, never a
scatter. Letters in shapes: N atoms, G structures, R rows, K slots per row, S rows per atom.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

Array = Any  # a numpy array on the host, a jax array on the device


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AtomGraph:
    """A batch of structures with their neighbours, padded to fixed shapes.

    Row r lists neighbours of atom `centers[r]`; an atom with many neighbours has several rows
    (`rows`). Slot (r, k) is the directed edge from the centre i to the neighbour j with displacement
    r_ij = x_j + shifts @ cell - x_i. Padding slots point from an atom to itself and are their own
    reverse, so that `reverse` is an involution on all slots.
    """

    positions: Array  # [N, 3] angstrom
    species: Array  # [N] index into the element list of the model
    cell: Array  # [G, 3, 3] rows are lattice vectors; zero rows where not periodic
    structure: Array  # [N] structure of each atom, ascending
    centers: Array  # [R] atom of each row
    rows: Array  # [N, S] rows of each atom; spare entries name an all-padding row
    neighbors: Array  # [R, K] atom j
    shifts: Array  # [R, K, 3] integer image of j
    neighbor_mask: Array  # [R, K]
    reverse: Array  # [R, K] flat slot of the edge (j, i)
    atom_mask: Array  # [N]
    structure_mask: Array  # [G]

    @property
    def num_atoms(self) -> int:
        """N, padding included."""
        return self.positions.shape[0]

    @property
    def num_structures(self) -> int:
        """G, padding included."""
        return self.cell.shape[0]

    @property
    def one_row_per_atom(self) -> bool:
        """Whether row r is simply the row of atom r (known from the shapes alone)."""
        return self.rows.shape[1] == 1


def _transpose_slots(slots: jax.Array, reverse: jax.Array) -> jax.Array:
    """Move the value of every edge (i, j) to the slot of the edge (j, i); [R, K, ...]."""
    flat = slots.reshape((-1,) + slots.shape[2:])
    return flat[reverse]


@jax.custom_vjp
def _to_slots(x: jax.Array, graph: AtomGraph) -> jax.Array:
    return x[graph.neighbors]


@jax.custom_vjp
def _from_slots(slots: jax.Array, graph: AtomGraph) -> jax.Array:
    return sum_rows(_transpose_slots(slots, graph.reverse).sum(1), graph)


# Each is the transpose of the other, so derivatives of any order stay gathers.
_to_slots.defvjp(
    lambda x, graph: (_to_slots(x, graph), graph),
    lambda graph, g: (_from_slots(g, graph), None),
)
_from_slots.defvjp(
    lambda slots, graph: (_from_slots(slots, graph), graph),
    lambda graph, g: (_to_slots(g, graph), None),
)


def gather_neighbors(x: jax.Array, graph: AtomGraph) -> jax.Array:
    """Values of the neighbours: [N, ...] -> [R, K, ...]."""
    return _to_slots(x, graph)


def scatter_neighbors(slots: jax.Array, graph: AtomGraph) -> jax.Array:
    """Sum over the edges that end at each atom, the transpose of `gather_neighbors`: [R, K, ...] -> [N, ...]."""
    return _from_slots(slots, graph)


@jax.custom_vjp
def _expand_rows(x: jax.Array, graph: AtomGraph) -> jax.Array:
    return x[graph.centers]


@jax.custom_vjp
def _reduce_rows(rows: jax.Array, graph: AtomGraph) -> jax.Array:
    return rows[graph.rows].sum(1)


_expand_rows.defvjp(
    lambda x, graph: (_expand_rows(x, graph), graph),
    lambda graph, g: (_reduce_rows(g, graph), None),
)
_reduce_rows.defvjp(
    lambda rows, graph: (_reduce_rows(rows, graph), graph),
    lambda graph, g: (_expand_rows(g, graph), None),
)


def gather_centers(x: jax.Array, graph: AtomGraph) -> jax.Array:
    """Value of the centre of each row: [N, ...] -> [R, ...]."""
    return x if graph.one_row_per_atom else _expand_rows(x, graph)


def sum_rows(rows: jax.Array, graph: AtomGraph) -> jax.Array:
    """Sum of the rows of each atom: [R, ...] -> [N, ...]."""
    return rows if graph.one_row_per_atom else _reduce_rows(rows, graph)


def sum_structures(x: jax.Array, graph: AtomGraph) -> jax.Array:
    """Sum over the atoms of each structure: [N, ...] -> [G, ...]; mask padding atoms before."""
    return jax.ops.segment_sum(
        x, graph.structure, num_segments=graph.num_structures, indices_are_sorted=True
    )


def displacements(graph: AtomGraph) -> jax.Array:
    """Vectors r_ij from each centre to its neighbours in angstrom, [R, K, 3].

    Padding slots hold a constant unit vector: a zero vector would make gradients NaN.
    """
    positions = jnp.asarray(graph.positions)
    centers = gather_centers(positions, graph)
    cell = gather_centers(jnp.asarray(graph.cell)[graph.structure], graph)
    image = jnp.einsum(
        "rki,rij->rkj",
        jnp.asarray(graph.shifts).astype(positions.dtype),
        cell,
        precision=jax.lax.Precision.HIGHEST,
    )
    vectors = gather_neighbors(positions, graph) + image - centers[:, None, :]
    constant = jnp.array([0.0, 1.0, 0.0], positions.dtype)
    return jnp.where(jnp.asarray(graph.neighbor_mask)[..., None], vectors, constant)
