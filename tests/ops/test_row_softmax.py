"""The softmax in one pass over rows: against numpy atom by atom, and stable."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graphs import Structure, make_graph

from eqnet.graph import AtomGraph
from eqnet.layers import polynomial_cutoff
from eqnet.ops.row_softmax import RowSums, join_rows, row_terms

ATOMS, HEADS = 6, 2


def graph_of(slots: int | None) -> AtomGraph:
    """A cloud, an atom without neighbours and a padding atom."""
    rng = np.random.default_rng(0)
    positions = np.concatenate([rng.normal(0, 0.8, (ATOMS, 3)), [[40.0, 0.0, 0.0]]])
    cloud = Structure(np.full(ATOMS + 1, 6), positions, np.zeros((3, 3)))
    return make_graph([cloud], (6,), 2.5, slots=slots, extra_atoms=1)


def random_input(graph: AtomGraph, scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, large where no edge is, an envelope, and values [R, K, 3, heads, 2]."""
    rng = np.random.default_rng(1)
    shape, mask = np.shape(graph.neighbors), np.asarray(graph.neighbor_mask)
    logits = np.where(mask[..., None], scale * rng.normal(size=(*shape, HEADS)), 1e5)
    return logits, rng.uniform(0.1, 1, shape) * mask, rng.normal(size=(*shape, 3, HEADS, 2))


def softmax(logits, envelope, values, graph: AtomGraph, *, silent: bool) -> jax.Array:
    largest, terms = row_terms(logits, envelope)
    summed = (terms[:, :, None, :, None] * values).sum(1)
    return join_rows(RowSums(largest, terms.sum(1), summed), graph, silent=silent)


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("slots", [None, 2])
def test_against_a_loop_over_atoms(slots: int | None, silent: bool, x64: None) -> None:
    graph = graph_of(slots)
    logits, envelope, values = random_input(graph, 2.0)
    expected = np.zeros((graph.num_atoms, 3, HEADS, 2))
    for atom in range(graph.num_atoms):
        edges = np.argwhere(graph.neighbor_mask & (graph.centers == atom)[:, None])
        terms = np.array([np.exp(logits[r, k]) * envelope[r, k] for r, k in edges])
        for (r, k), term in zip(edges, terms, strict=True):
            weight = term / (silent + terms.sum(0))
            expected[atom] += weight[None, :, None] * values[r, k]
    logits, envelope, values = (jnp.asarray(v) for v in (logits, envelope, values))
    found = jax.jit(softmax, static_argnames="silent")(
        logits, envelope, values, graph, silent=silent
    )
    np.testing.assert_allclose(found, expected, atol=1e-14)
    assert not np.any(found[ATOMS:])


def test_a_last_neighbour_leaves_with_two_continuous_derivatives(x64: None) -> None:
    pair = Structure(np.array([6, 6]), np.array([[0.0, 0, 0], [1.9, 0, 0]]), np.zeros((3, 3)))
    graph = make_graph([pair], (6,), 2.0)

    def mean(distance: jax.Array) -> jax.Array:
        envelope = jnp.full((2, 1), polynomial_cutoff(distance, 2.0, 5))
        logits, values = jnp.full((2, 1, 1), 3.0), jnp.ones((2, 1, 1, 1, 1))
        return softmax(logits, envelope, values, graph, silent=True)[0, 0, 0, 0]

    beyond, before, inside = jnp.array([2.001, 2.0 - 1e-7, 1.8])
    for derivative in (mean, jax.grad(mean), jax.grad(jax.grad(mean))):
        assert derivative(beyond) == 0.0
        assert abs(derivative(before)) < 1e-3 < abs(derivative(inside))


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("silent", [False, True])
def test_large_logits_neither_overflow_nor_vanish(silent: bool, sign: float) -> None:
    """In float32, where exp(89) is infinite: one neighbour, or silence, takes everything."""
    graph = graph_of(2)
    logits, envelope, _ = random_input(graph, 1.0)
    logits = jnp.asarray(sign * (200 + 1000 * np.abs(logits)), jnp.float32)
    ones = jnp.ones((*envelope.shape, 1, HEADS, 1), jnp.float32)

    def total(logits: jax.Array, envelope: jax.Array) -> jax.Array:
        return softmax(logits, envelope, ones, graph, silent=silent)[:ATOMS]

    envelope = jnp.asarray(envelope, jnp.float32)
    wins = 0.0 if silent and sign < 0 else 1.0
    np.testing.assert_allclose(total(logits, envelope), wins, atol=1e-6)
    gradients = jax.grad(lambda *args: (total(*args) ** 2).sum(), (0, 1))(logits, envelope)
    assert all(np.isfinite(g).all() for g in gradients)
