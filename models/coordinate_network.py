"""A network of plain coordinates: it knows nothing of rotations, and frames make it know them.

Messages are functions of the components of unit vectors, in one frame or in several that are
averaged with weights w_f of the atom that receives; u is the envelope:

    m_if = sum_j u(r_ij) silu(W silu(A h_i + B h_j + C bessel(r_ij) + D Q_if r_ij / |r_ij|))
    h_i <- h_i + sum_f w_if MLP(m_if / sqrt(avg_num_neighbors))

With one frame Q = 1 for all it is invariant in translations and permutations only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eqnet.graph import AtomGraph, gather_centers
from eqnet.layers import MLP, Dense, bessel, lengths_of, one_hot, select, silu
from eqnet.ops.blocks import messages_in_blocks
from eqnet.so3 import HIGHEST


@dataclass(frozen=True)
class CoordinateNetworkConfig:
    """Hyper-parameters of a network of coordinates.

    Attributes:
        elements: atomic numbers, ascending.
        r_max: cutoff in angstrom.
        num_channels: numbers of each atom.
        num_interactions: number of layers.
        num_radial_basis: Bessel functions.
        num_cutoff_basis: order p of the polynomial cutoff.
        avg_num_neighbors: sums over neighbours are divided by its square root.
    """

    elements: tuple[int, ...]
    r_max: float = 5.0
    num_channels: int = 64
    num_interactions: int = 3
    num_radial_basis: int = 8
    num_cutoff_basis: int = 6
    avg_num_neighbors: float = 1.0


class Layer(nnx.Module):
    """Messages in the frames of each atom, their sum, and an average over the frames."""

    def __init__(self, config: CoordinateNetworkConfig, *, rngs: nnx.Rngs):
        width = config.num_channels
        self.scale = 1.0 / float(np.sqrt(config.avg_num_neighbors))
        self.received = Dense(width, width, rngs=rngs)
        self.sent = MLP((width, width), rngs=rngs)
        self.radial = MLP((config.num_radial_basis, width), rngs=rngs)
        self.direction = MLP((3, width), rngs=rngs)
        self.message = MLP((width, width), rngs=rngs)
        self.update = MLP((width, width, width), rngs=rngs)

    def messages(self, atoms: jax.Array, basis: jax.Array, unit: jax.Array) -> jax.Array:
        """[r, k, C], [r, k, B] and [r, k, F, 3] -> [r, k, F, C]."""
        hidden = (atoms + self.radial(basis))[:, :, None] + self.direction(
            float(np.sqrt(3.0)) * unit
        )
        return silu(self.message(silu(hidden)))

    @jax.named_scope("layer")
    def __call__(
        self, h: jax.Array, edges: tuple[jax.Array, ...], weights: jax.Array, graph: AtomGraph
    ) -> jax.Array:
        """Numbers [N, C], edges as of `CoordinateNetwork.in_frames` and [N, F] -> [N, C]."""
        graphdef, state = nnx.split(self)

        def some_rows(operands: Any, common: nnx.State) -> jax.Array:
            sent, (received, (basis, envelope, unit, frames)) = operands
            turned = jnp.einsum("rfab,rkb->rkfa", frames, unit, precision=HIGHEST)
            found = nnx.merge(graphdef, common).messages(received[:, None] + sent, basis, turned)
            return (found * envelope[..., None, None]).sum(1)

        received = gather_centers(self.received(h), graph)
        summed = messages_in_blocks(some_rows, self.sent(h), graph, (received, edges), state)
        changes = self.update(self.scale * summed)
        return h + jnp.einsum("nf,nfc->nc", weights, changes)


class CoordinateNetwork(nnx.Module):
    """AtomGraph -> energy of each atom [N], in units of the potential's scale; not invariant.

    Args:
        config: hyper-parameters.
        rngs: source of the initial weights.
    """

    def __init__(self, config: CoordinateNetworkConfig, *, rngs: nnx.Rngs):
        self.config = config
        width = config.num_channels
        self.embedding = nnx.Param(
            jax.random.normal(rngs.params(), (len(config.elements), width))
        )  # fmt: skip
        self.layers = nnx.List(Layer(config, rngs=rngs) for _ in range(config.num_interactions))
        self.readout = MLP((width, width, 1), rngs=rngs)

    def in_frames(self, graph: AtomGraph, frames: jax.Array, weights: jax.Array) -> jax.Array:
        """Numbers of the atoms by averages over frames, [N, num_channels].

        Args:
            graph: atoms and neighbours.
            frames: [N, F, 3, 3], rows are axes; of zeros where directions are not looked at.
            weights: of the frames, [N, F].
        """
        config = self.config
        r, distance, envelope = lengths_of(graph, config.r_max, config.num_cutoff_basis)
        basis = bessel(distance, config.r_max, config.num_radial_basis)
        edges = (basis, envelope, r / distance[..., None], gather_centers(frames, graph))
        chosen = one_hot(jnp.asarray(graph.species), len(config.elements), distance.dtype)
        h = select(self.embedding[...], chosen)
        for layer in self.layers:
            h = layer(h, edges, weights, graph)
        return h

    @jax.named_scope("readout")
    def energies(self, h: jax.Array) -> jax.Array:
        """Numbers of the atoms [N, num_channels] -> their energies, [N]."""
        return self.readout(h)[:, 0]

    def __call__(self, graph: AtomGraph) -> jax.Array:
        """Energy of each atom, [N]; padding atoms get some number to be masked."""
        dtype = jnp.asarray(graph.positions).dtype
        frames = jnp.broadcast_to(jnp.eye(3, dtype=dtype), (graph.num_atoms, 1, 3, 3))
        weights = jnp.ones((graph.num_atoms, 1), dtype)
        return self.energies(self.in_frames(graph, frames, weights))
