"""AtomGraph: the only input of a model, a pytree of fixed shapes with masks.

Neighbours are stored in rows, not as a list of edges: the sum over the neighbours of an atom is
then the inner index of a matrix product, and every gradient is a gather through `reverse`, never a
scatter. Letters in shapes: N atoms, G structures, R rows, K slots per row, S rows per atom.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Array = Any  # a numpy array on the host, a jax array on the device


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AtomGraph:
    """A batch of structures with their neighbours, padded to fixed shapes.

    Row r lists neighbours of atom `centers[r]`; an atom with many neighbours has several
    rows (`rows`). Slot (r, k) is the directed edge from the centre i to the neighbour j with
    displacement r_ij = x_j + shifts @ cell - x_i. Padding slots point from an atom to itself and
    are their own reverse, so that `reverse` is an involution on all slots.
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
    strain: Array | None = None  # [N, 3, 3] of the edges of each centre, see `eqnet.atomic_stress`

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


def linear_pair(name: str, forward: Callable, backward: Callable) -> tuple[Callable, Callable]:
    """Two linear maps (values, *indices) -> values that are each other's transposes, as primitives.

    Derivatives of any order, forward or backward, then use these two maps and no scatter.
    """
    pair = []
    for suffix, evaluate in (("", forward), ("_transposed", backward)):
        primitive = Primitive(name + suffix)
        primitive.def_impl(jax.jit(evaluate))
        primitive.def_abstract_eval(
            lambda *avals, f=evaluate: avals[0].update(shape=jax.eval_shape(f, *avals).shape)
        )
        mlir.register_lowering(primitive, mlir.lower_fun(evaluate, multiple_results=False))
        batching.primitive_batchers[primitive] = _batch_last(primitive)
        pair.append(primitive)
    for primitive, other in (pair, pair[::-1]):

        def transpose(g, values, *indices, other=other):
            del values
            return (other.bind(g, *indices), *(None for _ in indices))

        ad.deflinear2(primitive, transpose)
        # only the values carry tangents; indices are integers
        ad.primitive_jvps[primitive] = _only_first(primitive)
    return pair[0].bind, pair[1].bind


def _only_first(primitive: Primitive) -> Callable:
    def jvp(primals, tangents):
        # called only where the values have a tangent: the indices, integers, never have one
        out = primitive.bind(*primals)
        return out, primitive.bind(tangents[0], *primals[1:])

    return jvp


def _batch_last(primitive: Primitive) -> Callable:
    """A batch of values becomes one more trailing axis."""

    def rule(operands, axes):
        values, *indices = operands
        if any(axis is not None for axis in axes[1:]):
            raise NotImplementedError("graphs cannot be batched by vmap; pack them into one graph")
        out = primitive.bind(jnp.moveaxis(values, axes[0], -1), *indices)
        return out, out.ndim - 1

    return rule


def _to_slots(x, neighbors, reverse, rows, centers):
    del reverse, rows, centers
    return x[neighbors]


def _from_slots(slots, neighbors, reverse, rows, centers):
    del neighbors, centers
    total = slots.reshape((-1, *slots.shape[2:]))[reverse].sum(1)
    return total if rows.shape[1] == 1 else total[rows].sum(1)


def _to_rows(x, rows, centers):
    del rows
    return x[centers]


def _from_rows(values, rows, centers):
    del centers
    # one at a time: all at once would be an array of S times the atoms
    return sum(values[rows[:, s]] for s in range(rows.shape[1]))


_slots, _slots_transposed = linear_pair("gather_neighbors", _to_slots, _from_slots)
_rows, _rows_transposed = linear_pair("gather_centers", _to_rows, _from_rows)


def gather_neighbors(x: jax.Array, graph: AtomGraph) -> jax.Array:
    """Values of the neighbours: [N, ...] -> [R, K, ...]."""
    return _slots(x, graph.neighbors, graph.reverse, graph.rows, graph.centers)


def scatter_neighbors(slots: jax.Array, graph: AtomGraph) -> jax.Array:
    """Sum over the edges that end at each atom, the transpose: [R, K, ...] -> [N, ...]."""
    return _slots_transposed(slots, graph.neighbors, graph.reverse, graph.rows, graph.centers)


def gather_centers(x: jax.Array, graph: AtomGraph) -> jax.Array:
    """Value of the centre of each row: [N, ...] -> [R, ...]."""
    return x if graph.one_row_per_atom else _rows(x, graph.rows, graph.centers)


def sum_rows(values: jax.Array, graph: AtomGraph) -> jax.Array:
    """Sum of the rows of each atom: [R, ...] -> [N, ...]."""
    if graph.one_row_per_atom:
        return values
    return _rows_transposed(values, graph.rows, graph.centers)


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
    shifts = jnp.asarray(graph.shifts).astype(positions.dtype)
    image = jnp.einsum("rki,rij->rkj", shifts, cell, precision=jax.lax.Precision.HIGHEST)
    vectors = gather_neighbors(positions, graph) + image - centers[:, None, :]
    if graph.strain is not None:
        local = gather_centers(graph.strain, graph)
        vectors = vectors + jnp.einsum(
            "rki,rij->rkj", vectors, local, precision=jax.lax.Precision.HIGHEST
        )
    constant = jnp.array([0.0, 1.0, 0.0], positions.dtype)
    return jnp.where(jnp.asarray(graph.neighbor_mask)[..., None], vectors, constant)
