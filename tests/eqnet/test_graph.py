"""Gathers and sums of a graph against explicit loops, and their derivatives of both modes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graphs import Structure, edges_within, make_graph

from eqnet.graph import (
    AtomGraph,
    displacements,
    gather_centers,
    gather_neighbors,
    scatter_neighbors,
    sum_rows,
    sum_structures,
)

pytestmark = pytest.mark.usefixtures("x64")
CUTOFF = 2.5


def structures() -> list[Structure]:
    rng = np.random.default_rng(3)
    box = np.array([[3.0, 0, 0], [0.7, 2.8, 0], [0.2, -0.4, 3.1]])
    return [
        Structure(np.array([1, 6, 8, 1, 6]), rng.uniform(0, 2.5, (5, 3)), np.zeros((3, 3))),
        Structure(np.array([6, 8, 1]), rng.uniform(0, 1, (3, 3)) @ box, box),
    ]


def graphs() -> list[AtomGraph]:
    """One row per atom, rows of three slots, and with padding."""
    elements = (1, 6, 8)
    made = [
        make_graph(structures(), elements, CUTOFF),
        make_graph(structures(), elements, CUTOFF, slots=3),
        make_graph(structures(), elements, CUTOFF, extra_atoms=2, groups=4),
    ]
    return [jax.tree.map(jnp.asarray, graph) for graph in made]


def edge_loop() -> list[tuple[int, int, np.ndarray]]:
    """(i, j, r_ij) of all edges, atoms numbered through the batch."""
    found, start = [], 0
    for s in structures():
        for i, j, shift in edges_within(s, CUTOFF):
            r = s.positions[j] + np.array(shift) @ s.cell - s.positions[i]
            found.append((start + i, start + j, r))
        start += len(s.numbers)
    return found


@pytest.mark.parametrize("graph", range(3))
def test_sums_over_neighbours_against_a_loop(graph: int) -> None:
    batch = graphs()[graph]
    x = np.random.default_rng(1).normal(size=(batch.num_atoms, 4))
    vectors = displacements(batch)
    mask = batch.neighbor_mask[..., None]
    centers = gather_centers(jnp.asarray(x), batch)[:, None]
    terms = jnp.where(
        mask, gather_neighbors(jnp.asarray(x), batch) * centers * vectors[..., :1], 0.0
    )
    expected = np.zeros((batch.num_atoms, 4))
    for i, j, r in edge_loop():
        expected[i] += x[i] * x[j] * r[0]
    np.testing.assert_allclose(sum_rows(terms.sum(1), batch), expected, atol=1e-12)


@pytest.mark.parametrize("graph", range(3))
def test_each_map_is_the_transpose_of_the_other(graph: int) -> None:
    """<y, A x> = <A' y, x> with random vectors, and the derivatives are these maps."""
    batch, rng = graphs()[graph], np.random.default_rng(2)
    x = jnp.asarray(rng.normal(size=(batch.num_atoms, 2)))
    y = jnp.asarray(rng.normal(size=(*batch.neighbors.shape, 2)))
    y = jnp.where(batch.neighbor_mask[..., None], y, 0.0)
    left = (gather_neighbors(x, batch) * y).sum()
    np.testing.assert_allclose(left, (scatter_neighbors(y, batch) * x).sum(), rtol=1e-12)
    gradient = jax.grad(lambda v: (gather_neighbors(v, batch) * y).sum())(x)
    np.testing.assert_allclose(gradient, scatter_neighbors(y, batch), atol=1e-12)
    rows = jnp.asarray(rng.normal(size=(len(batch.centers), 2)))
    rows = rows.at[-1].set(0.0)
    left = (gather_centers(x, batch) * rows).sum()
    np.testing.assert_allclose(left, (sum_rows(rows, batch) * x).sum(), rtol=1e-12)


def test_second_derivatives_of_both_modes_agree_with_differences() -> None:
    batch = graphs()[1]
    x = jnp.asarray(np.random.default_rng(4).normal(size=(batch.num_atoms, 2)))
    v = jnp.asarray(np.random.default_rng(5).normal(size=x.shape))

    def value(x: jax.Array) -> jax.Array:
        products = gather_neighbors(x, batch) ** 2 * gather_centers(x, batch)[:, None]
        return (jnp.where(batch.neighbor_mask[..., None], products, 0.0)).sum()

    forward = jax.jvp(jax.grad(value), (x,), (v,))[1]
    backward = jax.grad(lambda x: (jax.grad(value)(x) * v).sum())(x)
    h = 1e-5
    difference = (jax.grad(value)(x + h * v) - jax.grad(value)(x - h * v)) / (2 * h)
    np.testing.assert_allclose(forward, difference, atol=1e-8)
    np.testing.assert_allclose(backward, difference, atol=1e-8)
    columns = jax.vmap(lambda e: jax.jvp(jax.grad(value), (x,), (e,))[1])(v[None])
    np.testing.assert_allclose(columns[0], forward, atol=1e-12)


def test_graphs_are_not_batched_by_vmap() -> None:
    batch = graphs()[0]
    stacked = jax.tree.map(lambda v: jnp.stack([v, v]), batch)
    with pytest.raises(NotImplementedError, match="pack them into one graph"):
        jax.vmap(lambda g: gather_neighbors(g.positions, g))(stacked)


def test_sum_over_structures() -> None:
    batch = graphs()[2]
    ones = jnp.where(batch.atom_mask, 1.0, 0.0)
    np.testing.assert_array_equal(sum_structures(ones, batch), [5, 3, 0, 0])
