"""What an edge tells besides its direction: its length and the two elements at its ends."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from eqnet.graph import AtomGraph
from eqnet.layers import bessel, gaussian, lengths_of
from eqnet.norms import NormedMLP

RadialBasis = Literal["gaussian", "bessel"]
# Standard deviation of the first embeddings: radial functions are at first those of the length.
SMALL = 1e-3


class Edges(NamedTuple):
    """Edges in rows.

    Attributes:
        basis: radial functions of the length, [R, K, H].
        envelope: goes to zero at the cutoff with two derivatives, [R, K]; zero without an edge.
        sent: species of the neighbour, [R, K].
        received: species of the centre, [R, K].
    """

    basis: jax.Array
    envelope: jax.Array
    sent: jax.Array
    received: jax.Array


def check_radial_basis(number: int, radial_basis: RadialBasis = "gaussian") -> None:
    """Refuse radial functions that cannot be made.

    Raises:
        ValueError: no such kind, or a single Gaussian, which has no width.
    """
    if radial_basis not in ("gaussian", "bessel"):
        raise ValueError(f"radial_basis is gaussian or bessel, not {radial_basis!r}")
    if radial_basis == "gaussian" and number < 2:
        raise ValueError(f"Gaussians need num_radial_basis of 2 or more, not {number}")


@jax.named_scope("edges")
def edges_of(
    graph: AtomGraph, r_max: float, num_basis: int, p: int, radial_basis: RadialBasis = "gaussian"
) -> tuple[jax.Array, Edges]:
    """Directions and scalars of all edges.

    Args:
        graph: atoms and neighbours.
        r_max: cutoff in angstrom.
        num_basis: radial functions.
        p: order of the polynomial cutoff.
        radial_basis: their kind.

    Returns:
        Unit vectors from the centre to the neighbour [R, K, 3], and the rest.
    """
    functions = {"gaussian": gaussian, "bessel": bessel}
    vectors, distance, envelope = lengths_of(graph, r_max, p)
    species = jnp.asarray(graph.species)
    sent = species[jnp.asarray(graph.neighbors)]
    received = jnp.broadcast_to(species[jnp.asarray(graph.centers)][:, None], sent.shape)
    basis = functions[radial_basis](distance, r_max, num_basis)
    return vectors / distance[..., None], Edges(basis, envelope, sent, received)


class EdgeScalars(nnx.Module):
    """Radial functions beside an embedding of each of the two elements.

    Args:
        num_elements: of the model.
        num_basis: radial functions.
        channels: of each embedding.
    """

    def __init__(self, num_elements: int, num_basis: int, channels: int, *, rngs: nnx.Rngs):
        self.size = num_basis + 2 * channels
        self.sent, self.received = (
            nnx.Param(SMALL * jax.random.normal(rngs.params(), (num_elements, channels)))
            for _ in range(2)
        )

    def __call__(self, edges: Edges) -> jax.Array:
        """[r, k, size]."""
        parts = [edges.basis]
        for table, species in ((self.sent, edges.sent), (self.received, edges.received)):
            # a matrix product: the derivative of a choice of rows is a scatter
            chosen = jax.nn.one_hot(species, table.shape[0], dtype=edges.basis.dtype)
            parts.append(chosen @ table[...])
        return jnp.concatenate(parts, axis=-1)


class RadialNetwork(nnx.Module):
    """Numbers that an edge makes of its scalars.

    Args:
        scalars: of the edge; several networks may share them.
        width: of the two hidden layers.
        size: how many numbers.
    """

    def __init__(self, scalars: EdgeScalars, width: int, size: int, *, rngs: nnx.Rngs):
        self.scalars = scalars
        self.mlp = NormedMLP((scalars.size, width, width, size), rngs=rngs)

    @jax.named_scope("radial")
    def __call__(self, edges: Edges) -> jax.Array:
        """Some rows of edges -> [r, k, size]."""
        return self.mlp(self.scalars(edges))


class DegreeEmbedding(nnx.Module):
    """The first features of all degrees: numbers at m = 0 in the frames of the edges.

    Args:
        scalars: of the edge.
        width: of the hidden layers.
        max_L: highest degree.
        channels: numbers for each degree.
    """

    def __init__(
        self, scalars: EdgeScalars, width: int, max_L: int, channels: int, *, rngs: nnx.Rngs
    ):
        self.channels = channels
        self.radial = RadialNetwork(scalars, width, (max_L + 1) * channels, rngs=rngs)

    def __call__(self, edges: Edges) -> jax.Array:
        """Some rows of edges -> [r, k, max_L + 1, channels]."""
        numbers = self.radial(edges) * edges.envelope[..., None]
        return numbers.reshape((*numbers.shape[:2], -1, self.channels))
