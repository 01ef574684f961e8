"""Clebsch-Gordan messages of a row by one matrix product per path, inner index (neighbour, m1).

The harmonics have no channels: contracted with the coefficients first, they leave a small matrix
per edge, and the sum over neighbours happens inside the product of that matrix with the features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from eqnet.irreps import IrrepsArray
from eqnet.so3 import HIGHEST

if TYPE_CHECKING:
    from eqnet.ops.clebsch_gordan import ClebschGordan


def rows(
    product: ClebschGordan,
    x: IrrepsArray,
    y: IrrepsArray,
    weights: jax.Array,
    shared: jax.Array | None = None,
) -> IrrepsArray:
    """X [r, k, irreps_left], y [r, k, irreps_right] of one channel -> [r, irreps_out]."""
    del shared
    xs, ys = x.blocks, [block[..., 0] for block in y.blocks]
    parts = jax.lax.split(weights, product.weight_sizes, axis=2)
    num_rows, width = weights.shape[:2]
    out: dict = {}
    for path, part in zip(product.paths, parts, strict=True):
        table = jnp.asarray(product.coefficients(path), x.array.dtype)
        coupling = jnp.einsum("rkj,ijo->rkio", ys[path.right], table, precision=HIGHEST)
        weighted = xs[path.left] * part[:, :, None, :]
        inner = width * table.shape[0]
        summed = jnp.einsum(
            "rqo,rqc->roc",
            coupling.reshape(num_rows, inner, -1),
            weighted.reshape(num_rows, inner, -1),
            precision=HIGHEST,
        )
        out.setdefault(path.out, []).append(summed)
    return product.join(out)
