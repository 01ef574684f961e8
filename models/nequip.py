"""NequIP: equivariant convolutions with gates (Batzner et al., Nat. Commun. 13, 2453, 2022).

Each layer mixes channels, convolves with the spherical harmonics of the edges under learned radial
weights, mixes again, adds a self-connection that depends on the element, and passes a gate:

    z_i = W2 sum_j ((W1 x_j) x Y(r_ij)) R(|r_ij|) / sqrt(avg_num_neighbors) + W_self[element_i] x_i
    x_i <- gate(z_i)

The energy of an atom is a linear map of the even scalars of the last layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eqnet.graph import AtomGraph
from eqnet.irreps import (
    Irrep,
    Irreps,
    IrrepsArray,
    add,
    regrouped,
    spherical_irreps,
    with_channels,
)
from eqnet.layers import (
    MLP,
    Gate,
    Linear,
    one_hot,
    select,
    silu,
)
from eqnet.norms import LayerNorm
from eqnet.ops import choose_convolution, edge_product, method_name, refuse_idle_bracket
from eqnet.ops.edge_features import edge_features
from eqnet.ops.radial import RadialNetwork


@dataclass(frozen=True)
class NequIPConfig:
    """Hyper-parameters of a NequIP.

    Attributes:
        elements: atomic numbers, ascending.
        r_max: cutoff in angstrom.
        num_channels: channels of each irrep.
        max_L: highest degree of the node features.
        parity: whether node features have both parities of every degree; otherwise only the parity
            of the spherical harmonics, (-1)^l. The model is O(3)-equivariant either way.
        hidden_irreps: node features; overrides num_channels, max_L and parity. Multiplicities may
            differ, e.g. '32x0e+8x0o+16x1o+8x1e'; it needs even scalars.
        max_ell: highest degree of the spherical harmonics.
        num_interactions: number of layers.
        num_radial_basis: Bessel functions.
        num_cutoff_basis: order p of the polynomial cutoff.
        radial_MLP: hidden widths of the radial network.
        MLP_channels: width between the two linear maps of the readout.
        avg_num_neighbors: sums over neighbours are divided by its square root.
        residual: whether a layer adds its input to its output, for irreps of equal multiplicity.
        layer_norm: whether the input of a layer is normalised.
        product: tensor product of the convolution.
        rank: of the product 'cp'; 0 for an exact one.
    """

    elements: tuple[int, ...]
    r_max: float = 5.0
    num_channels: int = 32
    max_L: int = 2
    parity: bool = True
    hidden_irreps: str = ""
    max_ell: int = 2
    num_interactions: int = 4
    num_radial_basis: int = 8
    num_cutoff_basis: int = 6
    radial_MLP: tuple[int, ...] = (64, 64)
    MLP_channels: int = 16
    avg_num_neighbors: float = 1.0
    residual: bool = False
    layer_norm: bool = False
    product: str = "clebsch_gordan"
    rank: int = 0

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"num_channels": 32, "max_L": 1, "max_ell": 2, "num_interactions": 3},
        "medium": {"num_channels": 32, "max_L": 2, "max_ell": 2, "num_interactions": 3},
        "large": {"num_channels": 64, "max_L": 2, "max_ell": 2, "num_interactions": 4},
    }

    def irreps(self) -> Irreps:
        """Irreps of the node features between layers.

        Raises:
            ValueError: `hidden_irreps` has no even scalars.
        """
        if not self.hidden_irreps:
            parities = (1, -1) if self.parity else (1,)
            both = [(l, p * (-1) ** l) for l in range(self.max_L + 1) for p in parities]
            return regrouped(Irreps([(self.num_channels, ir) for ir in both]))
        irreps = regrouped(self.hidden_irreps)
        if not irreps.count(Irrep(0, 1)):
            raise ValueError(f"hidden_irreps {self.hidden_irreps} needs even scalars such as 32x0e")
        return irreps


class Interaction(nnx.Module):
    """One layer: convolution, self-connection, gate; irreps that no path reaches are left out."""

    def __init__(
        self,
        config: NequIPConfig,
        irreps_in: Irreps,
        irreps_target: Irreps,
        irreps_needed: Irreps,
        *,
        rngs: nnx.Rngs,
        method: str,
    ):
        self.product = edge_product(
            config.product,
            irreps_in,
            spherical_irreps(config.max_ell),
            irreps_target + "1x0e",
            needed=Irreps("0e") + irreps_needed,
            rank=config.rank,
        )
        self.convolve = choose_convolution(self.product, method)
        reached = {ir for _, ir in self.product.irreps_out}
        self.gate = Gate(Irreps([m for m in irreps_target if m.ir in reached]), gates=silu)
        self.up = Linear(irreps_in, irreps_in, rngs=rngs)
        self.radial = RadialNetwork(
            config.num_radial_basis, config.radial_MLP, self.product, rngs=rngs
        )
        self.down = Linear(self.product.irreps_out, self.gate.irreps_in, rngs=rngs)
        self.self_connection = Linear(
            irreps_in, self.gate.irreps_in, num_elements=len(config.elements), rngs=rngs
        )
        self.norm = LayerNorm(irreps_in, rngs=rngs) if config.layer_norm else None
        self.residual = config.residual
        self.neighbor_scale = 1.0 / float(np.sqrt(config.avg_num_neighbors))

    @property
    def irreps_out(self) -> Irreps:
        """Irreps of the output."""
        return self.gate.irreps_out

    def __call__(
        self,
        x: IrrepsArray,
        chosen: jax.Array,
        harmonics: IrrepsArray,
        basis: jax.Array,
        graph: AtomGraph,
    ) -> IrrepsArray:
        """Features [N, irreps_in], one-hot elements [N, Z] -> [N, irreps_out]."""
        z = x if self.norm is None else self.norm(x)
        message = self.convolve(
            self.product, self.up(z), harmonics, self.radial.edge_weights(basis), graph
        )
        message = IrrepsArray(message.irreps, message.array * self.neighbor_scale)
        out = self.gate(add(self.down(message), self.self_connection(z, chosen)))
        return add(out, x) if self.residual else out


def identity(x: jax.Array) -> jax.Array:
    """No activation."""
    return x


class NequIP(nnx.Module):
    """AtomGraph -> energy of each atom [N], in units of the potential's scale; O(3)-invariant.

    Args:
        config: hyper-parameters.
        rngs: source of the initial weights.
        method: how the convolutions are computed: 'default', 'auto' for the fastest of each layer
            here, or the name of one, see `eqnet.ops.choose_convolution`.
        needed: irreps, besides even scalars, that `features` must have: those of a tensor to be
            read from them. An energy needs none.
    """

    def __init__(
        self,
        config: NequIPConfig,
        *,
        rngs: nnx.Rngs,
        method: str = "default",
        needed: Irreps | str = "",
    ):
        self.config = config
        hidden = config.irreps()
        scalars = Irreps([m for m in hidden if m.ir == Irrep(0, 1)])
        self.embedding = nnx.Param(
            jax.random.normal(rngs.params(), (len(config.elements), scalars.dim))
        )
        needed = with_channels(needed, scalars.dim)
        layers, irreps = [], scalars
        for n in range(config.num_interactions):
            last = n == config.num_interactions - 1
            target = regrouped(scalars + needed) if last else hidden
            layers.append(
                Interaction(
                    config, irreps, target, needed if last else Irreps(), rngs=rngs, method=method
                )
            )
            irreps = layers[-1].irreps_out
        self.irreps_out = irreps
        refuse_idle_bracket([layer.product for layer in layers])
        self.layers = nnx.List(layers)
        # Two linear maps without a nonlinearity between them, as published.
        widths = (scalars.dim, config.MLP_channels, 1)
        self.readout = MLP(widths, rngs=rngs, activation=identity)

    @property
    def methods(self) -> tuple[list[str]]:
        """Methods of the convolutions, layer by layer."""
        return ([method_name(layer.product, layer.convolve) for layer in self.layers],)

    def __call__(self, graph: AtomGraph) -> jax.Array:
        """Energy of each atom, [N]; padding atoms get some number to be masked."""
        scalars = self.features(graph).scalars
        with jax.named_scope("readout"):
            return self.readout(scalars)[:, 0]

    def features(self, graph: AtomGraph) -> IrrepsArray:
        """Node features of the last layer, [N, irreps_out]."""
        config = self.config
        radial = (config.r_max, config.num_radial_basis, config.num_cutoff_basis)
        harmonics, basis = edge_features(graph, config.max_ell, *radial)
        chosen = one_hot(jnp.asarray(graph.species), len(config.elements), basis.dtype)
        embedding = self.embedding[...]
        x = IrrepsArray(Irreps(f"{embedding.shape[1]}x0e"), select(embedding, chosen))
        for layer in self.layers:
            x = layer(x, chosen, harmonics, basis, graph)
        return x
