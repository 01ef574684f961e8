"""Clebsch-Gordan products by the list of non-zero coefficients, weights included.

    z[k] = sum_p w[p] sum_i x[i] sum_j C_p[i, j, k] y[j]

for all paths at once, as one trilinear primitive (`sparse.py`): nothing of the size of the paths is
stored, forward or backward. The fewest operations up to l = 3; above, its size makes it compile
slowly.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import prod
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from eqnet.irreps import IrrepsArray
from eqnet.ops.blocks import in_blocks
from eqnet.ops.sparse import Sparse, sparse_product

if TYPE_CHECKING:
    from eqnet.ops.clebsch_gordan import ClebschGordan

UVW = "method sparse works channel by channel; for mode 'uvw' there is dense"

# (product, x, y, weights) -> output, all with the same leading axes.
Core = Callable[["ClebschGordan", IrrepsArray, IrrepsArray, jax.Array], IrrepsArray]


def sparse(
    product: ClebschGordan, x: IrrepsArray, y: IrrepsArray, weights: jax.Array
) -> IrrepsArray:
    """The product of rows, modes 'uvu' and 'uuu'; arguments as in `ClebschGordan.__call__`.

    Raises:
        ValueError: mode 'uvw', which mixes channels.
    """
    if product.mode == "uvw":
        raise ValueError(UVW)
    lead = x.array.shape[:-1]
    left, right = (v.array.reshape((prod(lead), -1)) for v in (x, y))
    own = None  # weights of each row
    if weights.ndim > 1:
        own = jnp.broadcast_to(weights, (*lead, product.num_weights)).reshape((prod(lead), -1))

    def some_rows(left: jax.Array, right: jax.Array, own: jax.Array | None) -> jax.Array:
        shape = (len(left), product.num_weights)
        return _rows(product, left, right, jnp.broadcast_to(weights, shape) if own is None else own)

    row_bytes = product.irreps_out.dim * left.dtype.itemsize
    out = in_blocks(some_rows, (left, right, own), row_bytes)
    return IrrepsArray(product.irreps_out, out.reshape((*lead, -1)))


def _rows(
    product: ClebschGordan, left: jax.Array, right: jax.Array, weights: jax.Array
) -> jax.Array:
    """X [N, irreps_left], y [N, irreps_right], weights [N, num_weights] -> [N, irreps_out]."""
    blocks, parts = list(product.irreps_left), []
    for n, run in enumerate(product.runs):
        start, end = (sum(m.dim for m in blocks[:place]) for place in (run.start, run.end))
        channels = blocks[run.start].mul
        operands = (
            run_weights(product, n, weights),
            left[:, start:end].reshape((len(left), -1, channels)),
            _right_rows(product, right, channels),
        )
        parts.append(sparse_product(_terms(product, n), *operands))
    return product.assemble(parts).array


def sparse_edges(
    product: ClebschGordan,
    x: IrrepsArray,
    y: IrrepsArray,
    weights: jax.Array,
    shared: jax.Array | None = None,
) -> IrrepsArray:
    """X [r, k, irreps_left], y [r, k, irreps_right] -> [r, irreps_out], summed over k."""
    del shared
    if product.mode == "uvw":
        raise ValueError(UVW)
    edges = weights.shape[:2]
    operands = (v.reshape((prod(edges), -1)) for v in (x.array, y.array, weights))
    messages = _rows(product, *operands).reshape((*edges, -1))
    return IrrepsArray(product.irreps_out, messages.sum(1))


def run_weights(product: ClebschGordan, n: int, weights: jax.Array) -> jax.Array:
    """Weights [N, num_weights] of the paths of run n, [N, paths (times v in mode 'uvu'), C]."""
    shapes = [product.weight_shape(path) for path in product.paths]
    if len(product.runs) == 1 and all(len(shape) == 1 or shape[1] == 1 for shape in shapes):
        return weights.reshape((len(weights), len(shapes), -1))
    parts = jax.lax.split(weights, product.weight_sizes, axis=1)
    chosen = [parts[m].reshape((len(weights), shapes[m][0], -1)) for m in product.runs[n].paths]
    return jnp.concatenate([part.swapaxes(1, 2) for part in chosen], axis=1)


def _right_rows(product: ClebschGordan, y: jax.Array, channels: int) -> jax.Array:
    """Y [N, irreps_right.dim] as [N, rows, C].

    In mode 'uvu' every entry, channels v included, is a row for all channels of x; in mode 'uuu'
    rows are components of the irreps with as many channels.
    """
    if product.mode == "uvu":
        return jnp.broadcast_to(y[..., None], (*y.shape, channels))
    parts = jax.lax.split(y, [m.dim for m in product.irreps_right], axis=1)
    same = [p for p, (mul, _) in zip(parts, product.irreps_right, strict=True) if mul == channels]
    return jnp.concatenate(same, axis=1).reshape((len(y), -1, channels))


@cache
def _terms(product: ClebschGordan, n: int) -> Sparse:
    """(weight, row of x, row of y, row of the output, coefficient) for run n."""
    run, uvu, right = product.runs[n], product.mode == "uvu", list(product.irreps_right)
    channels = list(product.irreps_left)[run.start].mul
    left_sizes = [ir.dim for _, ir in product.irreps_left]
    right_sizes = [ir.dim * mul if uvu else ir.dim * (mul == channels) for mul, ir in right]
    terms: list[tuple[int | float, ...]] = []
    weight = 0
    for m, (row, step) in zip(run.paths, run.places, strict=True):
        path = product.paths[m]
        table = product.coefficients(path)
        x_start, y_start = sum(left_sizes[run.start : path.left]), sum(right_sizes[: path.right])
        copies = right[path.right].mul if uvu else 1
        for v in range(copies):
            for i, j, k in np.argwhere(table).tolist():
                z = row + k * step
                terms.append(
                    (weight, x_start + i, y_start + j * copies + v, z, float(table[i, j, k]))
                )
            weight += 1
    dims = (weight, sum(left_sizes[run.start : run.end]), sum(right_sizes), run.rows)
    return Sparse(tuple(terms), dims)
