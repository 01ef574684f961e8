"""Clebsch-Gordan messages of a row by one matrix product per path, inner index (neighbour, m1).

The harmonics have no channels: contracted with the coefficients first, they leave a small matrix
per edge, and the sum over neighbours happens inside the product of that matrix with the features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from eqnet.irreps import IrrepsArray
from eqnet.ops.product import Radial
from eqnet.so3 import HIGHEST

if TYPE_CHECKING:
    from eqnet.ops.clebsch_gordan import ClebschGordan


def rows(product: ClebschGordan, x: IrrepsArray, y: IrrepsArray, radial: Radial) -> IrrepsArray:
    """X [r, k, irreps_left], y [r, k, irreps_right] of one channel -> [r, irreps_out]."""
    xs, ys = x.blocks, [block[..., 0] for block in y.blocks]
    matrices = jnp.split(radial.matrix, np.cumsum(product.weight_sizes)[:-1], axis=1)
    num_rows, width = radial.hidden.shape[:2]
    out: dict = {}
    for path, matrix in zip(product.paths, matrices, strict=True):
        table = jnp.asarray(product.coefficients(path), x.array.dtype)
        coupling = jnp.einsum("rkj,ijo->rkio", ys[path.right], table, precision=HIGHEST)
        weighted = xs[path.left] * (radial.hidden @ matrix)[:, :, None, :]
        inner = width * table.shape[0]
        summed = jnp.einsum(
            "rqo,rqc->roc",
            coupling.reshape(num_rows, inner, -1),
            weighted.reshape(num_rows, inner, -1),
        )
        out.setdefault(path.out, []).append(summed)
    return product.join(out)
