"""Pairs of edges against numpy, and their maps against each other."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graphs import Structure, make_graph

from eqnet.graph import AtomGraph, displacements
from eqnet.ops.edge_pairs import edge_pairs, pairs_to_slots, slots_to_pairs


def graph(slots: int | None) -> AtomGraph:
    """A crystal whose atoms neighbour their own images, and a molecule."""
    cell = np.array([[2.6, 0.1, 0.0], [0.5, 2.9, 0.2], [0.0, -0.4, 3.1]])
    crystal = Structure(np.array([8, 1]), np.array([[0.1, 0.2, 0.0], [1.2, 1.5, 1.4]]), cell)
    places = np.array([[0.0, 0, 0], [1.1, 0, 0], [0, 1.2, 0.3]])
    molecule = Structure(np.array([1, 8, 1]), places, np.zeros((3, 3)))
    return make_graph([crystal, molecule], (1, 8), 3.5, extra_atoms=1, slots=slots)


@pytest.mark.parametrize("slots", [None, 3])
def test_both_directions_share_a_pair(slots: int | None, x64: None) -> None:
    atoms = graph(slots)
    pairs = edge_pairs(atoms)
    of_slot, real = np.asarray(pairs.of_slot), atoms.neighbor_mask
    number = real.sum() // 2
    assert sorted(of_slot[real]) == sorted([*range(number)] * 2)
    assert (of_slot.reshape(-1)[atoms.reverse] == of_slot)[real].all()
    distance = jnp.linalg.norm(displacements(atoms), axis=-1)
    lengths = np.asarray(slots_to_pairs(distance, pairs)) / 2
    assert not lengths[number:].any()
    back = np.asarray(pairs_to_slots(jnp.asarray(lengths), pairs))
    np.testing.assert_allclose(back, np.where(real, distance, 0.0), rtol=1e-14)


def test_maps_are_transposes_without_scatters(x64: None) -> None:
    atoms = graph(None)
    pairs, rng = edge_pairs(atoms), np.random.default_rng(0)
    values = jnp.asarray(rng.normal(size=(pairs.first.size, 2)))
    slots = jnp.asarray(rng.normal(size=(*pairs.of_slot.shape, 2)))
    one = (pairs_to_slots(values, pairs) * slots).sum()
    other = (values * slots_to_pairs(slots, pairs)).sum()
    assert float(one) == pytest.approx(float(other), rel=1e-13)

    def energy(values: jax.Array) -> jax.Array:
        return (pairs_to_slots(values, pairs) ** 3).sum()

    gradient = jax.grad(energy)(values)
    number = atoms.neighbor_mask.sum() // 2
    np.testing.assert_allclose(gradient[:number], 6 * values[:number] ** 2, rtol=1e-13)
    assert "scatter" not in str(jax.make_jaxpr(jax.grad(energy))(values))
    second = jax.grad(lambda v: (jax.grad(energy)(v) * values).sum())(values)
    np.testing.assert_allclose(second[:number], 12 * values[:number] ** 2, rtol=1e-13)
