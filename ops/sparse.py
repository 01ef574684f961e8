"""Multilinear maps with few non-zero coefficients, unrolled, as a primitive of JAX.

Left to automatic differentiation, XLA recomputes the whole expression for every entry of the
gradient. As a multilinear primitive, each derivative of a sparse product is a sparse product with
permuted coefficients, compiled apart: forward or backward, every order costs the same few
operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from eqnet.ops.apart import compiled_apart

# XLA computes so many rows in one loop; of a longer stack it makes a loop for each row, one fifth
# slower at 9 rows (1000 edges, 64 channels, float32).
ROWS_AT_A_TIME = 8


class Sparse(NamedTuple):
    """z[k] = sum c x[i] y[j] ... over the terms (i, j, ..., k, c); dims are their lengths."""

    terms: tuple[tuple[int | float, ...], ...]
    dims: tuple[int, ...]

    @classmethod
    def from_dense(cls, table: np.ndarray) -> Sparse:
        """The non-zero entries of a table [dim_x, dim_y, ..., dim_z]."""
        indices = [tuple(int(i) for i in index) for index in np.argwhere(table)]
        return cls(tuple((*index, float(table[index])) for index in indices), table.shape)

    def transposed(self, operand: int) -> Sparse:
        """The map that is the transpose with respect to an operand, z standing in its place."""

        def swapped(values: Sequence) -> tuple:
            swap = list(values)
            swap[operand], swap[-1] = swap[-1], swap[operand]
            return tuple(swap)

        terms = tuple((*swapped(index), c) for *index, c in self.terms)
        return Sparse(terms, swapped(self.dims))


def sparse_product(coefficients: Sparse, *operands: jax.Array) -> jax.Array:
    """[N, dim_x, C], [N, dim_y, C], ... -> [N, dim_z, C], channel by channel."""
    return _product.bind(*operands, coefficients=coefficients)


def _sum(values: list[jax.Array]) -> jax.Array:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


def _nested(terms: list[tuple], operands: Sequence[jax.Array]) -> jax.Array:
    """Sum of terms (i, j, ..., c): each row of an operand times what it multiplies, once."""
    first, rest = operands[0], operands[1:]
    if not rest:
        return _sum([jnp.asarray(c, first.dtype) * first[:, i] for i, c in terms])
    groups: dict[int, list[tuple]] = {}
    for i, *others in terms:
        groups.setdefault(i, []).append(tuple(others))
    return _sum([first[:, i] * _nested(group, rest) for i, group in groups.items()])


def _row(terms: list[tuple], operands: Sequence[jax.Array]) -> jax.Array:
    # two operands are 20 to 30 % faster term by term, three as much faster nested
    if len(operands) != 2:
        return _nested(terms, operands)
    x, y = operands
    return _sum([jnp.asarray(c, x.dtype) * (x[:, i] * y[:, j]) for i, j, c in terms])


def _evaluate(*operands: jax.Array, coefficients: Sparse) -> jax.Array:
    rows: list[list[tuple]] = [[] for _ in range(coefficients.dims[-1])]
    for *index, k, c in coefficients.terms:
        rows[int(k)].append((*index, c))
    zero = jnp.zeros_like(operands[0][:, 0])
    values = [_row(terms, operands) if terms else zero for terms in rows]
    stacks = [
        jnp.stack(values[start : start + ROWS_AT_A_TIME], axis=1)
        for start in range(0, len(values), ROWS_AT_A_TIME)
    ]
    # the barrier keeps XLA from taking the stacks for one again
    return stacks[0] if len(stacks) == 1 else jnp.concatenate(lax.optimization_barrier(stacks), 1)


def _abstract(*operands, coefficients: Sparse):
    x = operands[0]
    return x.update(shape=(x.shape[0], coefficients.dims[-1], x.shape[2]))


def _jvp(primals, tangents, *, coefficients: Sparse):
    value = sparse_product(coefficients, *primals)
    changes = [
        sparse_product(coefficients, *primals[:n], tangent, *primals[n + 1 :])
        for n, tangent in enumerate(tangents)
        if not isinstance(tangent, ad.Zero)
    ]
    return value, _sum(changes)


def _transpose(g, *operands, coefficients: Sparse):
    n = next(n for n, operand in enumerate(operands) if ad.is_undefined_primal(operand))
    cotangents: list = [None] * len(operands)
    cotangents[n] = (
        ad.Zero(operands[n].aval)
        if isinstance(g, ad.Zero)
        else sparse_product(coefficients.transposed(n), *operands[:n], g, *operands[n + 1 :])
    )
    return cotangents


def _batch(operands, axes, *, coefficients: Sparse):
    """Fold the new axis into the atoms."""
    size = next(v.shape[a] for v, a in zip(operands, axes, strict=True) if a is not None)
    folded = [
        jnp.broadcast_to(v, (size, *v.shape)) if a is None else jnp.moveaxis(v, a, 0)
        for v, a in zip(operands, axes, strict=True)
    ]
    z = sparse_product(coefficients, *(v.reshape((-1, *v.shape[2:])) for v in folded))
    return z.reshape((size, -1, *z.shape[1:])), 0


_product = Primitive("sparse_product")
_product.def_impl(jax.jit(_evaluate, static_argnames="coefficients"))
_product.def_abstract_eval(_abstract)
ad.primitive_jvps[_product] = _jvp
ad.primitive_transposes[_product] = _transpose
batching.primitive_batchers[_product] = _batch
_apart = compiled_apart(_evaluate, static=("coefficients",))
mlir.register_lowering(_product, mlir.lower_fun(_evaluate, multiple_results=False))
mlir.register_lowering(_product, mlir.lower_fun(_apart, multiple_results=False), platform="cpu")
