"""The matrix product: features as (2q + 1) x (2q + 1) matrices, multiplied as matrices.

The irreps l = 0 .. 2q of one parity are exactly the operators on a spin q,

    X[a, b] = sum_{l m} S_l[a, b, m] x_l[m],    Z = X Y,    z_l[m] = sum_{a b} S_l[a, b, m] Z[a, b]

with the orthonormal basis S_l = sqrt(2 l + 1) C(q, q, l), C of unit norm, and q = ceil(highest
degree / 2) of the inputs and outputs. All paths appear, even ones through the
anticommutator and odd ones through the commutator, each with one coefficient, a 6j symbol (the
identity of three 3j symbols around a triangle):

    Z = g C,    g = (-1)^l3 sqrt((2 l1 + 1)(2 l2 + 1)(2 l3 + 1)) {l1 l2 l3; q q q}

It vanishes for a few triples: (3, 5, 5) at q = 3, (5, 6, 7) at q = 4. There is
one matrix for each parity: Z_+ = X_+ Y_+ + X_- Y_-, Z_- = X_+ Y_- + X_- Y_+.

Unke & Maennel, e3x, arXiv:2401.07595 (FusedTensor); q = 1 is the product of TensorNet
(Simeon & De Fabritiis, NeurIPS 2023, arXiv:2306.06482).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from math import factorial, sqrt
from typing import ClassVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from eqnet.irreps import Irrep
from eqnet.ops.channel_matmul import channel_matmul
from eqnet.ops.factorised import Core, Factorised
from eqnet.ops.factorised_edges import messages, rows
from eqnet.ops.product import Kernel
from eqnet.so3 import HIGHEST, clebsch_gordan

# One matrix [..., 2q + 1, 2q + 1, C] for each parity that occurs.
Graded = dict[int, jax.Array]
# Matrices [..., n, n, C] times matrices, channel by channel.
Multiply = Callable[[jax.Array, jax.Array], jax.Array]


def basis(spin: int, l: int) -> np.ndarray:
    """S_l: orthonormal matrices of degree l, [2 q + 1, 2 q + 1, 2 l + 1], float64."""
    return np.sqrt(2 * l + 1) * clebsch_gordan(spin, spin, l)


def to_matrices(spin: int, irreps: tuple[Irrep, ...], blocks: list[jax.Array]) -> Graded:
    """Blocks [..., 2 l + 1, C] of the irreps -> their matrices by parity."""
    matrices: Graded = {}
    for parity in dict.fromkeys(ir.p for ir in irreps):
        parts = [(ir.l, b) for ir, b in zip(irreps, blocks, strict=True) if ir.p == parity]
        table = np.concatenate([basis(spin, l) for l, _ in parts], axis=2)
        feature = jnp.concatenate([block for _, block in parts], axis=-2)
        flat = _mixed(table.reshape(-1, table.shape[2]), feature)
        matrices[parity] = flat.reshape((*flat.shape[:-2], *table.shape[:2], flat.shape[-1]))
    return matrices


def from_matrices(spin: int, irreps: Sequence[Irrep], matrices: Graded) -> list[jax.Array]:
    """The parts [..., 2 l + 1, C] of the irreps, the inverse of `to_matrices`."""
    parts: dict[int, Iterator[jax.Array]] = {}
    for parity in dict.fromkeys(ir.p for ir in irreps):
        mine = [ir for ir in irreps if ir.p == parity]
        table = np.concatenate([basis(spin, ir.l) for ir in mine], axis=2)
        matrix = matrices[parity]
        flat = matrix.reshape((*matrix.shape[:-3], -1, matrix.shape[-1]))
        joined = _mixed(table.reshape(-1, table.shape[2]).T, flat)
        # split, unlike slices, has a plain concatenation as its derivative
        parts[parity] = iter(jax.lax.split(joined, [ir.dim for ir in mine], joined.ndim - 2))
    return [next(parts[ir.p]) for ir in irreps]


def _mixed(table: np.ndarray, x: jax.Array) -> jax.Array:
    """[m, n] times [..., n, C] -> [..., m, C].

    A batch with the same matrix everywhere, not one large matrix: that would be computed in a
    layout in which channels are not contiguous, and the products next to it several times slower.
    """
    same = jnp.broadcast_to(jnp.asarray(table, x.dtype), (*x.shape[:-2], *table.shape))
    batch = tuple(range(x.ndim - 2))
    dimensions = (((x.ndim - 1,), (x.ndim - 2,)), (batch, batch))
    return jax.lax.dot_general(same, x, dimensions, precision=HIGHEST)


def multiplied(x: Graded, y: Graded, multiply: Multiply) -> Graded:
    """Matrix products, channel by channel; their parities multiply."""
    products: Graded = {}
    for p, left in x.items():
        for r, right in y.items():
            term = multiply(left, right)
            products[p * r] = products[p * r] + term if p * r in products else term
    return products


def matmul(x: jax.Array, y: jax.Array) -> jax.Array:
    """[..., n, n, C] by a batch of matrix products."""
    return jnp.einsum("...abc,...bdc->...adc", x, y, precision=HIGHEST)


def _core(multiply: Multiply) -> Core:
    """The core of the product by a way to multiply matrices."""

    def core(product: Factorised, left: list[jax.Array], right: list[jax.Array]) -> list[jax.Array]:
        spin = cast("Matrix", product).spin
        x, y = to_matrices(spin, product.left, left), to_matrices(spin, product.right, right)
        z = multiplied(x, y, multiply)
        return from_matrices(spin, [out.irrep for out in product.outputs], z)

    return core


MULTIPLY: dict[str, Multiply] = {"columns": channel_matmul, "matmul": matmul}
_CORES = {name: _core(multiply) for name, multiply in MULTIPLY.items()}


@dataclass(frozen=True)
class Matrix(Factorised):
    """The product of matrices; arguments, weights and errors of `Factorised`."""

    name: ClassVar[str] = "matrix"
    cores: ClassVar[dict[str, Core]] = _CORES
    kernels: ClassVar[dict[str, Kernel]] = {
        "rows": rows,
        **{name: messages(core) for name, core in _CORES.items()},
    }

    @cached_property
    def spin(self) -> int:
        """q, so that degrees up to 2 q fit in a matrix of 2 q + 1 rows."""
        reach = max(ir.l for ir in self.left) + max(ir.l for ir in self.right)
        degrees = [ir.l for ir in (*self.left, *self.right)]
        degrees += [ir.l for _, ir in self.irreps_target if ir.l <= reach]
        return -(-max(degrees) // 2)

    def coefficient(self, left: Irrep, right: Irrep, out: Irrep) -> float:
        """A 6j symbol with its factors; see above."""
        scale = (-1) ** out.l * sqrt(left.dim * right.dim * out.dim)
        return scale * six_j(left.l, right.l, out.l, self.spin, self.spin, self.spin)


@cache
def six_j(a: int, b: int, c: int, d: int, e: int, f: int) -> float:
    """The Wigner 6j symbol {a b c; d e f} of integers, by Racah's sum."""
    triads = ((a, b, c), (a, e, f), (d, b, f), (d, e, c))
    if any(not abs(x - y) <= z <= x + y for x, y, z in triads):
        return 0.0
    squares = ((a, b, d, e), (b, c, e, f), (c, a, f, d))
    scale = 1.0
    for x, y, z in triads:
        sides = factorial(x + y - z) * factorial(x - y + z) * factorial(y + z - x)
        scale *= sqrt(sides / factorial(x + y + z + 1))
    total = 0.0
    for n in range(max(map(sum, triads)), min(map(sum, squares)) + 1):
        below = 1
        for group in triads:
            below *= factorial(n - sum(group))
        for group in squares:
            below *= factorial(sum(group) - n)
        total += (-1) ** n * factorial(n + 1) / below
    return scale * total
