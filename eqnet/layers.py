"""Layers every model is built from: linear maps by irrep, MLP, gate, radial functions.

Weights are drawn from a unit normal and divided by the square root of the fan-in where they are
used, so that features keep unit variance per component and one learning rate fits all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eqnet.graph import AtomGraph, displacements
from eqnet.irreps import Irrep, Irreps, IrrepsArray, regrouped
from eqnet.so3 import HIGHEST

# 1 / sqrt(E[silu(z)^2]), z ~ N(0, 1); digits of the Monte-Carlo estimate that e3nn uses, so that
# weights trained there mean the same function here (the exact value is 1.67653).
SILU_NORM = 1.6791767923989418
# the same for sigmoid and tanh, by quadrature: E[f(z)^2]^(-1/2)
SIGMOID_NORM = 1.8462285453386056
TANH_NORM = 1.5925374197228321


def silu(x: jax.Array) -> jax.Array:
    """SiLU scaled to unit second moment for unit normal input."""
    return SILU_NORM * jax.nn.silu(x)


def sigmoid(x: jax.Array) -> jax.Array:
    """Sigmoid scaled to unit second moment for unit normal input."""
    return SIGMOID_NORM * jax.nn.sigmoid(x)


def tanh(x: jax.Array) -> jax.Array:
    """Tanh scaled to unit second moment for unit normal input."""
    return TANH_NORM * jnp.tanh(x)


def smooth_leaky_relu(x: jax.Array, slope: float = 0.2) -> jax.Array:
    """(1 + a) / 2 x + (1 - a) / 2 x tanh(x / 2): slope 1 far above zero, a far below."""
    return x * ((1 + slope) / 2 + (1 - slope) / 2 * jnp.tanh(x / 2))


def one_hot(species: jax.Array, num_elements: int, dtype: jnp.dtype) -> jax.Array:
    """[N] -> [N, num_elements]."""
    return jax.nn.one_hot(species, num_elements, dtype=dtype)


def select(weights: jax.Array, chosen: jax.Array) -> jax.Array:
    """Weights of each atom's element: [Z, ...] and a one-hot [N, Z] -> [N, ...].

    A matrix product, because the derivative of a gather is a scatter.
    """
    flat = weights.reshape(weights.shape[0], -1)
    return (chosen @ flat).reshape((chosen.shape[0],) + weights.shape[1:])


class Linear(nnx.Module):
    """Equivariant linear map: y_l = x_l W_l / sqrt(mul_in) for each irrep.

    Args:
        irreps_in: irreps of the input, regrouped.
        irreps_out: irreps of the output; those absent from the input are dropped.
        num_elements: if given, one matrix per element, y_l = x_l W_l[z] / sqrt(mul_in Z), the
            factor of a fully connected product with the one-hot element.
        bias: whether even scalars are shifted.
    """

    def __init__(
        self,
        irreps_in: Irreps | str,
        irreps_out: Irreps | str,
        *,
        rngs: nnx.Rngs,
        num_elements: int | None = None,
        bias: bool = False,
    ):
        self.irreps_in = regrouped(irreps_in)
        available = {ir for _, ir in self.irreps_in}
        self.irreps_out = Irreps([m for m in regrouped(irreps_out) if m.ir in available])
        self.num_elements = num_elements
        mul_in = {ir: mul for mul, ir in self.irreps_in}
        lead = () if num_elements is None else (num_elements,)
        self.weights = nnx.Dict(
            {
                str(ir): nnx.Param(jax.random.normal(rngs.params(), (*lead, mul_in[ir], mul)))
                for mul, ir in self.irreps_out
            }
        )
        self.bias = nnx.Param(jnp.zeros(self.irreps_out.count(Irrep(0, 1)))) if bias else None

    @jax.named_scope("linear")
    def __call__(self, x: IrrepsArray, chosen: jax.Array | None = None) -> IrrepsArray:
        """Map [N, irreps_in] to [N, irreps_out]; `chosen` is the one-hot element [N, Z]."""
        blocks = {ir: b for (_, ir), b in zip(x.irreps, x.blocks, strict=True)}
        out = []
        for _, ir in self.irreps_out:
            weight, block = self.weights[str(ir)][...], blocks[ir]
            if chosen is not None:
                weight = weight.reshape(-1, weight.shape[-1])
                block = block[..., None, :] * chosen[:, None, :, None]
                block = block.reshape(block.shape[:-2] + (-1,))
            block = block @ (weight / np.sqrt(weight.shape[0]).astype(weight.dtype))
            if self.bias is not None and ir == Irrep(0, 1):
                block = block + self.bias[...]
            out.append(block)
        return IrrepsArray.from_blocks(self.irreps_out, out)


def perceptron(
    x: jax.Array, matrices: Sequence[jax.Array], activation: Callable[[jax.Array], jax.Array] = silu
) -> jax.Array:
    """act(x M) ... M: the layers of an MLP, [..., n] -> [..., m]."""
    *first, last = matrices
    for matrix in first:
        x = activation(jnp.matmul(x, matrix, precision=HIGHEST))
    return jnp.matmul(x, last, precision=HIGHEST)


class MLP(nnx.Module):
    """x -> act(x W / sqrt(n)) ... without biases: zero stays zero, so an envelope survives it.

    Args:
        sizes: widths, input and output included; no activation after the last layer.
        activation: of unit second moment.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        rngs: nnx.Rngs,
        activation: Callable[[jax.Array], jax.Array] = silu,
    ):
        self.activation = activation
        self.weights = nnx.List(
            nnx.Param(jax.random.normal(rngs.params(), shape))
            for shape in zip(sizes[:-1], sizes[1:], strict=True)
        )

    @property
    def matrices(self) -> tuple[jax.Array, ...]:
        """W / sqrt(n) of each layer."""
        weights = [w[...] for w in self.weights]
        return tuple(w / np.sqrt(w.shape[0]).astype(w.dtype) for w in weights)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., sizes[0]] -> [..., sizes[-1]]."""
        return perceptron(x, self.matrices, self.activation)


class Dense(nnx.Module):
    """x W / sqrt(n) + b: a linear layer of numbers, [..., n] -> [..., m]."""

    def __init__(self, size_in: int, size_out: int, *, rngs: nnx.Rngs):
        self.weight = nnx.Param(jax.random.normal(rngs.params(), (size_in, size_out)))
        self.bias = nnx.Param(jnp.zeros(size_out))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., n] -> [..., m]."""
        weight = self.weight[...]
        scale = np.sqrt(weight.shape[0]).astype(weight.dtype)
        return jnp.matmul(x, weight / scale, precision=HIGHEST) + self.bias[...]


