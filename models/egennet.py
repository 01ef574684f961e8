"""E-GenNet: vectors weighted by scalars of pairs (Sverdlov & Dym, ICLR 2025, arXiv:2407.02025).

The state of an atom is C vectors g_i, zero at first; the atom itself is one of its neighbours, at
r_ii = 0. With u the envelope, e one table for the centre and one for the neighbour,

    s_ij = p_ij + MLP(p_ij),    p_ij = e(z_i) e'(z_j) W bessel(r_ij)
    s_ij <- s_ij + A |g_j| + a r_ij                                      (from the second block on)
    g_i <- sum_j u(r_ij) (g_j Theta + r_ij theta) tanh(s_ij alpha + beta) / sqrt(1 + n)
    E_i = MLP(tanh(|g_i O| A + b(z_i)))

where |.| is the length of each vector and n is avg_num_neighbors. Lengths are taken as sqrt(|g|^2 +
1) - 1, which is smooth at zero and tells apart what |g| tells apart. Published is the case of a
cutoff that reaches all atoms of a molecule, one number s_ij for each pair, and a readout of the sum
of tanh over the atoms rather than of each atom: an energy has to be additive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eqnet.graph import AtomGraph, gather_centers, gather_neighbors
from eqnet.irreps import Irreps, IrrepsArray, refuse_missing
from eqnet.layers import MLP, Dense, bessel, lengths_of, one_hot, select
from eqnet.ops import require_cartesian
from eqnet.ops.blocks import messages_in_blocks
from eqnet.so3 import HIGHEST


@dataclass(frozen=True)
class EGenNetConfig:
    """Hyper-parameters of an E-GenNet.

    Attributes:
        elements: atomic numbers, ascending.
        r_max: cutoff in angstrom.
        num_channels: vectors of each atom.
        hidden_channels: numbers s_ij of each pair; 1 as published.
        num_interactions: number of blocks.
        num_radial_basis: Bessel functions.
        num_cutoff_basis: order p of the polynomial cutoff.
        avg_num_neighbors: sums are divided by the square root of this and one, for the atom.
        product: 'cartesian', numbers times vectors: there is no other.
    """

    elements: tuple[int, ...]
    r_max: float = 5.0
    num_channels: int = 64
    hidden_channels: int = 32
    num_interactions: int = 4
    num_radial_basis: int = 16
    num_cutoff_basis: int = 6
    avg_num_neighbors: float = 1.0
    product: str = "cartesian"

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"num_channels": 32, "num_interactions": 3},
        "medium": {"num_channels": 64, "num_interactions": 4},
        "large": {"num_channels": 128, "num_interactions": 6},
    }

    def irreps(self) -> Irreps:
        """Irreps of the state.

        Raises:
            ValueError: another product.
        """
        require_cartesian("egennet", self.product)
        return Irreps(f"{self.num_channels}x1o")


def lengths(g: jax.Array) -> jax.Array:
    """sqrt(|g|^2 + 1) - 1 of each vector, [N, 3, C] -> [N, C]."""
    square = (g**2).sum(-2)
    return square / (jnp.sqrt(square + 1) + 1)


class Pairs(nnx.Module):
    """Numbers of the pairs before any block: p + MLP(p)."""

    def __init__(self, config: EGenNetConfig, *, rngs: nnx.Rngs):
        hidden, shape = config.hidden_channels, (len(config.elements), config.hidden_channels)
        self.received = nnx.Param(jax.random.normal(rngs.params(), shape))
        self.sent = nnx.Param(jax.random.normal(rngs.params(), shape))
        self.radial = MLP((config.num_radial_basis, hidden), rngs=rngs)
        self.residual = MLP((hidden, 2 * hidden, hidden), rngs=rngs)

    def of_atoms(self, chosen: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What an atom is as a centre and as a neighbour: one-hot [N, Z] -> [N, H] each."""
        return select(self.received[...], chosen), select(self.sent[...], chosen)

    def __call__(self, basis: jax.Array, received: jax.Array, sent: jax.Array) -> jax.Array:
        """[..., B] and twice [..., H] -> s [..., H]."""
        p = received * sent * self.radial(basis)
        return p + self.residual(p)


class Block(nnx.Module):
    """One sum over the neighbours and the atom itself; the first one finds no vectors yet."""

    def __init__(self, config: EGenNetConfig, *, first: bool, rngs: nnx.Rngs):
        channels, hidden = config.num_channels, config.hidden_channels
        self.scale = 1.0 / float(np.sqrt(config.avg_num_neighbors + 1))
        self.filter = Dense(hidden, channels, rngs=rngs)
        self.direction = nnx.Param(jax.random.normal(rngs.params(), (channels,)))
        self.mix = None if first else MLP((channels, channels), rngs=rngs)
        self.lengths = None if first else MLP((channels, hidden), rngs=rngs)
        self.distance = None if first else nnx.Param(jax.random.normal(rngs.params(), (hidden,)))

    def filters(self, s: jax.Array) -> jax.Array:
        """tanh(s alpha + beta), [..., H] -> [..., C]."""
        return jnp.tanh(self.filter(s))


