"""Bilinear maps with few non-zero coefficients, unrolled, with a derivative rule of their own.

Left to automatic differentiation, XLA recomputes the whole expression for every entry of the
gradient. Here the derivative of a sparse product is two sparse products with permuted coefficients,
so derivatives of every order cost the same few operations.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Sparse(NamedTuple):
    """z[k] = sum c x[i] y[j] over the terms (i, j, k, c); dims are the lengths of i, j, k."""

    terms: tuple[tuple[int, int, int, float], ...]
    dims: tuple[int, int, int]

    @classmethod
    def from_dense(cls, table: np.ndarray) -> Sparse:
        """The non-zero entries of a table [dim_x, dim_y, dim_z]."""
        return cls(
            tuple(
                (int(i), int(j), int(k), float(table[i, j, k])) for i, j, k in np.argwhere(table)
            ),
            (table.shape[0], table.shape[1], table.shape[2]),
        )

    def for_left(self) -> Sparse:
        """The map (z, y) -> x that is the transpose with respect to x."""
        i, j, k = self.dims
        return Sparse(tuple((c, b, a, v) for a, b, c, v in self.terms), (k, j, i))

    def for_right(self) -> Sparse:
        """The map (x, z) -> y that is the transpose with respect to y."""
        i, j, k = self.dims
        return Sparse(tuple((a, c, b, v) for a, b, c, v in self.terms), (i, k, j))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def sparse_product(coefficients: Sparse, x: jax.Array, y: jax.Array) -> jax.Array:
    """[N, dim_x, C] and [N, dim_y, C] -> [N, dim_z, C], channel by channel."""
    rows: list[list[jax.Array]] = [[] for _ in range(coefficients.dims[2])]
    for i, j, k, c in coefficients.terms:
        rows[k].append(np.asarray(c, x.dtype) * (x[:, i] * y[:, j]))
    zero = jnp.zeros_like(x[:, 0])
    return jnp.stack([sum(r[1:], r[0]) if r else zero for r in rows], axis=1)


def _forward(coefficients: Sparse, x: jax.Array, y: jax.Array):
    return sparse_product(coefficients, x, y), (x, y)


def _backward(coefficients: Sparse, saved: tuple[jax.Array, jax.Array], g: jax.Array):
    x, y = saved
    return (
        sparse_product(coefficients.for_left(), g, y),
        sparse_product(coefficients.for_right(), x, g),
    )


sparse_product.defvjp(_forward, _backward)
