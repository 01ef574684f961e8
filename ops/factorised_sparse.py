"""Products with factorised weights by the list of the non-zero coefficients of all their paths.

    z[k] = sum_i sum_j G[i, j, k] x[i] y[j],    G = g C of each path

The fewest operations for low degrees; the number of coefficients grows as L^5, that of a grid's
operations as L^4, and long lists compile slowly.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from eqnet.ops.sparse import Sparse, sparse_product

if TYPE_CHECKING:
    from eqnet.ops.factorised import Factorised


def sparse(product: Factorised, left: list[jax.Array], right: list[jax.Array]) -> list[jax.Array]:
    """The core: [..., 2 l + 1, C] of each left and right block -> of each output."""
    x, y = (jnp.concatenate(blocks, axis=-2) for blocks in (left, right))
    lead = jnp.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    rows = [
        jnp.broadcast_to(v, (*lead, *v.shape[-2:])).reshape((-1, *v.shape[-2:])) for v in (x, y)
    ]
    z = sparse_product(_terms(product), *rows)
    dims = [out.irrep.dim for out in product.outputs]
    return jax.lax.split(z.reshape((*lead, *z.shape[1:])), dims, axis=len(lead))


@cache
def _terms(product: Factorised) -> Sparse:
    """The coefficients of all paths in one table [x, y, z]."""
    irreps = product.left, product.right, [out.irrep for out in product.outputs]
    starts = [np.cumsum([0, *(ir.dim for ir in some)]) for some in irreps]
    table = np.zeros([int(start[-1]) for start in starts])
    for path in product.couplings:
        corner = [start[n] for start, n in zip(starts, path[:3], strict=True)]
        block = product.table(path)
        place = tuple(slice(c, c + d) for c, d in zip(corner, block.shape, strict=True))
        table[place] += block
    return Sparse.from_dense(table)
