"""Attention over the neighbours of an atom that ends smoothly at the cutoff.

    a_ij = u_ij exp(s_ij) / (1 + sum_k u_ik exp(s_ik)),    u_ij = envelope(|r_ij|)

The envelope inside the softmax makes a neighbour that leaves vanish for the others too. The 1 is a
neighbour at logit zero that is always there and says nothing: without it the weight of a last
neighbour would be 1 up to the cutoff and then jump.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from eqnet.graph import AtomGraph, gather_centers, sum_rows


@jax.named_scope("softmax")
def attention_weights(logits: jax.Array, envelope: jax.Array, graph: AtomGraph) -> jax.Array:
    """Softmax of the logits over all neighbours of each atom, in whatever rows they stand.

    Args:
        logits: s, [R, K, heads]; any finite number in slots without an edge.
        envelope: u, [R, K], not negative, zero in slots without an edge.
        graph: says which rows belong to an atom.

    Returns:
        a, [R, K, heads], of sum less than one over the neighbours of an atom, zero where the
        envelope is.
    """
    inside = envelope[..., None] > 0
    # any shift common to the terms of an atom cancels; this one lets no exponential overflow
    largest = jnp.where(inside, jax.lax.stop_gradient(logits), 0.0).max(1, initial=0.0)
    shift = largest if graph.one_row_per_atom else largest[graph.rows].max(1)[graph.centers]
    terms = envelope[..., None] * jnp.exp(jnp.where(inside, logits - shift[:, None], 0.0))
    total = gather_centers(sum_rows(terms.sum(1), graph), graph) + jnp.exp(-shift)
    return terms / total[:, None]
