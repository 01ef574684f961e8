"""TensorNet: Cartesian rank-2 tensors (Simeon & De Fabritiis, NeurIPS 2023, arXiv:2306.06482).

Each atom has one 3 x 3 matrix X for each channel, held as its parts of degree 0, 1 and 2: multiples
of the identity I, skew A, symmetric traceless S. Sums run over the neighbours and the atom itself
(r = 0), f, c and g are functions of invariants, W_l maps channels of a degree, and
|X|^2 = sum of the squares of all components:

    X_i <- gates(|X|^2) W_l sum_j c(z_i, z_j, r_ij) (f_0 1 + f_1 skew(r_ij) + f_2 sym(r_ij))
    X <- X / (|X|^2 + 1),    Y = W_l X,    M_i = sum_j f_l(r_ij) Y_j
    D = W_l P / (|P|^2 + 1),    P = Y M + M Y  (O(3))  or  2 Y M  (SO(3))
    X <- X + D + D D

The skew part is a vector: mirror images map X to its transpose, which the anticommutator keeps and
the product of two matrices does not. The function is that of torchmd-net 3.1 for neutral systems.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eqnet.graph import AtomGraph, displacements, gather_centers
from eqnet.irreps import Irreps, IrrepsArray, refuse_missing
from eqnet.layers import Dense, Linear, one_hot, polynomial_cutoff, select
from eqnet.norms import NormedMLP, NumberNorm
from eqnet.ops import PRODUCTS, find, kernels, refuse_idle_bracket, refuse_idle_group
from eqnet.ops.blocks import messages_in_blocks
from eqnet.ops.edge_pairs import EdgePairs, edge_pairs, pairs_to_slots, slots_to_pairs
from eqnet.ops.factorised import Factorised
from eqnet.ops.product import Product
from eqnet.so3 import HIGHEST, spherical_harmonics

SIZES = (1, 3, 5)  # components of the degrees


@dataclass(frozen=True)
class TensorNetConfig:
    """Hyper-parameters of a TensorNet.

    Attributes:
        elements: atomic numbers, ascending.
        r_max: cutoff in angstrom.
        num_channels: matrices of each atom.
        num_interactions: number of layers.
        num_radial_basis: exponential-normal radial functions.
        group: 'O3', or 'SO3' for a model that tells mirror images apart.
        envelope: how edges end at the cutoff: 'polynomial', 1 - 10 u^3 + 15 u^4 - 6 u^5, has two
            continuous derivatives; 'cosine', as published, has one.
        product: of the matrices of an atom; 'matrix' as published.
    """

    elements: tuple[int, ...]
    r_max: float = 5.0
    num_channels: int = 64
    num_interactions: int = 2
    num_radial_basis: int = 32
    group: Literal["O3", "SO3"] = "O3"
    envelope: Literal["polynomial", "cosine"] = "polynomial"
    product: str = "matrix"

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"num_channels": 32, "num_interactions": 1},
        "medium": {"num_channels": 64, "num_interactions": 2},
        "large": {"num_channels": 128, "num_interactions": 3},
    }

    def irreps(self) -> Irreps:
        """Irreps of the node features: under reflections the skew part is a vector.

        Raises:
            ValueError: there is no such group or envelope.
        """
        if self.group not in ("O3", "SO3"):
            raise ValueError(f"group {self.group!r}: there are O3 and SO3")
        if self.envelope not in ("polynomial", "cosine"):
            raise ValueError(f"envelope {self.envelope!r}: there are polynomial and cosine")
        vector = "1o" if self.group == "O3" else "1e"
        return Irreps(f"{self.num_channels}x0e+{self.num_channels}x{vector}+{self.num_channels}x2e")


class Edges(NamedTuple):
    """What the edges tell: directions by slot, lengths by pair, and the atom itself at r = 0.

    Attributes:
        directions: matrices 1, skew(r), sym(r) of unit vectors by their components, [R, K, 9].
        basis: radial functions of the pairs, [P, num_radial_basis].
        envelope: [P, 1].
        own_basis: radial functions at r = 0, [num_radial_basis].
        pairs: where the pairs stand.
    """

    directions: jax.Array
    basis: jax.Array
    envelope: jax.Array
    own_basis: jax.Array
    pairs: EdgePairs


@jax.named_scope("edges")
def edges_of(graph: AtomGraph, config: TensorNetConfig) -> Edges:
    """Directions from each neighbour to the centre, and lengths."""
    vectors = displacements(graph)
    distance = jnp.linalg.norm(vectors, axis=-1)
    harmonics = spherical_harmonics(2, vectors / distance[..., None])
    # |1|^2 = 3, |skew|^2 = 2, |sym|^2 = 2/3 for matrices, 2 l + 1 for harmonics; skew(r) is minus
    # the orthonormal matrix of degree 1, and the direction is minus that of the displacement
    scales = np.sqrt([3.0, 2 / 3, 2 / 15]).astype(distance.dtype)
    directions = [scale * block for scale, block in zip(scales, harmonics, strict=True)]
    pairs = edge_pairs(graph)
    lengths = 0.5 * slots_to_pairs(distance, pairs)
    basis, envelope = radial_functions(lengths, config)
    own_basis, _ = radial_functions(jnp.zeros((), distance.dtype), config)
    return Edges(jnp.concatenate(directions, axis=-1), basis, envelope, own_basis, pairs)


def radial_functions(distance: jax.Array, config: TensorNetConfig) -> tuple[jax.Array, jax.Array]:
    """Envelope times exp(-b (exp(-5 r / r_max) - mu_n)^2), [..., n]; and the envelope, [..., 1].

    The centres mu_n are evenly spaced from exp(-r_max / angstrom) to 1 (PhysNet, Unke & Meuwly
    2019, eq. 7), smooth at r = 0 too.
    """
    number, r = config.num_radial_basis, distance[..., None]
    start = float(np.exp(-config.r_max))
    centers = np.linspace(start, 1.0, number).astype(distance.dtype)
    width = (2 / number * (1 - start)) ** -2
    if config.envelope == "cosine":
        inside = r < config.r_max
        envelope = jnp.where(inside, 0.5 * (jnp.cos(np.pi / config.r_max * r) + 1), 0.0)
    else:
        envelope = polynomial_cutoff(r, config.r_max, 3)
    return envelope * jnp.exp(-width * (jnp.exp(-5 / config.r_max * r) - centers) ** 2), envelope


def by_component(numbers: jax.Array) -> jax.Array:
    """One number for each degree, [..., 3, C] -> the same for its components, [..., 9, C]."""
    parts = jnp.split(numbers, 3, axis=-2)
    shapes = [(*numbers.shape[:-2], size, numbers.shape[-1]) for size in SIZES]
    return jnp.concatenate(
        [jnp.broadcast_to(p, shape) for p, shape in zip(parts, shapes, strict=True)], axis=-2
    )


def by_degree(components: jax.Array) -> list[jax.Array]:
    """[..., 9, C] -> [..., 1, C], [..., 3, C], [..., 5, C]."""
    return list(jax.lax.split(components, SIZES, axis=components.ndim - 2))


def square_norm(x: jax.Array) -> jax.Array:
    """|X|^2: [N, 9, C] -> [N, C]."""
    return (x**2).sum(-2)


def normalised(x: jax.Array) -> jax.Array:
    """X / (|X|^2 + 1)."""
    return x / (square_norm(x) + 1)[:, None]


class Mix(nnx.Module):
    """Channels mixed within each degree, [N, 9, C] -> [N, 9, C]."""

    def __init__(self, irreps: Irreps, *, rngs: nnx.Rngs):
        self.linear = Linear(irreps, irreps, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, 9, C] -> [N, 9, C]."""
        features = IrrepsArray(self.linear.irreps_in, x.reshape((len(x), -1)))
        return self.linear(features).array.reshape(x.shape)


