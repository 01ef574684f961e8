"""Bilinear maps with few non-zero coefficients, unrolled, as a primitive of JAX.

Left to automatic differentiation, XLA recomputes the whole expression for every entry of the
gradient. As a bilinear primitive, the derivative of a sparse product is two sparse products with
permuted coefficients: forward or backward, derivatives of every order cost the same few operations.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


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


def sparse_product(coefficients: Sparse, x: jax.Array, y: jax.Array) -> jax.Array:
    """[N, dim_x, C] and [N, dim_y, C] -> [N, dim_z, C], channel by channel."""
    return _product.bind(x, y, coefficients=coefficients)


def _evaluate(x: jax.Array, y: jax.Array, *, coefficients: Sparse) -> jax.Array:
    rows: list[list[jax.Array]] = [[] for _ in range(coefficients.dims[2])]
    for i, j, k, c in coefficients.terms:
        rows[k].append(np.asarray(c, x.dtype) * (x[:, i] * y[:, j]))
    zero = jnp.zeros_like(x[:, 0])
    return jnp.stack([sum(r[1:], r[0]) if r else zero for r in rows], axis=1)


def _abstract(x, y, *, coefficients: Sparse):
    return x.update(shape=(x.shape[0], coefficients.dims[2], x.shape[2]))


def _batch(operands, axes, *, coefficients: Sparse):
    """Fold the new axis into the atoms."""
    size = next(v.shape[a] for v, a in zip(operands, axes, strict=True) if a is not None)
    folded = [
        jnp.broadcast_to(v, (size, *v.shape)) if a is None else jnp.moveaxis(v, a, 0)
        for v, a in zip(operands, axes, strict=True)
    ]
    x, y = (v.reshape((-1, *v.shape[2:])) for v in folded)
    z = sparse_product(coefficients, x, y)
    return z.reshape((size, -1, *z.shape[1:])), 0


_product = Primitive("sparse_product")
_product.def_impl(jax.jit(_evaluate, static_argnames="coefficients"))
_product.def_abstract_eval(_abstract)
ad.defbilinear(
    _product,
    lambda g, x, y, *, coefficients: sparse_product(coefficients.for_left(), g, y),
    lambda g, x, y, *, coefficients: sparse_product(coefficients.for_right(), x, g),
)
batching.primitive_batchers[_product] = _batch
mlir.register_lowering(_product, mlir.lower_fun(_evaluate, multiple_results=False))
