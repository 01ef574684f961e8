"""TDN: attention by tensor products whose paths share their weights (Lin et al., NeurIPS 2025).

Tensor Decomposition Networks, arXiv:2507.01131: the layers of Equiformer, with one weight a channel
for all paths of a product and one matrix for all degrees of a linear map. With T the product of
`ops/cp.py`, w = w(|r_ij|) and Y the harmonics of the edge, a layer does

    m_ij = T(W1 x_j + W2 x_i, Y; w),    v_ij = T(gate(W3 m_ij), Y; w)
    a_ij = softmax over j of  a . smooth_leaky_relu(W4 m_ij[l = 0])  for each head
    x_i <- x_i + W5 sum_j a_ij v_ij,    x_i <- x_i + W7 gate(W6 x_i)

on normalised x. Forces are gradients; the published direct head is left out. So is its dropout of
attention weights: a loss with forces would have to draw the same neighbours in both passes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eqnet.graph import AtomGraph, gather_centers, sum_rows
from eqnet.irreps import Irrep, Irreps, IrrepsArray, refuse_missing, spherical_irreps
from eqnet.layers import MLP, lengths_of, one_hot, select, sigmoid, silu, smooth_leaky_relu
from eqnet.norms import LayerNorm, NormedMLP, normalised
from eqnet.ops import (
    PRODUCTS,
    choose_convolution,
    edge_product,
    method_name,
    refuse_idle_bracket,
    refuse_idle_group,
)
from eqnet.ops.blocks import messages_in_blocks, neighbors_in_blocks
from eqnet.ops.clebsch_gordan import ClebschGordan
from eqnet.ops.cp_tensor import Group
from eqnet.ops.product import Product
from eqnet.ops.row_softmax import RowSums, join_rows, row_terms
from eqnet.ops.so2 import SO2
from eqnet.so3 import HIGHEST, spherical_harmonics


@dataclass(frozen=True)
class TDNConfig:
    """Hyper-parameters of a TDN.

    Attributes:
        elements: atomic numbers, ascending.
        r_max: cutoff in angstrom.
        num_channels: channels of each irrep.
        max_L: highest degree of the features and of the spherical harmonics.
        num_interactions: number of layers.
        num_heads: of the attention; divides num_channels.
        num_radial_basis: Gaussians of learned centres and widths.
        num_cutoff_basis: order p of the polynomial cutoff inside the softmax (published: none, and
            energies that jump where a neighbour leaves).
        radial_MLP: hidden widths of the radial networks.
        avg_num_neighbors: the first sum over neighbours is divided by its square root.
        group: 'O3' for features of the parity of the harmonics, which have the paths of even
            l1 + l2 + l3; 'SO3' for all paths, as published: mirror images are then told apart.
        product: tensor product of the messages. 'cp' has the published one weight per channel,
            'clebsch_gordan' one for each path too (the ablation "without CP and path-weight
            sharing").
        rank: of the product 'cp'; 0 for the exact one (published: 7 max_L^2, approximate).
    """

    elements: tuple[int, ...]
    r_max: float = 5.0
    num_channels: int = 64
    max_L: int = 2
    num_interactions: int = 4
    num_heads: int = 8
    num_radial_basis: int = 32
    num_cutoff_basis: int = 5
    radial_MLP: tuple[int, ...] = (64, 64)
    avg_num_neighbors: float = 1.0
    group: Group = "O3"
    product: str = "cp"
    rank: int = 0

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {
            "num_channels": 16, "max_L": 1, "num_interactions": 2, "radial_MLP": (32, 32),
        },
        "medium": {
            "num_channels": 24, "max_L": 1, "num_interactions": 2, "radial_MLP": (32, 32),
        },
        "large": {"num_channels": 64, "max_L": 2, "num_interactions": 3},
    }  # fmt: skip

    def irreps(self) -> Irreps:
        """Irreps of the node features.

        Raises:
            ValueError: the heads do not divide the channels, or there is no such group.
        """
        if self.num_channels % self.num_heads:
            raise ValueError(
                f"num_heads {self.num_heads} must divide num_channels {self.num_channels}"
            )
        if self.group not in ("O3", "SO3"):
            raise ValueError(f"group {self.group!r}: there are O3 and SO3")
        return self.harmonics() * self.num_channels

    def harmonics(self) -> Irreps:
        """Irreps of the spherical harmonics; all even where parity is to be ignored."""
        if self.group == "O3":
            return spherical_irreps(self.max_L)
        return Irreps([(1, (l, 1)) for l in range(self.max_L + 1)])


def message_product(config: TDNConfig) -> Product:
    """The product of this configuration, from features and harmonics to features.

    Raises:
        ValueError: no such product, or not with these irreps, see `edge_product`; one that mixes
            channels, which belong to different heads; or a group without effect.
    """
    hidden, harmonics, name = config.irreps(), config.harmonics(), config.product
    product = edge_product(name, hidden, harmonics, hidden, needed=hidden, rank=config.rank)
    refuse_idle_bracket([product])
    if isinstance(product, SO2):
        fit = ", ".join(other for other in PRODUCTS if other != name and _fits(config, other))
        raise ValueError(
            f"{name} mixes channels, which the heads of tdn keep apart; products that fit: {fit}"
        )
    refuse_idle_group(config.group, product, f"{name} with max_L {config.max_L}")
    return replace(product, summed=True) if isinstance(product, ClebschGordan) else product


def _fits(config: TDNConfig, name: str) -> bool:
    try:
        message_product(replace(config, product=name, rank=0))
    except ValueError:
        return False
    return True


class SharedLinear(nnx.Module):
    """One matrix for the channels of every degree, and a shift of the scalars that starts at 0."""

    def __init__(self, size_in: int, size_out: int, *, rngs: nnx.Rngs):
        self.weight = nnx.Param(jax.random.normal(rngs.params(), (size_in, size_out)))
        self.shift = nnx.Param(jnp.zeros(size_out))

    @jax.named_scope("linear")
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., d, size_in] -> [..., d, size_out]."""
        weight, shift = self.weight[...], self.shift[...]
        weight = weight / np.sqrt(len(weight)).astype(weight.dtype)
        # with one leading axis the gradient of the matrix is a plain product
        y = (x.reshape((-1, x.shape[-1])) @ weight).reshape((*x.shape[:-1], -1))
        return y + np.eye(y.shape[-2], 1, dtype=y.dtype) * shift


class GatedLinear(nnx.Module):
    """A linear map and a gate: silu of the scalars, sigmoid of other scalars times the rest."""

    def __init__(self, size: int, *, gates: bool, rngs: nnx.Rngs):
        self.values = SharedLinear(size, size, rngs=rngs)
        self.gates = SharedLinear(size, size, rngs=rngs) if gates else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., d, size] -> [..., d, size]."""
        y = self.values(x)
        if self.gates is None:
            return silu(y)
        gates = sigmoid(self.gates(x[..., :1, :]))
        return jnp.concatenate([silu(y[..., :1, :]), y[..., 1:, :] * gates], axis=-2)


class Gaussians(nnx.Module):
    """exp(-(b_n (r / r_c - mu_n))^2 / 2) with learned centres and inverse widths."""

    def __init__(self, number: int, *, rngs: nnx.Rngs):
        widths = jax.random.uniform(rngs.params(), (number,), minval=1 / number)
        self.centers = nnx.Param(jax.random.uniform(rngs.params(), (number,)))
        self.inverse_widths = nnx.Param(1 / widths)

    def __call__(self, u: jax.Array) -> jax.Array:
        """[...] in units of the cutoff -> [..., number]."""
        return jnp.exp(-0.5 * (self.inverse_widths[...] * (u[..., None] - self.centers[...])) ** 2)


@jax.named_scope("radial")
def edge_weights(network: NormedMLP, basis: jax.Array) -> jax.Array:
    """[r, k, B] -> [r, k, W]; not zero at the cutoff: an envelope goes with whatever takes them."""
    # with one leading axis the gradients of the matrices are plain products
    return network(basis.reshape((-1, basis.shape[-1]))).reshape((*basis.shape[:-1], -1))


class DegreeEmbedding(nnx.Module):
    """The first features of degree l, sum_j envelope w(|r_ij|) Y_l(r_ij), for some rows."""

    def __init__(self, config: TDNConfig, *, rngs: nnx.Rngs):
        sizes = (config.num_radial_basis, *config.radial_MLP, config.num_channels)
        self.radial = NormedMLP(sizes, rngs=rngs)

    def __call__(self, harmonics: jax.Array, basis: jax.Array, envelope: jax.Array) -> jax.Array:
        """[r, k, d], [r, k, B] and [r, k] -> [r, d, C]."""
        weights = edge_weights(self.radial, basis) * envelope[..., None]
        return jnp.einsum("rkd,rkc->rdc", harmonics, weights, precision=HIGHEST)


class Messages(nnx.Module):
    """Logits and values of the edges of some rows, summed over their slots."""

    def __init__(self, config: TDNConfig, *, rngs: nnx.Rngs, method: str):
        channels, heads = config.num_channels, config.num_heads
        self.product = message_product(config)
        self.convolve = choose_convolution(self.product, method)
        sizes = (config.num_radial_basis, *config.radial_MLP, self.product.num_weights)
        self.radial = NormedMLP(sizes, rngs=rngs)
        number = self.product.num_shared
        self.shared = nnx.Param(jax.random.normal(rngs.params(), (number,))) if number else None
        self.value = GatedLinear(channels, gates=config.max_L > 0, rngs=rngs)
        self.logit = SharedLinear(channels, channels, rngs=rngs)
        self.direction = nnx.Param(jax.random.normal(rngs.params(), (heads, channels // heads)))

    def __call__(
        self, x: jax.Array, harmonics: jax.Array, basis: jax.Array, envelope: jax.Array
    ) -> RowSums:
        """Features of the pairs [r, k, d, C], Y [r, k, d], [r, k, B] and [r, k] -> sums."""
        weights = edge_weights(self.radial, basis)
        one_by_one = [v.reshape((-1, 1, *v.shape[2:])) for v in (x, harmonics, weights)]
        message = self._multiply(*one_by_one).reshape(x.shape)
        largest, terms = row_terms(self._logits(message[..., 0, :]), envelope)
        by_channel = jnp.repeat(terms, x.shape[-1] // terms.shape[-1], axis=-1)
        values = self.value(message) * by_channel[..., None, :]
        summed = self._multiply(values, harmonics, weights)
        summed = summed.reshape((len(x), x.shape[2], terms.shape[-1], -1))
        return RowSums(largest, terms.sum(1), summed)

    @jax.named_scope("product")
    def _multiply(self, x: jax.Array, harmonics: jax.Array, weights: jax.Array) -> jax.Array:
        """The product [r, d C], summed over the slots of [r, k, d, C], [r, k, d] and [r, k, W]."""
        left = IrrepsArray(self.product.irreps_left, x.reshape((*x.shape[:2], -1)))
        right = IrrepsArray(self.product.irreps_right, harmonics)
        shared = None if self.shared is None else self.shared[...]
        return self.convolve.kernel(self.product, left, right, weights, shared).array

    def _logits(self, scalars: jax.Array) -> jax.Array:
        """[r, k, C] -> [r, k, heads]."""
        direction = self.direction[...]
        y = smooth_leaky_relu(self.logit(scalars[..., None, :]))
        y = y.reshape((*scalars.shape[:-1], *direction.shape))
        return (y * direction).sum(-1) / np.sqrt(direction.shape[-1]).astype(y.dtype)


class Layer(nnx.Module):
    """Attention and feed-forward network, each added to its input.

    Args:
        config: hyper-parameters.
        scalars: keep nothing but the scalars, all that is needed of the last layer.
        rngs: source of the initial weights.
        method: how the product is computed.
    """

    def __init__(self, config: TDNConfig, *, scalars: bool, rngs: nnx.Rngs, method: str):
        hidden, channels = config.irreps(), config.num_channels
        self.irreps_in, self.irreps_out = hidden, Irreps([hidden[0]]) if scalars else hidden
        self.norm = LayerNorm(self.irreps_in, rngs=rngs)
        self.neighbor = SharedLinear(channels, channels, rngs=rngs)
        self.center = nnx.Param(jax.random.normal(rngs.params(), (channels, channels)))
        self.messages = Messages(config, rngs=rngs, method=method)
        self.out = SharedLinear(channels, channels, rngs=rngs)
        self.norm_again = LayerNorm(self.irreps_out, rngs=rngs)
        gates = self.irreps_out.dim > channels
        self.expand = GatedLinear(channels, gates=gates, rngs=rngs)
        self.contract = SharedLinear(channels, channels, rngs=rngs)

    def __call__(
        self, x: jax.Array, edges: tuple[jax.Array, jax.Array, jax.Array], graph: AtomGraph
    ) -> jax.Array:
        """Features [N, d, C] and what `Messages` takes of the edges -> [N, d or 1, C]."""
        with jax.named_scope("attention"):
            attended = self._attend(normalised(self.norm, x), edges, graph)
        kept = self.irreps_out.dim // x.shape[-1]
        x = x[:, :kept] + self.out(attended[:, :kept])
        with jax.named_scope("feed_forward"):
            return x + self.contract(self.expand(normalised(self.norm_again, x)))

    def _attend(self, x: jax.Array, edges: tuple, graph: AtomGraph) -> jax.Array:
        """[N, d, C] -> [N, d, C]."""
        matrix = self.center[...] / np.sqrt(x.shape[-1]).astype(x.dtype)
        own = (gather_centers(x @ matrix, graph), *edges)
        structure, weights = nnx.split(self.messages)

        def some_rows(operands: tuple, weights: Any) -> RowSums:
            sent, (center, *edges) = operands
            return nnx.merge(structure, weights)(sent + center[:, None], *edges)

        sums = messages_in_blocks(some_rows, self.neighbor(x), graph, own, weights, summed=False)
        return join_rows(sums, graph, silent=True).reshape(x.shape)


class TDN(nnx.Module):
    """AtomGraph -> energy of each atom [N], in units of the potential's scale.

    Invariant under the group of its configuration; with a `rank` below the exact one only up to the
    error that its products declare.

    Args:
        config: hyper-parameters.
        rngs: source of the initial weights.
        method: how the products are computed: 'default', 'auto' for the fastest here, or the name
            of one, see `eqnet.ops.choose_convolution`. 'matrix' and 'factors' of 'cp' are the exact
            tensor and the rank-one terms of one function.
        needed: irreps, besides even scalars, that `features` must have: those of a tensor to be
            read from them. An energy needs none.

    Raises:
        ValueError: the configuration or the product does not fit, see `message_product`, or the
            features lack irreps that are needed.
    """

    def __init__(
        self,
        config: TDNConfig,
        *,
        rngs: nnx.Rngs,
        method: str = "default",
        needed: Irreps | str = "",
    ):
        self.config = config
        refuse_missing(needed, config.irreps())
        scalars = all(ir == Irrep(0, 1) for _, ir in Irreps(needed))
        channels = config.num_channels
        self.embedding = nnx.Param(
            jax.random.normal(rngs.params(), (len(config.elements), channels))
        )
        self.gaussians = Gaussians(config.num_radial_basis, rngs=rngs)
        self.degrees = DegreeEmbedding(config, rngs=rngs)
        self.up = SharedLinear(channels, channels, rngs=rngs)
        last = config.num_interactions - 1
        self.layers = nnx.List(
            Layer(config, scalars=scalars and n == last, rngs=rngs, method=method)
            for n in range(last + 1)
        )
        self.irreps_out = self.layers[last].irreps_out
        self.readout = MLP((channels, channels, 1), rngs=rngs)

    @property
    def methods(self) -> tuple[list[str]]:
        """Methods of the products, layer by layer."""
        messages = [layer.messages for layer in self.layers]
        return ([method_name(each.product, each.convolve) for each in messages],)

    def __call__(self, graph: AtomGraph) -> jax.Array:
        """Energy of each atom, [N]; padding atoms get some number to be masked."""
        scalars = self.features(graph).blocks[0][:, 0]
        with jax.named_scope("readout"):
            return self.readout(scalars)[:, 0]

    def features(self, graph: AtomGraph) -> IrrepsArray:
        """Node features of the last layer, [N, irreps_out]."""
        config, edges = self.config, self._edges(graph)
        structure, weights = nnx.split(self.degrees)
        with jax.named_scope("embedding"):
            degrees = neighbors_in_blocks(
                lambda operands, weights: nnx.merge(structure, weights)(*operands), edges, weights
            )
            scale = 1.0 / float(np.sqrt(config.avg_num_neighbors))
            x = self.up(sum_rows(degrees, graph) * scale)
            chosen = one_hot(jnp.asarray(graph.species), len(config.elements), x.dtype)
            elements = select(self.embedding[...], chosen)
            x = x + np.eye(x.shape[1], 1, dtype=x.dtype) * elements[:, None]
        for layer in self.layers:
            x = layer(x, edges, graph)
        return IrrepsArray(self.irreps_out, x.reshape((len(x), -1)))

    @jax.named_scope("edges")
    def _edges(self, graph: AtomGraph) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Harmonics [R, K, d], radial basis [R, K, B] and envelope [R, K], zero without an edge."""
        config = self.config
        vectors, distance, envelope = lengths_of(graph, config.r_max, config.num_cutoff_basis)
        harmonics = spherical_harmonics(config.max_L, vectors / distance[..., None])
        basis = self.gaussians(distance / config.r_max)
        return jnp.concatenate(harmonics, axis=-1), basis, envelope