def node_product(config: TensorNetConfig) -> Factorised:
    """The product of the matrices of an atom, without weights.

    Raises:
        ValueError: no product of this name, or it does not make one such matrix of two; a group
            without effect.
    """
    irreps = config.irreps()
    made = find(config.product, PRODUCTS, "product")
    fit = [name for name, product in PRODUCTS.items() if _fits(product, irreps)]
    if config.product not in fit:
        raise ValueError(
            f"TensorNet needs one sum of paths without weights for each irrep of {irreps}, "
            f"which {config.product} does not make; products that do: {', '.join(fit)}"
        )
    product = cast("Factorised", made(irreps, irreps, irreps))
    refuse_idle_bracket([cast("Product", product)])
    refuse_idle_group(config.group, cast("Product", product), config.product)
    return product


def _fits(product: type[Product], irreps: Irreps) -> bool:
    if not issubclass(product, Factorised):
        return False
    outputs = product(irreps, irreps, irreps).outputs
    return [out.irrep for out in outputs] == [ir for _, ir in irreps]


def choose_method(product: Factorised, method: str) -> str:
    """A way to multiply: as named, or the first where the name is that of a kernel on edges.

    Raises:
        ValueError: the product has no method of this name.
    """
    if method in product.cores:
        return method
    if method not in ("default", "auto", *kernels(product.name)):
        raise ValueError(
            f"{product.name} has no method {method!r}; it has: {', '.join(product.cores)}"
        )
    return next(iter(product.cores))


