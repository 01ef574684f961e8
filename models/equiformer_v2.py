"""EquiformerV2: attention in the frames of edges (Liao et al., ICLR 2024, arXiv:2306.12059).

Features x [N, d, C] of all degrees start from the elements and from sums over neighbours. A layer
does, each time on normalised features,

    u_ij, e_ij = SO2(R_ij A_ij [x_j ; x_i]),    v_ij = SO2(activation(u_ij, e_ij))
    a_ij = softmax over j of  w . smooth_leaky_relu(layer_norm(e_ij))  for each head
    x_i <- x_i + W sum_j A_ij^T a_ij v_ij,    x_i <- x_i + feed_forward(x_i)

with A_ij the turn into the frame of the edge, SO2 a linear map there and R_ij numbers that a
network makes of the length and the elements of the edge. Degrees that lose rows to m_max are not
scaled up when they are turned back: the linear map of their degree is free to. Forces are
gradients; direct ones are a tensor of the atoms (`eqnet train_tensors --target direct_forces`).
Dropout and drop path are left out: a loss with forces would have to draw the same in both passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eqnet.graph import AtomGraph, sum_rows
from eqnet.irreps import Irreps, IrrepsArray, refuse_missing, spherical_irreps
from eqnet.layers import MLP, Dense, Gate, Linear, one_hot, select, silu, smooth_leaky_relu
from eqnet.norms import NormedMLP, NumberNorm, SeparableNorm, normalised
from eqnet.ops.blocks import in_blocks
from eqnet.ops.edge_network import edge_embedding, edge_network, require_so2
from eqnet.ops.edge_scalars import (
    DegreeEmbedding,
    Edges,
    EdgeScalars,
    RadialNetwork,
    check_radial_basis,
    edges_of,
)
from eqnet.ops.row_softmax import RowSums, join_rows, row_terms
from eqnet.ops.s2_activation import S2Activation, S2Grid, check_activation, components
from eqnet.ops.so2_linear import OrderRows, SO2Linear, gated, rows_of_degrees
from eqnet.ops.so2_orders import Group

PUBLISHED_GRID = 18  # latitudes and azimuths


@dataclass(frozen=True)
class EquiformerV2Config:
    """Hyper-parameters of an EquiformerV2.

    Attributes:
        elements: atomic numbers, ascending.
        r_max: cutoff in angstrom.
        num_channels: channels of each irrep.
        max_L: highest degree of the features.
        m_max: highest order |m| in the frames of the edges.
        num_interactions: number of layers.
        num_heads: of the attention.
        alpha_channels: numbers of each head that its logit is made of.
        value_channels: channels that each head sends.
        hidden_channels: between the two SO(2) maps of the attention.
        ffn_channels: hidden channels of the feed-forward networks.
        edge_channels: of the embeddings of the elements of an edge; width of the radial networks.
        num_radial_basis: Gaussians.
        num_cutoff_basis: order p of the polynomial cutoff.
        avg_num_neighbors: the first sum over neighbours is divided by it.
        group: 'O3' for features of the parity of the harmonics, (-1)^l, that mirror images share;
            'SO3', as published, has twice the SO(2) weights and tells mirror images apart.
        activation: 'gate', exactly equivariant, or 's2', as published: SiLU at the points of a
            sphere, whose error the potential reports.
        grid_resolution: latitudes and azimuths of the sphere of 's2'; 0 for the published 18.
        attention: 'smooth', with the envelope inside the softmax, so that energies are smooth
            where neighbours leave, or 'softmax', as published: energies and forces jump there.
        product: tensor product of the messages: 'so2', the only one that can tell heads and gates
            in the frame of an edge.
    """

    elements: tuple[int, ...]
    r_max: float = 5.0
    num_channels: int = 64
    max_L: int = 2
    m_max: int = 2
    num_interactions: int = 4
    num_heads: int = 4
    alpha_channels: int = 32
    value_channels: int = 16
    hidden_channels: int = 32
    ffn_channels: int = 64
    edge_channels: int = 64
    num_radial_basis: int = 32
    num_cutoff_basis: int = 5
    avg_num_neighbors: float = 1.0
    group: Group = "O3"
    activation: Literal["gate", "s2"] = "gate"
    grid_resolution: int = 0
    attention: Literal["smooth", "softmax"] = "smooth"
    product: str = "so2"

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {
            "num_channels": 16, "max_L": 1, "m_max": 1, "num_interactions": 2,
            "alpha_channels": 16, "value_channels": 8, "hidden_channels": 16, "ffn_channels": 32,
            "edge_channels": 16,
        },
        "medium": {
            "num_channels": 16, "num_interactions": 2, "alpha_channels": 16, "value_channels": 8,
            "hidden_channels": 16, "ffn_channels": 16, "edge_channels": 16,
        },
        "large": {
            "num_channels": 48, "num_interactions": 3, "alpha_channels": 16, "ffn_channels": 48,
            "edge_channels": 32,
        },
    }  # fmt: skip

    def irreps(self) -> Irreps:
        """Irreps of the node features.

        Raises:
            ValueError: a choice that does not exist, or an option without effect.
        """
        if self.attention not in ("smooth", "softmax"):
            raise ValueError(
                f"attention of equiformer_v2 is smooth or softmax, not {self.attention!r}"
            )
        default = type(self).num_cutoff_basis
        if self.attention == "softmax" and self.num_cutoff_basis != default:
            raise ValueError("num_cutoff_basis has no effect with attention softmax: leave it out")
        require_so2("equiformer_v2", self.product)
        check_radial_basis(self.num_radial_basis)
        check_activation("equiformer_v2", self.activation, self.grid_resolution)
        self.rows()
        if self.activation == "s2":
            self.s2(components(self.max_L))
        return spherical_irreps(self.max_L) * self.num_channels

    def rows(self) -> OrderRows:
        """Rows of the features in the frame of an edge."""
        return rows_of_degrees(self.max_L, self.m_max, self.group)

    def s2(self, components: tuple[tuple[int, int], ...], depth: int = 1) -> S2Activation:
        """SiLU at the points of a sphere for features with these (l, m)."""
        points = self.grid_resolution or PUBLISHED_GRID
        return S2Activation(S2Grid(components, points, points), depth)


def flat(irreps: Irreps, x: jax.Array) -> IrrepsArray:
    """[N, d, C] -> [N, d C]."""
    return IrrepsArray(irreps, x.reshape((len(x), -1)))


def edge_scalars(config: EquiformerV2Config, rngs: nnx.Rngs) -> EdgeScalars:
    """Scalars of an edge; each radial network has embeddings of the elements of its own."""
    elements = len(config.elements)
    return EdgeScalars(elements, config.num_radial_basis, config.edge_channels, rngs=rngs)


class Messages(nnx.Module):
    """Logits and values of some rows of edges, in their frames."""

    def __init__(self, config: EquiformerV2Config, *, rngs: nnx.Rngs):
        rows, hidden = config.rows(), config.hidden_channels
        self.rows, self.heads = rows, config.num_heads
        self.activation = config.s2(rows.components) if config.activation == "s2" else None
        logit = config.num_heads * config.alpha_channels
        others = config.max_L if self.activation is None else 1
        self.first = SO2Linear(
            rows, rows, 2 * config.num_channels, hidden, extra=logit + others * hidden, rngs=rngs
        )
        self.radial = RadialNetwork(
            edge_scalars(config, rngs), config.edge_channels, self.first.map.num_factors, rngs=rngs
        )
        self.second = SO2Linear(
            rows, rows, hidden, config.num_heads * config.value_channels, rngs=rngs
        )
        self.norm = NumberNorm(config.alpha_channels)
        shape = (config.num_heads, config.alpha_channels)
        self.directions = nnx.Param(jax.random.normal(rngs.params(), shape))

    def __call__(self, z: jax.Array, edges: Edges) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Features [r, k, rows, 2 C] -> values times exp(logit), and `row_terms` for each head."""
        z, scalars = self.first(z, self.radial(edges))
        alpha, others = jnp.split(scalars, [self.directions.size], axis=-1)
        largest, terms = row_terms(self.logits(alpha), edges.envelope)
        values, _ = self.second(self.activate(z, others))
        by_channel = jnp.repeat(terms, values.shape[-1] // self.heads, axis=-1)
        return values * by_channel[..., None, :], (largest, terms.sum(1))

    def logits(self, alpha: jax.Array) -> jax.Array:
        """[r, k, heads * alpha_channels] -> [r, k, heads]."""
        directions = self.directions[...]
        alpha = self.norm(alpha.reshape((*alpha.shape[:2], *directions.shape)))
        scale = np.sqrt(directions.shape[1]).astype(alpha.dtype)
        return (smooth_leaky_relu(alpha) * directions).sum(-1) / scale

    def activate(self, z: jax.Array, others: jax.Array) -> jax.Array:
        """Gates; or SiLU on the sphere, and for the scalars SiLU of what came out besides."""
        if self.activation is None:
            return gated(self.rows, z, others)
        on_sphere = self.activation(z.reshape((-1, *z.shape[2:]))).reshape(z.shape)
        scalars = jax.nn.silu(others)[..., None, :]
        return jnp.concatenate([scalars, on_sphere[..., 1:, :]], axis=-2)


class GraphAttention(nnx.Module):
    """Messages, their softmax over the neighbours of an atom, and a linear map of the sum."""

    def __init__(self, config: EquiformerV2Config, channels_out: int, *, rngs: nnx.Rngs):
        hidden = spherical_irreps(config.max_L)
        self.smooth, self.heads = config.attention == "smooth", config.num_heads
        self.messages = Messages(config, rngs=rngs)
        self.project = Linear(
            hidden * (config.num_heads * config.value_channels), hidden * channels_out,
            bias=True, rngs=rngs,
        )  # fmt: skip

    @jax.named_scope("attention")
    def __call__(
        self, x: jax.Array, frames: jax.Array, edges: Edges, graph: AtomGraph
    ) -> jax.Array:
        """[N, d, C] -> [N, d, channels_out]."""
        values, (largest, total) = edge_network(self.messages, x, frames, edges, graph)
        values = values.reshape((*values.shape[:2], self.heads, -1))
        z = join_rows(RowSums(largest, total, values), graph, silent=self.smooth)
        return self.project(flat(self.project.irreps_in, z)).array.reshape((*x.shape[:2], -1))


class FeedForward(nnx.Module):
    """A network on the features of each atom: gated, or at the points of a sphere."""

    def __init__(self, config: EquiformerV2Config, channels_out: int, *, rngs: nnx.Rngs):
        channels, width = config.num_channels, config.ffn_channels
        irreps = spherical_irreps(config.max_L)
        self.expand = Linear(irreps * channels, irreps * width, bias=True, rngs=rngs)
        self.contract = Linear(irreps * width, irreps * channels_out, bias=True, rngs=rngs)
        self.width, self.sphere = width, None
        if config.activation == "s2":
            self.sphere = config.s2(components(config.max_L), depth=2)
            self.at_points = MLP((width,) * 4, rngs=rngs)
            self.scalars = Dense(channels, width, rngs=rngs)
        else:
            self.gate = Gate(irreps * width)
            self.scalars = Dense(channels, self.gate.num_gates, rngs=rngs)

    @jax.named_scope("feed_forward")
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, d, C] -> [N, d, channels_out]."""
        scalars = self.scalars(x[:, 0])
        hidden = self.expand(flat(self.expand.irreps_in, x)).array
        if self.sphere is None:
            parts = [hidden[:, : self.width], scalars, hidden[:, self.width :]]
            hidden = self.gate(IrrepsArray(self.gate.irreps_in, jnp.concatenate(parts, axis=1)))
        else:
            z = on_sphere(self.sphere, self.at_points, hidden.reshape((*x.shape[:2], -1)))
            z = jnp.concatenate([silu(scalars)[:, None], z[:, 1:]], axis=1)
            hidden = flat(self.contract.irreps_in, z)
        return self.contract(hidden).array.reshape((*x.shape[:2], -1))


def on_sphere(sphere: S2Activation, mlp: MLP, z: jax.Array) -> jax.Array:
    """A network at the points of a sphere, [N, d, F] -> [N, d, F], a few atoms at a time."""
    row_bytes = sphere.grid.num_points * z.shape[-1] * z.dtype.itemsize
    return in_blocks(lambda some: sphere(some, mlp), (z,), row_bytes)


class Layer(nnx.Module):
    """Attention and feed-forward network, each of normalised features and added to its input."""

    def __init__(self, config: EquiformerV2Config, *, rngs: nnx.Rngs):
        irreps = config.irreps()
        self.norm = SeparableNorm(irreps, rngs=rngs)
        self.norm_again = SeparableNorm(irreps, rngs=rngs)
        self.attention = GraphAttention(config, config.num_channels, rngs=rngs)
        self.feed_forward = FeedForward(config, config.num_channels, rngs=rngs)

    def __call__(
        self, x: jax.Array, frames: jax.Array, edges: Edges, graph: AtomGraph
    ) -> jax.Array:
        """[N, d, C] -> [N, d, C]."""
        x = x + self.attention(normalised(self.norm, x), frames, edges, graph)
        return x + self.feed_forward(normalised(self.norm_again, x))


class EquiformerV2(nnx.Module):
    """AtomGraph -> energy of each atom [N], in units of the potential's scale.

    Invariant under the group of its configuration; with activation 's2' only up to the error that
    its activations declare.

    Args:
        config: hyper-parameters.
        rngs: source of the initial weights.
        method: 'default', 'auto' or 'so2': there is one.
        needed: irreps that `features` must have: those of a tensor to be read from them.

    Raises:
        ValueError: a choice that does not exist, or the features lack irreps that are needed.
    """

    def __init__(
        self,
        config: EquiformerV2Config,
        *,
        rngs: nnx.Rngs,
        method: str = "default",
        needed: Irreps | str = "",
    ):
        require_so2("equiformer_v2", config.product, method)
        self.irreps_out = config.irreps()
        refuse_missing(needed, self.irreps_out)
        self.config, self.rows = config, config.rows()
        self.embedding = nnx.Param(
            jax.random.normal(rngs.params(), (len(config.elements), config.num_channels))
        )
        self.degrees = DegreeEmbedding(
            edge_scalars(config, rngs),
            config.edge_channels,
            config.max_L,
            config.num_channels,
            rngs=rngs,
        )
        self.layers = nnx.List(Layer(config, rngs=rngs) for _ in range(config.num_interactions))
        self.norm = SeparableNorm(config.irreps(), rngs=rngs)
        widths = (config.num_channels, config.ffn_channels, 1)
        self.readout = NormedMLP(widths, norm=False, rngs=rngs)

    @property
    def methods(self) -> tuple[list[str]]:
        """Methods of the messages, layer by layer."""
        return (["so2"] * len(self.layers),)

    def __call__(self, graph: AtomGraph) -> jax.Array:
        """Energy of each atom, [N]; padding atoms get some number to be masked."""
        scalars = self.features(graph).blocks[0][:, 0]
        with jax.named_scope("readout"):
            return self.readout(scalars)[:, 0]

    def features(self, graph: AtomGraph) -> IrrepsArray:
        """Node features after the last norm, [N, irreps_out]."""
        config = self.config
        radial = (config.r_max, config.num_radial_basis, config.num_cutoff_basis)
        unit, edges = edges_of(graph, *radial)
        if config.attention == "softmax":
            # a list with a skin holds edges beyond the cutoff, too
            inside = (edges.envelope > 0).astype(unit.dtype)
            edges = edges._replace(envelope=inside)
        frames = self.rows.matrices(unit)
        with jax.named_scope("embedding"):
            summed = sum_rows(edge_embedding(self.degrees, frames, edges), graph)
            chosen = one_hot(jnp.asarray(graph.species), len(config.elements), unit.dtype)
            elements = select(self.embedding[...], chosen)[:, None]
            x = summed / config.avg_num_neighbors
            x = x + elements * np.eye(x.shape[1], 1, dtype=x.dtype)
        for layer in self.layers:
            x = layer(x, frames, edges, graph)
        return self.norm(flat(self.irreps_out, x))
