"""Messages of products with factorised weights, summed over the neighbours of a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from eqnet.irreps import Irrep, IrrepsArray
from eqnet.ops.product import Kernel
from eqnet.so3 import HIGHEST

if TYPE_CHECKING:
    from eqnet.ops.factorised import Core, Factorised


def messages(core: Core) -> Kernel:
    """The kernel that makes one message per edge by a core of the product, then their sum."""

    def kernel(
        product: Factorised,
        x: IrrepsArray,
        y: IrrepsArray,
        weights: jax.Array,
        shared: jax.Array | None = None,
    ) -> IrrepsArray:
        del shared
        out = product.apply(core, x, y, weights)
        return IrrepsArray(out.irreps, out.array.sum(1))

    return kernel


def rows(
    product: Factorised,
    x: IrrepsArray,
    y: IrrepsArray,
    weights: jax.Array,
    shared: jax.Array | None = None,
) -> IrrepsArray:
    """One matrix product per path and row, inner index (neighbour, m1).

    Seen from an edge the product is Clebsch-Gordan with path weights g a b c. The harmonics have no
    channels: contracted with the table first they leave a small matrix per edge, and the sum over
    neighbours happens inside the product of that matrix with the weighted features.
    """
    del shared
    parts = product.split_weights(weights)
    a, b, c = ([part[..., n, :] for n in range(part.shape[-2])] for part in parts)
    xs, ys = x.blocks, [block[..., 0] for block in y.blocks]
    num_rows = weights.shape[0]
    summed: dict[Irrep, jax.Array] = {}
    for path in product.couplings:
        ir = product.outputs[path.out].irrep
        table = jnp.asarray(product.table(path), x.array.dtype)
        coupling = jnp.einsum("rkj,ijo->rkio", ys[path.right], table, precision=HIGHEST)
        # the weights first: twice as fast backward as weighting x by a, then by b c
        weights = a[path.left] * b[path.right] * c[path.out]
        weighted = xs[path.left] * weights[..., None, :]
        term = jnp.einsum(
            "rqo,rqc->roc",
            coupling.reshape(num_rows, -1, ir.dim),
            weighted.reshape(num_rows, -1, product.channels),
            precision=HIGHEST,
        )
        summed[ir] = summed[ir] + term if ir in summed else term
    return IrrepsArray.from_blocks(product.irreps_out, [summed[ir] for _, ir in product.irreps_out])
