"""The softmax over neighbours: against numpy atom by atom, stable, smooth where edges end."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graphs import Structure, make_graph

from eqnet.graph import AtomGraph
from eqnet.layers import polynomial_cutoff
from eqnet.ops.attention import attention_weights

ATOMS = 7


def graph_of(slots: int | None) -> AtomGraph:
    rng = np.random.default_rng(0)
    cloud = Structure(np.full(ATOMS, 6), rng.normal(0, 1.2, (ATOMS, 3)), np.zeros((3, 3)))
    return make_graph([cloud], (6,), 2.5, slots=slots, extra_atoms=1)


def random_input(graph: AtomGraph, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits of two heads, large where no edge is, and an envelope."""
    rng = np.random.default_rng(1)
    shape = np.shape(graph.neighbors)
    mask = np.asarray(graph.neighbor_mask)
    logits = np.where(mask[..., None], scale * rng.normal(size=(*shape, 2)), 1e5)
    return logits, rng.uniform(0.1, 1, shape) * mask


def brute_force(logits: np.ndarray, envelope: np.ndarray, graph: AtomGraph) -> np.ndarray:
    out = np.zeros_like(logits)
    for atom in range(graph.num_atoms):
        mine = np.argwhere(graph.neighbor_mask & (graph.centers == atom)[:, None])
        for head in range(logits.shape[-1]):
            terms = [np.exp(logits[r, k, head]) * envelope[r, k] for r, k in mine]
            for (r, k), term in zip(mine, terms, strict=True):
                out[r, k, head] = term / (1 + sum(terms))
    return out


@pytest.mark.parametrize("slots", [None, 2])
def test_softmax_over_all_rows_of_an_atom(slots: int | None, x64: None) -> None:
    graph = graph_of(slots)
    assert graph.one_row_per_atom == (slots is None)
    logits, envelope = random_input(graph, 2.0)
    found = attention_weights(jnp.asarray(logits), jnp.asarray(envelope), graph)
    np.testing.assert_allclose(found, brute_force(logits, envelope, graph), atol=1e-14)


def test_large_logits_neither_overflow_nor_vanish() -> None:
    """In float32, where exp(89) is infinite: the largest wins, the silent neighbour if all lose."""
    graph = graph_of(2)
    logits, envelope = (jnp.asarray(v, jnp.float32) for v in random_input(graph, 1000.0))

    def loss(logits: jax.Array, envelope: jax.Array) -> jax.Array:
        return (attention_weights(logits, envelope, graph) ** 2).sum()

    for sign in (1.0, -1.0):
        gradients = jax.grad(loss, (0, 1))(sign * logits, envelope)
        assert all(np.isfinite(g).all() for g in gradients)
    assert not np.any(attention_weights(-100 - jnp.abs(logits), envelope, graph) > 1e-30)
    weights = np.asarray(attention_weights(jnp.abs(logits), envelope, graph))
    totals = [weights[graph.centers == atom].sum((0, 1)) for atom in range(ATOMS)]
    np.testing.assert_allclose(totals, 1, atol=1e-5)


def test_a_last_neighbour_leaves_with_two_continuous_derivatives(x64: None) -> None:
    pair = Structure(np.array([6, 6]), np.array([[0.0, 0, 0], [1.9, 0, 0]]), np.zeros((3, 3)))
    graph = make_graph([pair], (6,), 2.0)

    def weight(distance: jax.Array) -> jax.Array:
        envelope = jnp.full((2, 1), polynomial_cutoff(distance, 2.0, 5))
        return attention_weights(jnp.full((2, 1, 1), 3.0), envelope, graph)[0, 0, 0]

    first, second = jax.grad(weight), jax.grad(jax.grad(weight))
    beyond, before, inside = jnp.array([2.001, 2.0 - 1e-7, 1.8])
    for derivative in (weight, first, second):
        assert derivative(beyond) == 0.0
        assert abs(derivative(before)) < 1e-3 < abs(derivative(inside))
