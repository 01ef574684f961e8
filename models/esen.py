"""eSEN: smooth equivariant networks in the frames of edges (Fu et al. 2025, arXiv:2502.12147).

Features x [N, d, C] of all degrees start from the elements and from sums over neighbours of radial
functions times harmonics. A layer adds, each time to normalised features,

    x_i <- x_i + sum_j u(r_ij) A_ij^T SO2(gate(SO2(R_ij A_ij [x_j ; x_i])))
    x_i <- x_i + W gate(W x_i)

with A_ij the turn into the frame of the edge, SO2 a linear map there, R_ij numbers that a network
makes of the length and the elements of the edge, and u an envelope with two continuous derivatives.
No neighbour caps, no grids, forces are gradients: the energy is smooth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from eqnet.graph import AtomGraph, sum_rows
from eqnet.irreps import Irreps, IrrepsArray, add, refuse_missing, spherical_irreps
from eqnet.layers import Dense, Linear, one_hot, select
from eqnet.norms import NormedMLP, RMSNorm
from eqnet.ops.edge_network import edge_embedding, edge_network, require_so2
from eqnet.ops.edge_scalars import (
    DegreeEmbedding,
    Edges,
    EdgeScalars,
    RadialBasis,
    RadialNetwork,
    check_radial_basis,
    edges_of,
)
from eqnet.ops.so2_linear import OrderRows, SO2Linear, gated, rows_of_degrees
from eqnet.ops.so2_orders import Group

DEGREE_SCALE = 5.0  # what the published model divides its first sum over neighbours by


@dataclass(frozen=True)
class ESENConfig:
    """Hyper-parameters of an eSEN.

    Attributes:
        elements: atomic numbers, ascending.
        r_max: cutoff in angstrom.
        num_channels: channels of each irrep.
        max_L: highest degree of the features.
        m_max: highest order |m| in the frames of the edges.
        num_interactions: number of layers.
        hidden_channels: between the two linear maps of an edge, of an atom, and in the readout.
        edge_channels: of the embeddings of the elements of an edge; width of the radial networks.
        num_radial_basis: radial functions.
        radial_basis: their kind, 'gaussian' or 'bessel'.
        num_cutoff_basis: order p of the polynomial cutoff.
        group: 'O3' has features of the parity of the harmonics, (-1)^l, which mirror images share;
            'SO3', as published, has twice the SO(2) weights and tells mirror images apart.
        product: 'so2', the only one that has gates in the frame of an edge.
    """

    elements: tuple[int, ...]
    r_max: float = 5.0
    num_channels: int = 64
    max_L: int = 2
    m_max: int = 2
    num_interactions: int = 2
    hidden_channels: int = 64
    edge_channels: int = 64
    num_radial_basis: int = 10
    radial_basis: RadialBasis = "gaussian"
    num_cutoff_basis: int = 5
    group: Group = "O3"
    product: str = "so2"

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {
            "num_channels": 16, "max_L": 1, "m_max": 1, "hidden_channels": 16, "edge_channels": 16,
        },
        "medium": {"num_channels": 24, "hidden_channels": 24, "edge_channels": 24},
        "large": {"num_channels": 64, "hidden_channels": 64, "edge_channels": 64},
    }  # fmt: skip

    def irreps(self) -> Irreps:
        """Irreps of the node features.

        Raises:
            ValueError: a choice that does not exist, or an option without effect.
        """
        require_so2("esen", self.product)
        check_radial_basis(self.num_radial_basis, self.radial_basis)
        self.rows()
        return spherical_irreps(self.max_L) * self.num_channels

    def rows(self) -> OrderRows:
        """Rows of the features in the frame of an edge."""
        return rows_of_degrees(self.max_L, self.m_max, self.group)


class EdgeUpdate(nnx.Module):
    """Two SO(2) maps with a gate between them, the first with radial factors."""

    def __init__(self, config: ESENConfig, scalars: EdgeScalars, *, rngs: nnx.Rngs):
        self.rows = config.rows()
        channels, hidden = config.num_channels, config.hidden_channels
        both, gates = 2 * channels, config.max_L * hidden
        self.first = SO2Linear(self.rows, self.rows, both, hidden, extra=gates, rngs=rngs)
        self.second = SO2Linear(self.rows, self.rows, hidden, channels, rngs=rngs)
        width, factors = config.edge_channels, self.first.map.num_factors
        self.radial = RadialNetwork(scalars, width, factors, rngs=rngs)

    def __call__(self, x: jax.Array, edges: Edges) -> tuple[jax.Array, tuple[()]]:
        """[r, k, rows, 2 C] -> [r, k, rows, C], in the frames of the edges."""
        hidden, gates = self.first(x, self.radial(edges))
        message, _ = self.second(gated(self.rows, hidden, gates))
        return message * edges.envelope[..., None, None], ()


class AtomUpdate(nnx.Module):
    """Two linear maps with a gate between them ('spectral' in the released code)."""

    def __init__(self, config: ESENConfig, *, rngs: nnx.Rngs):
        irreps, hidden = config.irreps(), spherical_irreps(config.max_L) * config.hidden_channels
        self.gates = Dense(config.num_channels, config.max_L * config.hidden_channels, rngs=rngs)
        self.up = Linear(irreps, hidden, rngs=rngs, bias=True)
        self.down = Linear(hidden, irreps, rngs=rngs, bias=True)

    def __call__(self, x: IrrepsArray) -> IrrepsArray:
        """[N, irreps] -> [N, irreps]."""
        # as released, the gates pass a SiLU and then a sigmoid
        gates = jax.nn.sigmoid(jax.nn.silu(self.gates(x.blocks[0][:, 0])))
        hidden = self.up(x)
        scalars, *others = hidden.blocks
        each = jnp.split(gates[:, None], len(others), axis=-1) if others else []
        blocks = [block * gate for block, gate in zip(others, each, strict=True)]
        return self.down(IrrepsArray.from_blocks(hidden.irreps, [jax.nn.silu(scalars), *blocks]))


class Layer(nnx.Module):
    """Messages, then an update of each atom, both on normalised features and residual."""

    def __init__(self, config: ESENConfig, scalars: EdgeScalars, *, rngs: nnx.Rngs):
        irreps = config.irreps()
        self.norms = nnx.List([RMSNorm(irreps, rngs=rngs) for _ in range(2)])
        self.edge_update = EdgeUpdate(config, scalars, rngs=rngs)
        self.atom_update = AtomUpdate(config, rngs=rngs)

    def __call__(
        self, x: IrrepsArray, frames: jax.Array, edges: Edges, graph: AtomGraph
    ) -> IrrepsArray:
        """[N, irreps] -> [N, irreps]."""
        z = self.norms[0](x).array.reshape((graph.num_atoms, frames.shape[-1], -1))
        message, _ = edge_network(self.edge_update, z, frames, edges, graph)
        message = sum_rows(message, graph).reshape(x.array.shape)
        x = IrrepsArray(x.irreps, x.array + message)
        return add(x, self.atom_update(self.norms[1](x)))


class ESEN(nnx.Module):
    """AtomGraph -> energy of each atom [N], in units of the potential's scale.

    O(3)-invariant, or with group 'SO3' invariant in proper rotations only.

    Args:
        config: hyper-parameters.
        rngs: source of the initial weights.
        method: 'default', 'auto' or 'so2', which are the same: there is one.
        needed: irreps that `features` must have: those of a tensor to be read from them.

    Raises:
        ValueError: the features lack irreps that are needed.
    """

    def __init__(
        self,
        config: ESENConfig,
        *,
        rngs: nnx.Rngs,
        method: str = "default",
        needed: Irreps | str = "",
    ):
        require_so2("esen", config.product, method)
        self.config = config
        self.irreps_out = irreps = config.irreps()
        refuse_missing(needed, irreps)
        num_elements = len(config.elements)
        channels, hidden, width = (
            config.num_channels, config.hidden_channels, config.edge_channels
        )  # fmt: skip
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (num_elements, channels)))
        # one embedding of the elements for all radial networks
        scalars = EdgeScalars(num_elements, config.num_radial_basis, width, rngs=rngs)
        self.degree_embedding = DegreeEmbedding(scalars, width, config.max_L, channels, rngs=rngs)
        self.layers = nnx.List(
            [Layer(config, scalars, rngs=rngs) for _ in range(config.num_interactions)]
        )
        self.norm = RMSNorm(irreps, rngs=rngs)
        self.readout = NormedMLP((channels, hidden, hidden, 1), rngs=rngs, norm=False)

    @property
    def methods(self) -> tuple[list[str]]:
        """Methods of the messages, layer by layer."""
        return (["so2" for _ in self.layers],)

    def __call__(self, graph: AtomGraph) -> jax.Array:
        """Energy of each atom, [N]; padding atoms get some number to be masked."""
        scalars = self.features(graph).blocks[0][:, 0]
        with jax.named_scope("readout"):
            return self.readout(scalars)[:, 0]

    def features(self, graph: AtomGraph) -> IrrepsArray:
        """Node features after the last norm, [N, irreps_out]."""
        config, embedding = self.config, self.embedding[...]
        unit, edges = edges_of(
            graph,
            config.r_max,
            config.num_radial_basis,
            config.num_cutoff_basis,
            config.radial_basis,
        )
        frames = config.rows().matrices(unit)
        chosen = one_hot(jnp.asarray(graph.species), len(config.elements), embedding.dtype)
        degrees = sum_rows(edge_embedding(self.degree_embedding, frames, edges), graph)
        x = IrrepsArray(config.irreps(), degrees.reshape((graph.num_atoms, -1)) / DEGREE_SCALE)
        scalars = IrrepsArray(Irreps([x.irreps[0]]), select(embedding, chosen))
        x = add(x, scalars)
        for layer in self.layers:
            x = layer(x, frames, edges, graph)
        return self.norm(x)