class Gate(nnx.Module):
    """Gated nonlinearity (Weiler et al. 2018, eq. 10).

    Even scalars pass through silu, odd scalars through tanh, every other irrep is multiplied by
    sigmoid (or `gates`) of an even scalar of its own, one per channel.

    Attributes:
        irreps_in: what it takes: the output's scalars, the gates and the gated irreps.
        irreps_out: what it gives.
    """

    def __init__(self, irreps_out: Irreps | str, gates: Callable[[jax.Array], jax.Array] = sigmoid):
        self.gates = gates
        self.irreps_out = regrouped(irreps_out)
        self.gated = Irreps([m for m in self.irreps_out if m.ir.l > 0])
        self.num_gates = self.gated.num_irreps
        self.irreps_in = (self.irreps_out + Irreps(f"{self.num_gates}x0e")).regroup()

    @jax.named_scope("gate")
    def __call__(self, x: IrrepsArray) -> IrrepsArray:
        """[..., irreps_in] -> [..., irreps_out]; the gates are the last even scalars."""
        blocks = {str(ir): b for (_, ir), b in zip(x.irreps, x.blocks, strict=True)}
        gates = jnp.zeros(())
        if self.num_gates:
            even = blocks["0e"]
            keep = even.shape[-1] - self.num_gates
            blocks["0e"], gates = even[..., :keep], self.gates(even[..., keep:])
        out, used = [], 0
        for mul, ir in self.irreps_out:
            block = blocks[str(ir)]
            if ir.l > 0:
                block = block * gates[..., used : used + mul]
                used += mul
            else:
                block = silu(block) if ir.p == 1 else tanh(block)
            out.append(block)
        return IrrepsArray.from_blocks(self.irreps_out, out)


def bessel(distance: jax.Array, cutoff: float, number: int) -> jax.Array:
    """sqrt(2 / r_c) sin(n pi r / r_c) / r for n = 1 .. number (Gasteiger et al. 2020, eq. 7).

    [...] in angstrom -> [..., number].
    """
    n = jnp.arange(1, number + 1, dtype=distance.dtype)
    r = distance[..., None]
    return np.sqrt(2.0 / cutoff).astype(distance.dtype) * jnp.sin(n * (np.pi / cutoff) * r) / r


def gaussian(distance: jax.Array, cutoff: float, number: int) -> jax.Array:
    """exp(-(r - mu_n)^2 / (2 delta^2)), centres mu_n evenly spaced by delta on [0, r_c]."""
    centers = jnp.linspace(0.0, cutoff, number, dtype=distance.dtype)
    width = cutoff / (number - 1)
    return jnp.exp(-0.5 * ((distance[..., None] - centers) / width) ** 2)


def polynomial_cutoff(distance: jax.Array, cutoff: float, p: int) -> jax.Array:
    """1 - (p+1)(p+2)/2 u^p + p(p+2) u^(p+1) - p(p+1)/2 u^(p+2), u = r / r_c; zero beyond r_c.

    Two continuous derivatives at r_c (Gasteiger et al. 2020, eq. 8). It is computed as (1 - u)^3
    times the sum over k < p of (k+1)(k+2)/2 u^k, the same without the difference of large numbers:
    positive and accurate in float32 up to r_c.
    """
    u = distance / cutoff
    series = jnp.zeros_like(u)
    for k in reversed(range(p)):
        series = series * u + (k + 1) * (k + 2) / 2
    value = (1 - u) ** 3 * series
    return jnp.where(u < 1, value, jnp.zeros_like(value))


def lengths_of(graph: AtomGraph, r_max: float, p: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Vectors [R, K, 3] and lengths [R, K] of all edges in angstrom, and their envelope [R, K].

    The envelope is `polynomial_cutoff` of order p at r_max, and zero in slots without an edge.
    """
    vectors = displacements(graph)
    return vectors, *length_and_envelope(vectors, jnp.asarray(graph.neighbor_mask), r_max, p)


def length_and_envelope(
    vectors: jax.Array, mask: jax.Array, r_max: float, p: int
) -> tuple[jax.Array, jax.Array]:
    """The same of vectors [..., 3] and of a mask of the slots with an edge."""
    distance = jnp.linalg.norm(vectors, axis=-1)
    return distance, polynomial_cutoff(distance, r_max, p) * mask.astype(distance.dtype)