class Embedding(nnx.Module):
    """Elements, lengths and directions of the edges of each atom -> its matrices."""

    def __init__(self, config: TensorNetConfig, *, rngs: nnx.Rngs):
        channels = config.num_channels
        self.elements = nnx.Param(
            jax.random.normal(rngs.params(), (len(config.elements), channels))
        )
        self.of_elements = Dense(2 * channels, channels, rngs=rngs)
        self.radial = Dense(config.num_radial_basis, 3 * channels, rngs=rngs)
        self.norm = NumberNorm(channels)
        self.gates = NormedMLP((channels, 2 * channels, 3 * channels), rngs=rngs, norm=False)
        self.mix = Mix(config.irreps(), rngs=rngs)

    @jax.named_scope("embedding")
    def __call__(self, chosen: jax.Array, edges: Edges, graph: AtomGraph) -> jax.Array:
        """One-hot elements [N, Z] -> X [N, 9, C]."""
        # c(z_i, z_j) is linear in both: a term of the centre and one of the neighbour
        elements = self.elements[...]
        zeros = jnp.zeros_like(elements)
        center = self.of_elements(jnp.concatenate([elements, zeros], axis=-1))
        neighbor = self.of_elements(jnp.concatenate([zeros, elements], axis=-1))
        center, neighbor = (
            select(center - self.of_elements.bias[...], chosen),
            select(neighbor, chosen),
        )
        radial = pairs_to_slots(self.radial(edges.basis) * edges.envelope, edges.pairs)

        def some_rows(block: tuple[jax.Array, Any], _: tuple) -> jax.Array:
            sent, (radial, received, directions) = block
            both = received[:, None] + sent
            weights = radial.reshape((*both.shape[:2], 3, -1)) * both[:, :, None]
            parts = zip(jax.lax.split(directions, SIZES, axis=2), range(3), strict=True)
            summed = [
                jnp.einsum("rkm,rkc->rmc", part, weights[:, :, l], precision=HIGHEST)
                for part, l in parts
            ]
            return jnp.concatenate(summed, axis=1)

        operands = (radial, gather_centers(center, graph), edges.directions)
        x = messages_in_blocks(some_rows, neighbor, graph, operands, ())
        own = np.sqrt(3.0).astype(x.dtype) * self.radial(edges.own_basis)[: x.shape[-1]]
        x = x.at[:, 0].add((center + neighbor) * own)
        gates = jax.nn.silu(self.gates(self.norm(square_norm(x))))
        return self.mix(x) * by_component(gates.reshape((len(x), 3, -1)))


