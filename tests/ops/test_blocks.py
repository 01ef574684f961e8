"""Work in blocks of rows is the work on all rows, with its first and second derivatives."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graphs import Structure, make_graph

from eqnet.graph import AtomGraph
from eqnet.ops import blocks
from eqnet.ops.blocks import messages_in_blocks, rows_in_blocks
from eqnet.ops.edge_features import edge_features

WIDTH = 5


def some_rows(block, common):
    """Nonlinear in everything; [n, K, WIDTH], [n, K, WIDTH] -> [n, WIDTH], zero where own is."""
    sent, own = block
    return jnp.sin(sent * own @ common["matrix"]).sum(1) + common["shift"] * (own**2).sum(1)


def plain(x, graph: AtomGraph, own, common):
    values = some_rows((x[jnp.asarray(graph.neighbors)], own), common)
    return jnp.zeros_like(x).at[jnp.asarray(graph.centers)].add(values)


def blocked(x, graph: AtomGraph, own, common):
    return messages_in_blocks(some_rows, x, graph, own, common)


def summed_after(x, graph: AtomGraph, own, common):
    """Features in two parts, results of the rows in two parts."""

    def in_parts(block, common):
        (left, right), own = block
        values = some_rows((jnp.concatenate([left, right], -1), own), common)
        return values[:, :1], values[:, 1:]

    parts = messages_in_blocks(in_parts, (x[:, :2], x[:, 2:]), graph, own, common, summed=False)
    values = jnp.concatenate(parts, -1)
    return jnp.zeros_like(x).at[jnp.asarray(graph.centers)].add(values)


@pytest.mark.parametrize("blocked", [blocked, summed_after])
@pytest.mark.parametrize("slots", [40, 9])
def test_messages_and_their_derivatives(slots: int, blocked) -> None:
    rng = np.random.default_rng(0)
    positions = rng.uniform(0, 6, (45, 3))
    structure = Structure(rng.choice([1, 8], 45), positions, np.zeros((3, 3)))
    graph = make_graph([structure], (1, 8), 4.0, slots=slots, width=slots)
    num_rows = graph.neighbors.shape[0]
    with jax.enable_x64():
        x = jnp.asarray(rng.normal(size=(graph.num_atoms, WIDTH)))
        own = jnp.asarray(rng.normal(size=(num_rows, slots, WIDTH)))
        common = {
            "matrix": jnp.asarray(rng.normal(size=(WIDTH, WIDTH))),
            "shift": jnp.asarray(rng.normal(size=WIDTH)),
        }

        def derivatives(function):
            def energy(x, own, common):
                return jnp.tanh(0.1 * function(x, graph, own, common)).sum()

            def force_loss(x, own, common):
                gradients = jax.tree.leaves(jax.grad(energy, (0, 1, 2))(x, own, common))
                return sum(jnp.sum(jnp.cos(gradient)) for gradient in gradients)

            arguments = (x, own, common)
            first = jax.grad(energy, (0, 1, 2))(*arguments)
            second = jax.jit(jax.grad(force_loss, (0, 1, 2)))(*arguments)
            return jax.tree.leaves((function(x, graph, own, common), first, second))

        assert "scan" in str(jax.make_jaxpr(lambda x: blocked(x, graph, own, common))(x))
        for ours, expected in zip(derivatives(blocked), derivatives(plain), strict=True):
            scale = max(1.0, float(jnp.abs(expected).max()))
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12 * scale)


def test_many_rows_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "MANY_PARTS", 2)
    monkeypatch.setattr(blocks, "ROWS_AT_A_TIME", {"cpu": 4})
    rng = np.random.default_rng(0)
    with jax.enable_x64():
        x, y = jnp.asarray(rng.normal(size=(11, 3))), jnp.asarray(rng.normal(size=(11, 2)))
        matrix = jnp.asarray(rng.normal(size=(3, 2)))

        def energy(x, y, matrix, by):
            return jnp.tanh(by(lambda x, y: jnp.sin(x @ matrix) * y, x, y)).sum()

        def values(by):
            return jax.value_and_grad(energy, (0, 1, 2))(x, y, matrix, by)

        ours, expected = values(rows_in_blocks), values(lambda function, *some: function(*some))
        assert "scan" in str(jax.make_jaxpr(lambda x: energy(x, y, matrix, rows_in_blocks))(x))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-13), ours, expected)


def test_edges_of_many_atoms_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last part is filled up with edges that have a direction too."""
    positions = np.random.default_rng(0).uniform(0, 6, (20, 3))
    graph = make_graph([Structure(np.full(20, 8), positions, np.zeros((3, 3)))], (8,), 4.0)
    weights = jnp.arange(16.0)

    def total(positions: jax.Array) -> jax.Array:
        harmonics, basis = edge_features(replace(graph, positions=positions), 3, 4.0, 8, 5)
        return jnp.sum(jnp.sin(harmonics.array * weights)) + jnp.sum(basis**2)

    with jax.enable_x64(), jax.debug_nans(True):
        expected = jax.value_and_grad(total)(jnp.asarray(positions))
        monkeypatch.setattr(blocks, "MANY_PARTS", 1)
        monkeypatch.setattr(blocks, "ROWS_AT_A_TIME", {"cpu": 7})
        ours = jax.value_and_grad(total)(jnp.asarray(positions))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11), ours, expected)
