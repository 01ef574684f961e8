"""What every edge tells a convolution: its direction, as spherical harmonics, and its length."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from eqnet.graph import AtomGraph, displacements
from eqnet.irreps import IrrepsArray, spherical_irreps
from eqnet.layers import bessel, length_and_envelope
from eqnet.ops.blocks import rows_in_blocks
from eqnet.so3 import spherical_harmonics


def edge_features(
    graph: AtomGraph, l_max: int, r_max: float, num_basis: int, p: int, *, sign: int = 1
) -> tuple[IrrepsArray, jax.Array]:
    """Spherical harmonics and radial basis of all edges.

    Made again in the backward pass, of many edges a few rows at a time: it costs little, and what
    is made on the way would be a third of all memory.

    Args:
        graph: atoms and neighbours.
        l_max: highest degree of the spherical harmonics.
        r_max: cutoff in angstrom.
        num_basis: Bessel functions.
        p: order of the polynomial cutoff.
        sign: 1 for directions from the centre to the neighbour, -1 for the opposite ones.

    Returns:
        Spherical harmonics [R, K, (l_max + 1)^2, 1] and the radial basis [R, K, num_basis], which
        is zero in slots without an edge.
    """

    def features(vectors: jax.Array, mask: jax.Array) -> tuple[IrrepsArray, jax.Array]:
        distance, envelope = length_and_envelope(vectors, mask, r_max, p)
        harmonics = spherical_harmonics(l_max, sign * vectors / distance[..., None])
        directions = IrrepsArray.from_blocks(
            spherical_irreps(l_max), [block[..., None] for block in harmonics]
        )
        return directions, bessel(distance, r_max, num_basis) * envelope[..., None]

    @jax.checkpoint
    @jax.named_scope("edges")
    def of_all(graph: AtomGraph) -> tuple[IrrepsArray, jax.Array]:
        return rows_in_blocks(features, displacements(graph), jnp.asarray(graph.neighbor_mask))

    return of_all(graph)