class Vectors(nnx.Module):
    """AtomGraph -> the vectors of each atom, which turn with the structure.

    Args:
        config: hyper-parameters.
        rngs: source of the initial weights.
    """

    def __init__(self, config: EGenNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.pairs = Pairs(config, rngs=rngs)
        self.blocks = nnx.List(
            Block(config, first=n == 0, rngs=rngs) for n in range(config.num_interactions)
        )

    def __call__(self, graph: AtomGraph) -> jax.Array:
        """The state after the last block, [N, 3, num_channels]."""
        config = self.config
        r, distance, envelope = lengths_of(graph, config.r_max, config.num_cutoff_basis)
        basis = bessel(distance, config.r_max, config.num_radial_basis)
        chosen = one_hot(jnp.asarray(graph.species), len(config.elements), distance.dtype)
        received, sent = self.pairs.of_atoms(chosen)
        # lim r -> 0 of the Bessel functions, for the atom itself
        n = jnp.arange(1, config.num_radial_basis + 1, dtype=distance.dtype)
        first = float(np.sqrt(2.0)) * np.pi * config.r_max**-1.5
        own = self.pairs(first * n, received, sent)
        pairs = (basis, gather_centers(received, graph), gather_neighbors(sent, graph))
        edges = (r, distance, envelope)

        g = jnp.zeros((graph.num_atoms, 3, config.num_channels), distance.dtype)
        of_atoms = jnp.zeros_like(sent)  # sum of A |g_j| of the blocks so far
        of_distance = jnp.zeros(config.hidden_channels, distance.dtype)
        for block in self.blocks:
            if block.lengths is not None and block.distance is not None:
                of_atoms = of_atoms + block.lengths(lengths(g))
                of_distance = of_distance + block.distance[...]
            g = self.step(block, g, own, of_atoms, of_distance, pairs, edges, graph)
        return g

    @jax.named_scope("block")
    def step(
        self,
        block: Block,
        g: jax.Array,
        own: jax.Array,
        of_atoms: jax.Array,
        of_distance: jax.Array,
        pairs: tuple[jax.Array, ...],
        edges: tuple[jax.Array, ...],
        graph: AtomGraph,
    ) -> jax.Array:
        """State [N, 3, C] -> state [N, 3, C]."""
        h = jnp.zeros_like(g) if block.mix is None else block.mix(g)
        graphdef, weights = nnx.split((self.pairs, block))

        def some_rows(operands: Any, common: tuple[nnx.State, jax.Array]) -> jax.Array:
            (h, of_atoms), ((basis, received, sent), (r, distance, envelope)) = operands
            network, layer = nnx.merge(graphdef, common[0])
            s = network(basis, received[:, None], sent) + of_atoms
            filters = layer.filters(s + distance[..., None] * common[1]) * envelope[..., None]
            along = jnp.einsum("rka,rkc->rac", r, filters, precision=HIGHEST)
            return along * layer.direction[...] + (h * filters[:, :, None]).sum(1)

        common = (weights, of_distance)
        summed = messages_in_blocks(some_rows, (h, of_atoms), graph, (pairs, edges), common)
        itself = h * block.filters(own + of_atoms)[:, None]
        return block.scale * (summed + itself)


class EGenNet(nnx.Module):
    """AtomGraph -> energy of each atom [N], in units of the potential's scale; O(3)-invariant.

    Args:
        config: hyper-parameters.
        rngs: source of the initial weights.
        method: 'default' or 'auto', which are the same: there is one.
        needed: irreps that the features must have, for tensors.

    Raises:
        ValueError: it cannot give them.
    """

    def __init__(
        self,
        config: EGenNetConfig,
        *,
        rngs: nnx.Rngs,
        method: str = "default",
        needed: Irreps | str = "",
    ):
        require_cartesian("egennet", config.product, method)
        channels, num_elements = config.irreps().num_irreps, len(config.elements)
        self.config, self.irreps_out = config, Irreps(f"{channels}x0e") + config.irreps()
        refuse_missing(needed, self.irreps_out)
        self.vectors = Vectors(config, rngs=rngs)
        self.out = MLP((channels, channels), rngs=rngs)
        self.to_scalars = MLP((channels, channels), rngs=rngs)
        self.by_element = nnx.Param(jax.random.normal(rngs.params(), (num_elements, channels)))
        self.readout = MLP((channels, channels, 1), rngs=rngs)

    @property
    def methods(self) -> tuple[list[str]]:
        """Methods of the blocks."""
        return (["default" for _ in self.vectors.blocks],)

    def __call__(self, graph: AtomGraph) -> jax.Array:
        """Energy of each atom, [N]; padding atoms get some number to be masked."""
        scalars = self.features(graph).scalars
        with jax.named_scope("readout"):
            return self.readout(scalars)[:, 0]

    def features(self, graph: AtomGraph) -> IrrepsArray:
        """Numbers made of the lengths of the vectors, and the vectors, [N, irreps_out]."""
        g = self.vectors(graph)
        with jax.named_scope("readout"):
            chosen = one_hot(jnp.asarray(graph.species), len(self.config.elements), g.dtype)
            bias = select(self.by_element[...], chosen)
            scalars = jnp.tanh(self.to_scalars(lengths(self.out(g))) + bias)
        return IrrepsArray.from_blocks(self.irreps_out, [scalars[:, None], g])
