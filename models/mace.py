"""MACE: higher-order equivariant message passing (Batatia et al., NeurIPS 2022, arXiv:2206.07697).

Each layer sums one convolution over the neighbours into the atomic basis A, raises A to powers up
to `correlation` (many-body features without many-body sums) and mixes channels. The function is
that of mace-torch 0.3's ScaleShiftMACE; scale, shift and isolated-atom energies live in
`Potential`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eqnet.graph import AtomGraph
from eqnet.irreps import Irreps, IrrepsArray, add, regrouped, spherical_irreps, with_channels
from eqnet.layers import MLP, Linear, one_hot, select, silu
from eqnet.ops import (
    choose_convolution,
    choose_methods,
    choose_power_method,
    edge_product,
    method_name,
    node_power,
    refuse_idle_bracket,
)
from eqnet.ops.blocks import rows_in_blocks
from eqnet.ops.edge_features import edge_features
from eqnet.ops.product import NodePower
from eqnet.ops.radial import RadialNetwork


@dataclass(frozen=True)
class MACEConfig:
    """Hyper-parameters of a MACE.

    Attributes:
        elements: atomic numbers, ascending.
        r_max: cutoff in angstrom.
        num_channels: channels of each irrep.
        max_L: highest degree of the node features.
        hidden_irreps: node features; overrides num_channels and max_L, e.g. '64x0e+64x1o'.
        max_ell: highest degree of the spherical harmonics and of the atomic basis.
        correlation: factors of the highest power, the body order minus one.
        num_interactions: number of layers.
        num_radial_basis: Bessel functions.
        num_cutoff_basis: order p of the polynomial cutoff.
        radial_MLP: hidden widths of the radial network.
        MLP_channels: hidden width of the last readout.
        avg_num_neighbors: sums over neighbours are divided by this.
        first_residual: whether the first layer has a residual connection (mace-torch's
            RealAgnosticResidualInteractionBlock) or an element-dependent message instead.
        product: tensor product of the convolution.
        node_product: tensor product of the powers; '' for that of the convolution if it has powers,
            else Clebsch-Gordan.
        rank: of the product 'cp'; 0 for an exact one.
    """

    elements: tuple[int, ...]
    r_max: float = 5.0
    num_channels: int = 64
    max_L: int = 1
    hidden_irreps: str = ""
    max_ell: int = 3
    correlation: int = 3
    num_interactions: int = 2
    num_radial_basis: int = 8
    num_cutoff_basis: int = 5
    radial_MLP: tuple[int, ...] = (64, 64, 64)
    MLP_channels: int = 16
    avg_num_neighbors: float = 1.0
    first_residual: bool = True
    product: str = "clebsch_gordan"
    node_product: str = ""
    rank: int = 0

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"num_channels": 32, "max_L": 0},
        "medium": {"num_channels": 64, "max_L": 1},
        "large": {"num_channels": 128, "max_L": 2},
    }

    def irreps(self) -> Irreps:
        """Irreps of the node features between layers."""
        if self.hidden_irreps:
            return regrouped(self.hidden_irreps)
        return spherical_irreps(self.max_L) * self.num_channels


class Interaction(nnx.Module):
    """One convolution over the neighbours: node features -> atomic basis A."""

    def __init__(
        self,
        config: MACEConfig,
        irreps_in: Irreps,
        irreps_out: Irreps,
        irreps_residual: Irreps | None,
        *,
        rngs: nnx.Rngs,
        method: str,
    ):
        num_elements = len(config.elements)
        self.avg_num_neighbors = config.avg_num_neighbors
        self.product = edge_product(
            config.product,
            irreps_in,
            spherical_irreps(config.max_ell),
            irreps_out,
            needed=irreps_out,
            rank=config.rank,
        )
        self.convolve = choose_convolution(self.product, method)
        self.up = Linear(irreps_in, irreps_in, rngs=rngs)
        self.radial = RadialNetwork(
            config.num_radial_basis, config.radial_MLP, self.product, rngs=rngs
        )
        self.down = Linear(self.product.irreps_out, irreps_out, rngs=rngs)
        by_element = irreps_out if irreps_residual is None else irreps_residual
        self.skip = Linear(
            irreps_out if irreps_residual is None else irreps_in,
            by_element,
            num_elements=num_elements,
            rngs=rngs,
        )
        self.residual = irreps_residual is not None

    def messages(
        self, x: IrrepsArray, harmonics: IrrepsArray, basis: jax.Array, graph: AtomGraph
    ) -> IrrepsArray:
        """Features [N, irreps_in] -> their sum over the neighbours, [N, product.irreps_out]."""
        weights = self.radial.edge_weights(basis)
        return self.convolve(self.product, self.up(x), harmonics, weights, graph)

    def __call__(
        self, messages: IrrepsArray, x: IrrepsArray, chosen: jax.Array
    ) -> tuple[IrrepsArray, IrrepsArray | None]:
        """Messages, features, one-hot elements [N, Z] -> A [N, irreps_out], residual."""
        a = self.down(messages)
        a = IrrepsArray(a.irreps, a.array / self.avg_num_neighbors)
        if self.residual:
            return a, self.skip(x, chosen)
        return self.skip(a, chosen), None


class ProductBasis(nnx.Module):
    """Powers of A with weights by element, then a linear map and the residual connection."""

    def __init__(self, power: NodePower, num_elements: int, *, rngs: nnx.Rngs, method: str):
        self.power, self.method = power, choose_power_method(power, method)
        irreps_in, irreps_out = power.irreps_in, power.irreps_out
        shape = (num_elements, power.num_weights, irreps_in[0].mul)
        scale = power.initial_scale()[:, None]
        self.weights = nnx.Param(jax.random.normal(rngs.params(), shape) * scale)
        self.linear = Linear(irreps_out, irreps_out, rngs=rngs)

    def __call__(
        self, a: IrrepsArray, residual: IrrepsArray | None, chosen: jax.Array
    ) -> IrrepsArray:
        """[N, irreps_in] -> [N, irreps_out]."""
        with jax.named_scope("power"):
            b = self.power(a, select(self.weights[...], chosen), method=self.method)
        x = self.linear(b)
        return x if residual is None else add(x, residual)


def _update(
    interaction: Interaction,
    product: ProductBasis,
    messages: IrrepsArray,
    x: IrrepsArray,
    chosen: jax.Array,
) -> IrrepsArray:
    """What a layer does with each atom by itself: [N, ...] -> [N, irreps_out]."""
    return product(*interaction(messages, x, chosen), chosen)


class Readout(nnx.Module):
    """Energy of an atom from its scalars: linear, or with one hidden layer."""

    def __init__(self, num_scalars: int, hidden: int | None, *, rngs: nnx.Rngs):
        widths = (num_scalars, 1) if hidden is None else (num_scalars, hidden, 1)
        self.mlp = MLP(widths, rngs=rngs, activation=silu)

    @jax.named_scope("readout")
    def __call__(self, x: IrrepsArray) -> jax.Array:
        """[N, irreps] -> [N]."""
        return self.mlp(x.scalars)[:, 0]


class MACE(nnx.Module):
    """AtomGraph -> energy of each atom [N], in units of the potential's scale; O(3)-invariant.

    Args:
        config: hyper-parameters.
        rngs: source of the initial weights.
        method: how the products are computed: 'default', 'auto' for the fastest of each here, or
            the name of one, see `eqnet.ops.choose_methods`.
        needed: irreps, besides even scalars, that `features` must have: those of a tensor to be
            read from them. An energy needs none.
    """

    def __init__(
        self,
        config: MACEConfig,
        *,
        rngs: nnx.Rngs,
        method: str = "default",
        needed: Irreps | str = "",
    ):
        self.config = config
        hidden = config.irreps()
        scalars = Irreps([m for m in hidden if str(m.ir) == "0e"])
        num_scalars, num_elements = scalars.dim, len(config.elements)
        basis = spherical_irreps(config.max_ell) * num_scalars
        edge_method, node_method = choose_methods(config.product, config.node_product, method)
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (num_elements, num_scalars)))
        self.irreps_out = regrouped(scalars + with_channels(needed, num_scalars))
        interactions, products, readouts = [], [], []
        irreps_in = scalars
        for layer in range(config.num_interactions):
            last = layer == config.num_interactions - 1
            irreps_out = self.irreps_out if last else hidden
            residual = irreps_out if layer > 0 or config.first_residual else None
            interactions.append(
                Interaction(config, irreps_in, basis, residual, rngs=rngs, method=edge_method)
            )
            power = node_power(
                config.product, config.node_product, basis, irreps_out, config.correlation
            )
            products.append(ProductBasis(power, num_elements, rngs=rngs, method=node_method))
            nonlinear = last and layer > 0
            readouts.append(
                Readout(num_scalars, config.MLP_channels if nonlinear else None, rngs=rngs)
            )
            irreps_in = irreps_out
        refuse_idle_bracket([interaction.product for interaction in interactions])
        self.interactions = nnx.List(interactions)
        self.products = nnx.List(products)
        self.readouts = nnx.List(readouts)

    @property
    def methods(self) -> tuple[list[str], list[str]]:
        """Methods of the convolutions and of the powers, layer by layer."""
        edge = [method_name(layer.product, layer.convolve) for layer in self.interactions]
        return edge, [layer.method for layer in self.products]

    def __call__(self, graph: AtomGraph) -> jax.Array:
        """Energy of each atom, [N]; padding atoms get some number to be masked."""
        energy = 0.0
        for readout, x in zip(self.readouts, self.layers(graph), strict=True):
            energy = energy + readout(x)
        return jnp.asarray(energy)

    def features(self, graph: AtomGraph) -> IrrepsArray:
        """Node features of the last layer, [N, irreps_out]."""
        *_, last = self.layers(graph)
        return last

    def layers(self, graph: AtomGraph) -> Iterator[IrrepsArray]:
        """Node features after each layer."""
        config = self.config
        radial = (config.r_max, config.num_radial_basis, config.num_cutoff_basis)
        # From the neighbour to the centre, the sign of mace-torch, so that weights mean the same.
        harmonics, basis = edge_features(graph, config.max_ell, *radial, sign=-1)
        chosen = one_hot(jnp.asarray(graph.species), len(config.elements), basis.dtype)

        embedding = self.embedding[...] / np.sqrt(len(config.elements)).astype(basis.dtype)
        x = IrrepsArray(Irreps(f"{embedding.shape[1]}x0e"), select(embedding, chosen))
        for interaction, product in zip(self.interactions, self.products, strict=True):
            messages = interaction.messages(x, harmonics, basis, graph)
            x = rows_in_blocks(partial(_update, interaction, product), messages, x, chosen)
            yield x
