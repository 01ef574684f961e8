"""The edge convolution: gather, product, weight and sum over neighbours in one call.

    A_i = sum_{j in N(i)} product(x_j, y_ij; w_ij)

The methods compute the same function from the same weights. `y` has no channels, so it is
contracted first, and the sum over neighbours is the inner index of a matrix product.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from eqnet.graph import AtomGraph, gather_neighbors, sum_rows
from eqnet.irreps import IrrepsArray
from eqnet.ops.clebsch_gordan import ClebschGordan
from eqnet.so3 import HIGHEST

Convolution = Callable[[ClebschGordan, IrrepsArray, IrrepsArray, jax.Array, AtomGraph], IrrepsArray]


def dense(
    product: ClebschGordan, x: IrrepsArray, y: IrrepsArray, weights: jax.Array, graph: AtomGraph
) -> IrrepsArray:
    """One message per edge, then the sum: the plain form, for tests.

    Args:
        product: of mode 'uvu' with one channel on the right.
        x: [N, irreps_left].
        y: [R, K, irreps_right].
        weights: [R, K, num_weights], zero in padding slots.
        graph: says who is whose neighbour.

    Returns:
        [N, irreps_out].
    """
    message = product(IrrepsArray(x.irreps, gather_neighbors(x.array, graph)), y, weights)
    return IrrepsArray(message.irreps, sum_rows(message.array.sum(1), graph))


def rows(
    product: ClebschGordan, x: IrrepsArray, y: IrrepsArray, weights: jax.Array, graph: AtomGraph
) -> IrrepsArray:
    """For each path one matrix product per row, with (neighbour, m1) as the inner index.

    Nothing of size edges x outputs x channels is formed, forward or backward. Arguments as `dense`.
    """
    xs = [gather_neighbors(block, graph) for block in x.blocks]
    ys = [block[..., 0] for block in y.blocks]
    parts = jax.lax.split(weights, product.weight_sizes, axis=2)
    num_rows, width = weights.shape[:2]
    out: dict = {}
    for path, part in zip(product.paths, parts, strict=True):
        table = jnp.asarray(product.coefficients(path), x.array.dtype)
        matrix = jnp.einsum("rkj,ijo->rkio", ys[path.right], table, precision=HIGHEST)
        weighted = xs[path.left] * part[:, :, None, :]
        inner = width * table.shape[0]
        summed = jnp.einsum(
            "rqo,rqc->roc",
            matrix.reshape(num_rows, inner, -1),
            weighted.reshape(num_rows, inner, -1),
        )
        out.setdefault(path.out, []).append(sum_rows(summed, graph))
    return product.join(out)


METHODS: dict[str, Convolution] = {"rows": rows, "dense": dense}
