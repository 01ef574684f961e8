"""The Gaunt product by values at the points of an exact grid, on half of the sphere."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import jax
import numpy as np

from eqnet.ops.pointwise import VALUES, Pointwise, Table, field_class, grouped
from eqnet.ops.sphere import half_grid, harmonics

if TYPE_CHECKING:
    from eqnet.ops.factorised import Factorised


@cache
def tables(
    product: Factorised, latitudes: int | None = None, azimuths: int | None = None
) -> Pointwise:
    """Values of the harmonics in use, and quadrature with them.

    Args:
        product: a Gaunt product.
        latitudes: of the grid, instead of the exact number.
        azimuths: of the grid, instead of the exact number.
    """
    points = half_grid(product.total_degree, latitudes, azimuths)
    left = {path.left for path in product.couplings}
    right = {path.right for path in product.couplings}
    outputs = [out.irrep for out in product.outputs]

    def values(irreps, used, weights: np.ndarray | float = 1.0):
        return grouped(
            Table(n, field_class(ir, ir.l), 0, weights * harmonics(ir.l, points))
            for n, ir in enumerate(irreps)
            if n in used
        )

    return Pointwise(
        values(product.left, left),
        values(product.right, right),
        values(outputs, range(len(outputs)), points.weights[:, None]),
        VALUES,
    )


def grid(product: Factorised, left: list[jax.Array], right: list[jax.Array]) -> list[jax.Array]:
    """The core: [..., 2 l + 1, C] of each left and right block -> of each output."""
    return tables(product)(left, right)
