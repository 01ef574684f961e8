"""The edge convolution: gather, product, weight and sum over neighbours in one call.

    A_i = sum_{j in N(i)} product(x_j, y_ij; w_ij),    w_ij = hidden_ij @ matrix

The methods compute the same function from the same weights. The last layer of the radial network is
part of the call, so that a method may make the weights of a few edges at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from eqnet.graph import AtomGraph, gather_neighbors, sum_rows
from eqnet.irreps import IrrepsArray
from eqnet.ops.clebsch_gordan import ClebschGordan
from eqnet.so3 import HIGHEST

Radial = tuple[jax.Array, jax.Array]
Convolution = Callable[[ClebschGordan, IrrepsArray, IrrepsArray, Radial, AtomGraph], IrrepsArray]

# Edges worked on at a time: their messages and weights then stay in a core's second-level cache
# (64 channels, 10 paths, float32: 0.3 MB). Measured from 60 to 300: flat between 100 and 150.
EDGES_AT_A_TIME = 128


def dense(
    product: ClebschGordan, x: IrrepsArray, y: IrrepsArray, radial: Radial, graph: AtomGraph
) -> IrrepsArray:
    """One message per edge, then the sum: the plain form, for tests.

    Args:
        product: of mode 'uvu' with one channel on the right.
        x: [N, irreps_left].
        y: [R, K, irreps_right].
        radial: hidden [R, K, H], zero in padding slots, and matrix [H, num_weights].
        graph: says who is whose neighbour.

    Returns:
        [N, irreps_out].
    """
    hidden, matrix = radial
    sent = IrrepsArray(x.irreps, gather_neighbors(x.array, graph))
    message = product(sent, y, hidden @ matrix)
    return IrrepsArray(message.irreps, sum_rows(message.array.sum(1), graph))


def rows(
    product: ClebschGordan, x: IrrepsArray, y: IrrepsArray, radial: Radial, graph: AtomGraph
) -> IrrepsArray:
    """Some rows at a time; for each path one matrix product per row, inner index (neighbour, m1).

    Weights and messages exist for one block of rows only and are made again in the backward pass:
    the work per edge is small beside the traffic of storing it. Arguments as `dense`.
    """
    hidden, matrix = radial
    operands = (
        [gather_neighbors(b, graph) for b in x.blocks],
        [b[..., 0] for b in y.blocks],
        hidden,
    )
    matrices = jnp.split(matrix, np.cumsum(product.weight_sizes)[:-1], axis=1)

    def some_rows(block: tuple) -> list[jax.Array]:
        return _sum_messages(product, matrices, *block)

    num_rows, width = hidden.shape[:2]
    size = _block_size(num_rows, width)
    if size >= num_rows:
        summed = some_rows(operands)
    else:
        padding = -num_rows % size
        blocks = jax.tree.map(lambda v: _cut(v, size, padding), operands)
        summed = jax.lax.map(jax.checkpoint(some_rows), blocks)
        summed = [s.reshape((-1, *s.shape[2:]))[:num_rows] for s in summed]
    out: dict = {}
    for path, values in zip(product.paths, summed, strict=True):
        out.setdefault(path.out, []).append(sum_rows(values, graph))
    return product.join(out)


def _sum_messages(
    product: ClebschGordan,
    matrices: list[jax.Array],
    xs: list[jax.Array],
    ys: list[jax.Array],
    hidden: jax.Array,
) -> list[jax.Array]:
    """Sum over the slots of each row, one array [R, 2 l3 + 1, u] per path."""
    num_rows, width = hidden.shape[:2]
    out = []
    for path, matrix in zip(product.paths, matrices, strict=True):
        table = jnp.asarray(product.coefficients(path), hidden.dtype)
        coupling = jnp.einsum("rkj,ijo->rkio", ys[path.right], table, precision=HIGHEST)
        weighted = xs[path.left] * (hidden @ matrix)[:, :, None, :]
        inner = width * table.shape[0]
        out.append(
            jnp.einsum(
                "rqo,rqc->roc",
                coupling.reshape(num_rows, inner, -1),
                weighted.reshape(num_rows, inner, -1),
            )
        )
    return out


def _block_size(num_rows: int, width: int) -> int:
    """Rows in a block: near the wanted number of edges, with as little padding as possible."""
    wanted = max(1, round(EDGES_AT_A_TIME / width))
    if num_rows <= 2 * wanted:
        return num_rows
    candidates = range(max(1, wanted // 2), wanted + wanted // 2 + 1)
    return min(candidates, key=lambda size: (-num_rows % size, abs(size - wanted)))


def _cut(values: jax.Array, size: int, padding: int) -> jax.Array:
    """[R, ...] -> [blocks, size, ...], zeros at the end."""
    if padding:
        values = jnp.pad(values, [(0, padding)] + [(0, 0)] * (values.ndim - 1))
    return values.reshape((-1, size, *values.shape[1:]))


METHODS: dict[str, Convolution] = {"rows": rows, "dense": dense}
