"""A softmax over neighbours in one pass over the rows, for messages too large to keep.

    out_i = sum_j u_ij exp(s_ij) v_ij / (b + sum_j u_ij exp(s_ij)),    b = 1 or 0

Each row sums its own terms relative to its own largest logit; the rows of an atom are joined
afterwards, so that logits and messages exist for a few rows at a time (Milakov and Gimelshein 2018,
arXiv:1805.02867). With u = 1 and b = 0 this is the plain softmax. With an envelope u it is smooth
at the cutoff if b = 1, a neighbour at logit zero that is always there and says nothing: without it
the weight of a last neighbour would be 1 up to the cutoff and then jump.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from eqnet.graph import AtomGraph, gather_centers, sum_rows


class RowSums(NamedTuple):
    """Sums over the slots of each row, relative to exp(largest).

    Attributes:
        largest: logit, [r, heads]; minus infinity in rows without edges. A constant.
        total: sum of u exp(s - largest), [r, heads].
        values: sum of u exp(s - largest) v, [r, d, heads, channels].
    """

    largest: jax.Array
    total: jax.Array
    values: jax.Array


def row_terms(logits: jax.Array, envelope: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest logit of each row and u exp(s - largest).

    Args:
        logits: s, [r, k, heads]; any finite number in slots without an edge.
        envelope: u, [r, k], not negative, zero in slots without an edge.

    Returns:
        [r, heads] and [r, k, heads].
    """
    inside = envelope[..., None] > 0
    # any shift common to the terms of an atom cancels; this one lets no exponential overflow
    largest = jnp.where(inside, lax.stop_gradient(logits), -jnp.inf).max(1)
    above = jnp.where(inside, logits, 0.0) - jnp.where(inside, largest[:, None], 0.0)
    return largest, envelope[..., None] * jnp.exp(above)


@jax.named_scope("softmax")
def join_rows(sums: RowSums, graph: AtomGraph, *, silent: bool) -> jax.Array:
    """The weighted mean of the messages to each atom, zero where it has none.

    Args:
        sums: of all rows.
        graph: says which rows belong to an atom.
        silent: whether b is 1, a neighbour at logit zero that says nothing, or 0.

    Returns:
        [N, d, heads, channels].
    """
    shift = sums.largest if graph.one_row_per_atom else sums.largest[graph.rows].max(1)
    shift = jnp.maximum(shift, 0.0) if silent else jnp.where(shift > -jnp.inf, shift, 0.0)
    share = jnp.exp(sums.largest - gather_centers(shift, graph))
    total = sum_rows(share * sums.total, graph)
    if silent:
        total = total + jnp.exp(-shift)
    values = sum_rows(share[:, None, :, None] * sums.values, graph)
    return values / jnp.where(total > 0, total, 1.0)[:, None, :, None]
