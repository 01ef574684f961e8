"""Powers of one feature as products of signals on the sphere.

    B_L = c_1 x_L + sum_{nu > 1} c_nu n_nu Int Y_L f_1 f_2 ... f_nu,    f_n = sum_l a_n,l x_l . Y_l

channel by channel, with a weight a for each factor and degree and a weight c for each order and
output. The factors are shared by the orders, so that one more order costs one more signal. For
correlation 3, l <= 3 and outputs 0e + 1o these are 18 weights per channel. After the many-body
products of Luo et al., ICLR 2024, arXiv:2401.10216.

The highest integrand is a polynomial of degree correlation * l_max + L_max: one grid is exact for
all orders. The constants n_nu make unit variance of unit-variance x and weights, see `variance`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import combinations_with_replacement
from math import comb, factorial, prod
from typing import ClassVar

import jax
import numpy as np

from eqnet.irreps import Irrep, Irreps, IrrepsArray, regrouped
from eqnet.ops.blocks import in_blocks
from eqnet.ops.signals import (
    Projections,
    Signal,
    by_coefficients,
    by_convolution,
    by_fft,
    by_grid,
)

METHODS: dict[str, Callable[[tuple[int, ...], tuple[int, ...], list[Signal]], Projections]] = {
    "grid": by_grid,
    "fourier": by_convolution,
    "fft": by_fft,
    "dense": by_coefficients,
}


@dataclass(frozen=True)
class GauntPower:
    """Sum of the products of one to `correlation` signals made of a feature.

    Args:
        irreps_in: irreps of the feature, of natural parity (0e, 1o, 2e, ...) and equal
            multiplicities.
        irreps_out: irreps to keep, of natural parity, with the same multiplicity.
        correlation: highest number of factors.

    Weights of a channel: a [factor, input block] (none for correlation 1), then c as in `terms`.

    Raises:
        ValueError: other parities, unequal multiplicities, or an output that nothing reaches.
    """

    irreps_in: Irreps
    irreps_out: Irreps
    correlation: int

    methods: ClassVar[tuple[str, ...]] = tuple(METHODS)

    def __post_init__(self) -> None:
        if len({mul for mul, _ in self.irreps_in + self.irreps_out}) != 1:
            raise ValueError(
                f"a power needs equal multiplicities: {self.irreps_in} to {self.irreps_out}"
            )
        for _, ir in self.irreps_in + self.irreps_out:
            if ir.p != (-1) ** ir.l:
                raise ValueError(
                    f"signals on the sphere have natural parity (0e, 1o, 2e, ...), and {ir} has "
                    "not; the powers of clebsch_gordan take any parity"
                )
        for l in self.outputs:
            if not any(out == l for _, out in self.terms):
                raise ValueError(
                    f"no product of up to {self.correlation} signals of {self.irreps_in} contains "
                    f"{Irrep(l, (-1) ** l)}"
                )

    @cached_property
    def inputs(self) -> tuple[int, ...]:
        """The degree of each block of the feature."""
        return tuple(ir.l for _, ir in self.irreps_in)

    @cached_property
    def outputs(self) -> tuple[int, ...]:
        """The degree of each block of the result."""
        return tuple(ir.l for _, ir in regrouped(self.irreps_out))

    @cached_property
    def terms(self) -> tuple[tuple[int, int], ...]:
        """(order, degree of the output) of each weight c."""
        return tuple(
            (order, l)
            for order in range(1, self.correlation + 1)
            for l in self.outputs
            if (l in self.inputs if order == 1 else variance(self.inputs, order, l) > 1e-10)
        )

    def norm(self, order: int, out: int) -> float:
        """The constant n of an order and the degree of an output; 1 for the feature itself."""
        return 1.0 if order == 1 else variance(self.inputs, order, out) ** -0.5

    @property
    def num_factors(self) -> int:
        """Number of weights a per channel."""
        return self.correlation * len(self.inputs) if self.correlation > 1 else 0

    @property
    def num_weights(self) -> int:
        """Number of weights per channel."""
        return self.num_factors + len(self.terms)

    def initial_scale(self) -> np.ndarray:
        """Standard deviation of the first weights, for a sum over orders of unit variance."""
        degrees = [l for _, l in self.terms]
        shares = [degrees.count(l) ** -0.5 for l in degrees]
        return np.concatenate([np.ones(self.num_factors), shares])

    def __call__(self, x: IrrepsArray, weights: jax.Array, method: str = "grid") -> IrrepsArray:
        """The powers.

        Args:
            x: [N, irreps_in].
            weights: [N, num_weights, C].
            method: one of `methods`.

        Returns:
            [N, irreps_out].

        Raises:
            ValueError: there is no method of this name.
        """
        if method not in METHODS:
            raise ValueError(f"gaunt has no method {method!r}; it has: {', '.join(METHODS)}")
        degree = self.correlation * max(self.inputs) + max(self.outputs)
        points = max(degree, 2) ** 2 // 4  # about half a grid

        def some_rows(x: jax.Array, weights: jax.Array) -> jax.Array:
            return self._rows(IrrepsArray(self.irreps_in, x), weights, method).array

        row_bytes = points * weights.shape[-1] * x.array.dtype.itemsize
        out = in_blocks(some_rows, (x.array, weights), row_bytes)
        return IrrepsArray(regrouped(self.irreps_out), out)

    def _rows(self, x: IrrepsArray, weights: jax.Array, method: str) -> IrrepsArray:
        blocks, size = x.blocks, len(self.inputs)
        signals = [
            [weights[:, None, n * size + i] * block for i, block in enumerate(blocks)]
            for n in range(self.num_factors // size)
        ]
        products = METHODS[method](self.inputs, self.outputs, signals) if signals else []
        sums: dict[int, jax.Array] = {}
        for n, (order, l) in enumerate(self.terms):
            c, index = weights[:, None, self.num_factors + n], self.outputs.index(l)
            value = blocks[self.inputs.index(l)] if order == 1 else products[order - 2][index]
            term = c * (self.norm(order, l) * value)
            sums[l] = sums[l] + term if l in sums else term
        return IrrepsArray.from_blocks(regrouped(self.irreps_out), [sums[l] for l in self.outputs])


@cache
def variance(inputs: tuple[int, ...], order: int, out: int) -> float:
    """Variance of a component of Int Y_L f_1 ... f_nu for unit-variance Gaussian x and weights a.

    Weights of different factors and degrees are independent, so that choices of one degree for each
    factor add up. For one choice the field x_l . Y_l is Gaussian with covariance s P_l(u),
    s = (2 l + 1) / 4 pi, at points of cosine u, and n equal factors have by Wick's theorem

        E[f(r)^n f(r')^n] = s^n sum_k k! binomial(n, k)^2 ((n - k - 1)!!)^2 P_l(u)^k,   n - k even,

    with k pairs between r and r'. The variance is 2 pi times the integral of P_L times the product
    of these over u, here by exact Gauss-Legendre quadrature. Zero where L is out of reach.
    """
    nodes, weights = np.polynomial.legendre.leggauss((order * max(inputs) + out) // 2 + 1)
    total = np.zeros_like(nodes)
    for degrees in combinations_with_replacement(inputs, order):
        counts = Counter(degrees)
        orderings = factorial(order) // prod(factorial(n) for n in counts.values())
        total += orderings * np.prod([_moment(l, n, nodes) for l, n in counts.items()], axis=0)
    return float(2 * np.pi * weights @ (_legendre_polynomial(out, nodes) * total))


def _legendre_polynomial(l: int, u: np.ndarray) -> np.ndarray:
    return np.polynomial.legendre.Legendre.basis(l)(u)


def _moment(l: int, n: int, u: np.ndarray) -> np.ndarray:
    """E[f(r)^n f(r')^n] for cosines u, see `variance`."""
    total = np.zeros_like(u)
    for k in range(n % 2, n + 1, 2):
        pairings = factorial(k) * comb(n, k) ** 2 * prod(range(n - k - 1, 0, -2)) ** 2
        total += pairings * _legendre_polynomial(l, u) ** k
    return ((2 * l + 1) / (4 * np.pi)) ** n * total
