"""Edges (i, j) and (j, i) as one pair: what depends on the length of an edge alone is made once.

A large radial network has most of the operations of a model; on pairs, half of them. Numbers go
from slots to pairs as the sum of both directions and from pairs to both slots; these two maps are
each other's transposes and gathers, so that derivatives of any order are too.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from eqnet.graph import AtomGraph, linear_pair


class EdgePairs(NamedTuple):
    """Where both directions of each pair stand; an index past the end means padding.

    Attributes:
        first: [P] flat slot of one direction, with P = R K / 2.
        second: [P] flat slot of the other direction.
        of_slot: [R, K] the pair of a slot.
    """

    first: jax.Array
    second: jax.Array
    of_slot: jax.Array


def edge_pairs(graph: AtomGraph) -> EdgePairs:
    """The pairs of all edges of a graph."""
    reverse = jnp.asarray(graph.reverse)
    slots = jnp.arange(reverse.size, dtype=reverse.dtype)
    flat = reverse.reshape(-1)
    # a padding slot is its own reverse
    is_first, is_second = slots < flat, slots > flat
    number = reverse.size // 2
    (first,) = jnp.nonzero(is_first, size=number, fill_value=reverse.size)
    second = flat.at[first].get(mode="fill", fill_value=reverse.size)
    count = jnp.cumsum(is_first) - 1
    of_slot = jnp.where(is_first, count, jnp.where(is_second, count[flat], number))
    return EdgePairs(first, second, of_slot.reshape(reverse.shape))


def _filled(values: jax.Array, index: jax.Array) -> jax.Array:
    return values.at[index].get(mode="fill", fill_value=0)


def _to_slots(values, first, second, of_slot):
    del first, second
    return _filled(values, of_slot)


def _from_slots(slots, first, second, of_slot):
    del of_slot
    flat = slots.reshape((-1, *slots.shape[2:]))
    return _filled(flat, first) + _filled(flat, second)


_slots, _slots_transposed = linear_pair("pairs_to_slots", _to_slots, _from_slots)


def pairs_to_slots(values: jax.Array, pairs: EdgePairs) -> jax.Array:
    """Value of the pair of each slot, zero in padding: [P, ...] -> [R, K, ...]."""
    return _slots(values, *pairs)


def slots_to_pairs(slots: jax.Array, pairs: EdgePairs) -> jax.Array:
    """Sum over both directions of each pair, the transpose: [R, K, ...] -> [P, ...]."""
    return _slots_transposed(slots, *pairs)
