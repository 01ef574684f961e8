"""eSCN: SO(2) convolutions in the frames of edges (Passaro and Zitnick 2023, arXiv:2302.03655).

Features x [N, d, C] of all degrees start from the elements. A layer makes a vector h of the length
and the elements of each edge, a message of each neighbour, and new features of atoms and sums:

    m_i = sum_j u(r_ij) A_ij^T f(S_h(A_ij x_j) + T_h(A_ij x_i)),    x_i <- x_i + F([x_i ; m_i])

with A_ij the turn into the frame of the edge, S and T linear maps there through a few channels that
h multiplies, and f and F gates or, as published, SiLU and a network at the points of a sphere.
Other than published, an envelope u lets edges end smoothly, all neighbours count, forces are
gradients, and SiLU keeps unit variance.
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
from eqnet.layers import MLP, Dense, Gate, Linear, one_hot, select, silu
from eqnet.norms import NormedMLP
from eqnet.ops.blocks import in_blocks
from eqnet.ops.edge_network import edge_network, require_so2
from eqnet.ops.edge_scalars import Edges, check_radial_basis, edges_of
from eqnet.ops.s2_activation import S2Activation, S2Grid, check_activation, components
from eqnet.ops.so2_linear import OrderRows, gated, rows_of_degrees
from eqnet.ops.so2_orders import Group
from eqnet.so3 import HIGHEST

# Latitudes for each degree (and one more): SiLU on a sphere then errs by about 1e-5.
FINE = 6


@dataclass(frozen=True)
class ESCNConfig:
    """Hyper-parameters of an eSCN.

    Attributes:
        elements: atomic numbers, ascending.
        r_max: cutoff in angstrom.
        num_channels: channels of each irrep.
        max_L: highest degree of the features.
        m_max: highest order |m| in the frames of the edges.
        num_interactions: number of layers.
        hidden_channels: channels that an edge multiplies.
        edge_channels: of what an edge tells.
        num_radial_basis: Gaussians.
        num_cutoff_basis: order p of the polynomial cutoff.
        avg_num_neighbors: sums over neighbours are divided by it; 1 as published.
        group: 'O3' has features of the parity of the harmonics, (-1)^l, which mirror images share;
            'SO3', as published, has twice the SO(2) weights and tells mirror images apart.
        activation: 'gate', exactly equivariant, or 's2', as published: functions at the points of
            a sphere, equivariant up to an error that depends on their number.
        grid_resolution: latitudes and azimuths of the sphere of 's2'; 0 for 6 (max_L + 1).
        product: 'so2', the only one that has nonlinear functions in the frame of an edge.
    """

    elements: tuple[int, ...]
    r_max: float = 5.0
    num_channels: int = 64
    max_L: int = 2
    m_max: int = 2
    num_interactions: int = 2
    hidden_channels: int = 64
    edge_channels: int = 64
    num_radial_basis: int = 32
    num_cutoff_basis: int = 5
    avg_num_neighbors: float = 1.0
    group: Group = "O3"
    activation: Literal["gate", "s2"] = "gate"
    grid_resolution: int = 0
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
        require_so2("escn", self.product)
        check_radial_basis(self.num_radial_basis)
        check_activation("escn", self.activation, self.grid_resolution)
        self.rows()
        return spherical_irreps(self.max_L) * self.num_channels

    def rows(self) -> OrderRows:
        """Rows of the features in the frame of an edge."""
        return rows_of_degrees(self.max_L, self.m_max, self.group)

    def s2(self, components: tuple[tuple[int, int], ...], depth: int) -> S2Activation | None:
        """Functions at the points of a sphere for features with these (l, m), if they are wanted.

        Args:
            components: (l, m) of each row.
            depth: number of nonlinear functions, one after the other.
        """
        if self.activation != "s2":
            return None
        points = self.grid_resolution or FINE * (self.max_L + 1)
        return S2Activation(S2Grid(components, points, points), depth)


class EdgeVector(nnx.Module):
    """What an edge tells: SiLU of a linear map of SiLU of elements plus length."""

    def __init__(self, config: ESCNConfig, *, rngs: nnx.Rngs):
        channels, elements = config.edge_channels, len(config.elements)
        self.length = Dense(config.num_radial_basis, channels, rngs=rngs)
        self.mixed = Dense(channels, channels, rngs=rngs)
        self.sent, self.received = (
            nnx.Param(jax.random.normal(rngs.params(), (elements, channels))) for _ in range(2)
        )

    def __call__(self, edges: Edges) -> jax.Array:
        """Some rows of edges -> [r, k, edge_channels]."""
        h = self.length(edges.basis)
        for table, species in ((self.sent, edges.sent), (self.received, edges.received)):
            h = h + jax.nn.one_hot(species, len(table[...]), dtype=h.dtype) @ table[...]
        return silu(self.mixed(silu(h)))


class Bottleneck(nnx.Module):
    """For each order, a linear map to a few channels, times what the edge tells, and back."""

    def __init__(self, config: ESCNConfig, *, rngs: nnx.Rngs):
        self.rows, hidden = config.rows(), config.hidden_channels
        self.down, self.up, self.factors = nnx.List(), nnx.List(), nnx.List()
        for order in self.rows.orders:
            size = len(order.inputs) * config.num_channels
            for matrices, shape in ((self.down, (size, hidden)), (self.up, (hidden, size))):
                weight = jax.random.normal(rngs.params(), (order.matrices, *shape))
                matrices.append(nnx.Param(weight))
            factors = Dense(config.edge_channels, order.matrices * hidden, rngs=rngs)
            self.factors.append(factors)

    def __call__(self, x: jax.Array, h: jax.Array) -> jax.Array:
        """[e, rows, C] and [e, edge_channels] -> [e, rows, C]."""
        rows, found = self.rows.parts(x), []
        for order, *layers in zip(self.rows.orders, self.down, self.up, self.factors, strict=True):
            down, up = (scaled(weight[...]) for weight in layers[:2])
            factors = silu(layers[2](h)).reshape((len(h), order.matrices, 1, -1))
            z, parts = rows[order.m, order.inputs], []
            for n in range(order.matrices):
                hidden = jnp.einsum("esi,ih->esh", z, down[n], precision=HIGHEST) * factors[:, n]
                parts.append(jnp.einsum("esh,hi->esi", hidden, up[n], precision=HIGHEST))
            y = parts[0]
            if order.matrices == 2:  # the second is the imaginary part of the map
                y = (y + jnp.stack([-parts[1][:, 1], parts[1][:, 0]], axis=1)) * 2**-0.5
            found.append(y.reshape((len(x), -1, x.shape[-1])))
        return jnp.concatenate(found, axis=1)


def scaled(matrices: jax.Array) -> jax.Array:
    """W / sqrt(n), [k, n, m]."""
    return matrices / np.sqrt(matrices.shape[1]).astype(matrices.dtype)


class Messages(nnx.Module):
    """Messages in the frames of the edges."""

    def __init__(self, config: ESCNConfig, *, rngs: nnx.Rngs):
        self.rows, channels = config.rows(), config.num_channels
        self.edge_vector = EdgeVector(config, rngs=rngs)
        self.from_neighbor, self.from_centre = (Bottleneck(config, rngs=rngs) for _ in range(2))
        self.sphere = config.s2(self.rows.components, depth=1)
        gates = self.sphere is None
        self.gates = Dense(channels, config.max_L * channels, rngs=rngs) if gates else None
        # degrees that lose rows to m_max get their variance back
        kept = [sum(n == other for other in self.rows.degrees) for n in self.rows.degrees]
        sizes = [self.rows.members[n].dim for n in self.rows.degrees]
        self.lift = tuple(float(np.sqrt(d / k)) for d, k in zip(sizes, kept, strict=True))

    def __call__(self, x: jax.Array, edges: Edges) -> tuple[jax.Array, tuple[()]]:
        """[r, k, rows, 2 C] -> [r, k, rows, C]."""
        with jax.named_scope("radial"):
            h = self.edge_vector(edges).reshape((x.shape[0] * x.shape[1], -1))
        sent, received = jnp.split(x.reshape((-1, *x.shape[2:])), 2, axis=-1)
        z = self.from_neighbor(sent, h) + self.from_centre(received, h)
        if self.sphere is not None:
            z = self.sphere(z, silu)
        elif self.gates is not None:
            z = gated(self.rows, z, self.gates(z[:, 0]))
        z = z * jnp.asarray(self.lift, z.dtype)[:, None]
        return z.reshape((*x.shape[:3], -1)) * edges.envelope[..., None, None], ()


class AtomUpdate(nnx.Module):
    """Three linear maps with nonlinearities between them: [feature ; message] -> feature."""

    def __init__(self, config: ESCNConfig, *, rngs: nnx.Rngs):
        irreps, channels = config.irreps(), config.num_channels
        self.sphere = config.s2(components(config.max_L), depth=2)
        if self.sphere is not None:
            widths = (2 * channels, channels, channels, channels)
            self.at_points = MLP(widths, rngs=rngs)
        else:
            self.gate = Gate(irreps)
            twice = spherical_irreps(config.max_L) * (2 * channels)
            pairs = ((twice, self.gate.irreps_in), (irreps, self.gate.irreps_in), (irreps, irreps))
            self.maps = nnx.List([Linear(*pair, rngs=rngs) for pair in pairs])

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, d, 2 C] -> [N, d, C]."""
        if self.sphere is not None:
            sphere, network = self.sphere, self.at_points
            row_bytes = sphere.grid.num_points * x.shape[-1] * x.dtype.itemsize
            return in_blocks(lambda some: sphere(some, network), (x,), row_bytes)
        first, second, third = self.maps
        z = self.gate(first(IrrepsArray(first.irreps_in, x.reshape((len(x), -1)))))
        return third(self.gate(second(z))).array.reshape((*x.shape[:2], -1))