class Interaction(nnx.Module):
    """Matrices of the neighbours, weighted by degree and distance, times those of the atom."""

    def __init__(self, config: TensorNetConfig, *, rngs: nnx.Rngs, method: str):
        channels, irreps = config.num_channels, config.irreps()
        widths = (config.num_radial_basis, channels, 2 * channels, 3 * channels)
        self.radial = NormedMLP(widths, rngs=rngs, norm=False)
        self.before, self.after = Mix(irreps, rngs=rngs), Mix(irreps, rngs=rngs)
        self.product = node_product(config)
        self.method = choose_method(self.product, method)

    @jax.named_scope("interaction")
    def __call__(self, x: jax.Array, edges: Edges, graph: AtomGraph) -> jax.Array:
        """X [N, 9, C] -> X [N, 9, C]."""
        with jax.named_scope("radial"):
            weights = jax.nn.silu(self.radial(edges.basis)) * edges.envelope
            own = jax.nn.silu(self.radial(edges.own_basis))
        x = normalised(x)
        y = self.before(x)
        messages = sum_neighbors(pairs_to_slots(weights, edges.pairs), y, graph)
        messages = messages + by_component(own.reshape((3, -1))) * y
        change = self.after(normalised(2 * self.multiply(y, messages)))
        return x + change + self.multiply(change, change)

    @jax.named_scope("product")
    def multiply(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """X Y, or (X Y + Y X) / 2 for 'O3', as far as its components are of `irreps`."""
        blocks = [by_degree(v) for v in (x, y)]
        core = self.product.cores[self.method]
        return jnp.concatenate(core(self.product, *blocks), axis=1)


@jax.named_scope("messages")
def sum_neighbors(weights: jax.Array, y: jax.Array, graph: AtomGraph) -> jax.Array:
    """Sum over the neighbours of w_l Y_l: [R, K, 3 C] and [N, 9, C] -> [N, 9, C]."""

    def some_rows(block: tuple[jax.Array, jax.Array], _: tuple) -> jax.Array:
        sent, weights = block
        weights = weights.reshape((*weights.shape[:2], 3, -1))
        return (by_component(weights) * sent).sum(1)

    return messages_in_blocks(some_rows, y, graph, weights, ())


class TensorNet(nnx.Module):
    """AtomGraph -> energy of each atom [N], in units of the potential's scale.

    Invariant under O(3), or under rotations only where `config.group` is 'SO3'.

    Args:
        config: hyper-parameters.
        rngs: source of the initial weights.
        method: how matrices are multiplied: 'default' or the name of one, see `eqnet.ops.matrix`.
        needed: irreps that the features must have, for tensors.

    Raises:
        ValueError: it cannot give them.
    """

    def __init__(
        self,
        config: TensorNetConfig,
        *,
        rngs: nnx.Rngs,
        method: str = "default",
        needed: Irreps | str = "",
    ):
        self.config, self.irreps_out = config, config.irreps()
        refuse_missing(needed, self.irreps_out)
        channels = config.num_channels
        self.embedding = Embedding(config, rngs=rngs)
        self.layers = nnx.List(
            Interaction(config, rngs=rngs, method=method) for _ in range(config.num_interactions)
        )
        self.norm = NumberNorm(3 * channels)
        widths = (3 * channels, channels, max(channels // 2, 1), 1)
        self.readout = NormedMLP(widths, rngs=rngs, norm=False)

    @property
    def methods(self) -> tuple[list[str]]:
        """How the matrices are multiplied, layer by layer."""
        return ([layer.method for layer in self.layers],)

    def __call__(self, graph: AtomGraph) -> jax.Array:
        """Energy of each atom, [N]; padding atoms get some number to be masked."""
        blocks = self.features(graph).blocks
        with jax.named_scope("readout"):
            norms = jnp.concatenate([square_norm(block) for block in blocks], axis=-1)
            return self.readout(self.norm(norms))[:, 0]

    def features(self, graph: AtomGraph) -> IrrepsArray:
        """Components of the matrices after the last layer, [N, irreps_out]."""
        edges = edges_of(graph, self.config)
        dtype = edges.basis.dtype
        chosen = one_hot(jnp.asarray(graph.species), len(self.config.elements), dtype)
        x = self.embedding(chosen, edges, graph)
        for layer in self.layers:
            x = layer(x, edges, graph)
        return IrrepsArray(self.irreps_out, x.reshape((len(x), -1)))