class Readout(nnx.Module):
    """Energy of an atom: a network of its scalars, or averaged over the points of a sphere."""

    def __init__(self, config: ESCNConfig, *, rngs: nnx.Rngs):
        self.sphere = config.s2(components(config.max_L), depth=2)
        self.network = NormedMLP((*(config.num_channels,) * 3, 1), rngs=rngs, norm=False)

    @jax.named_scope("readout")
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, d, C] -> [N]."""
        if self.sphere is None:
            return self.network(x[:, 0])[:, 0]
        sphere, network = self.sphere, self.network
        row_bytes = sphere.grid.num_points * x.shape[-1] * x.dtype.itemsize
        return in_blocks(lambda some: sphere(some, network), (x,), row_bytes)[:, 0, 0]


class ESCN(nnx.Module):
    """AtomGraph -> energy of each atom [N], in units of the potential's scale.

    Invariant under the group of its configuration; with activation 's2' only up to the error of
    its grid.

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
        config: ESCNConfig,
        *,
        rngs: nnx.Rngs,
        method: str = "default",
        needed: Irreps | str = "",
    ):
        require_so2("escn", config.product, method)
        self.irreps_out = config.irreps()
        refuse_missing(needed, self.irreps_out)
        self.config, shape = config, (len(config.elements), config.num_channels)
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), shape))
        layers = range(config.num_interactions)
        self.messages = nnx.List([Messages(config, rngs=rngs) for _ in layers])
        self.updates = nnx.List([AtomUpdate(config, rngs=rngs) for _ in layers])
        self.readout = Readout(config, rngs=rngs)

    @property
    def methods(self) -> tuple[list[str]]:
        """Methods of the messages, layer by layer."""
        return (["so2" for _ in self.messages],)

    def __call__(self, graph: AtomGraph) -> jax.Array:
        """Energy of each atom, [N]; padding atoms get some number to be masked."""
        return self.readout(self._features(graph))

    def features(self, graph: AtomGraph) -> IrrepsArray:
        """Node features of the last layer, [N, irreps_out]."""
        x = self._features(graph)
        return IrrepsArray(self.irreps_out, x.reshape((len(x), -1)))

    def _features(self, graph: AtomGraph) -> jax.Array:
        """The same, [N, d, C]."""
        config = self.config
        unit, edges = edges_of(
            graph, config.r_max, config.num_radial_basis, config.num_cutoff_basis
        )
        frames = config.rows().matrices(unit)
        chosen = one_hot(jnp.asarray(graph.species), len(config.elements), unit.dtype)
        scalars = select(self.embedding[...], chosen)[:, None]
        x = jnp.pad(scalars, ((0, 0), (0, frames.shape[-1] - 1), (0, 0)))
        for n, (messages, update) in enumerate(zip(self.messages, self.updates, strict=True)):
            summed, _ = edge_network(messages, x, frames, edges, graph)
            message = sum_rows(summed, graph) / config.avg_num_neighbors
            new = update(jnp.concatenate([x, message], axis=-1))
            x = x + new if n else new
        return x
