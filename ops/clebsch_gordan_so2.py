"""Clebsch-Gordan messages in the frame of each edge: turn, multiply by m, turn back and sum.

There a path is a diagonal (l1 + l2 + l3 even) or antidiagonal (odd) matrix, one number per |m|:
all paths together cost L^3 per channel instead of L^5. Exact: the same function with the same
weights (`edge_frame.py`; Passaro and Zitnick 2023).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from eqnet.irreps import IrrepsArray
from eqnet.ops.clebsch_gordan_sparse import run_weights
from eqnet.ops.edge_frame import (
    check_direction,
    into_frame,
    polar_coefficients,
    rotations,
    sum_back,
    sum_turned,
)
from eqnet.ops.sparse import Sparse, sparse_product

if TYPE_CHECKING:
    from eqnet.ops.clebsch_gordan import ClebschGordan, Run


def so2(
    product: ClebschGordan,
    x: IrrepsArray,
    y: IrrepsArray,
    weights: jax.Array,
    shared: jax.Array | None = None,
) -> IrrepsArray:
    """X [r, k, irreps_left], y [r, k, irreps_right] -> [r, irreps_out], summed over k.

    Raises:
        ValueError: y cannot be the harmonics of a direction, or mode 'uvw'.
    """
    del shared
    _check(product)
    num_rows, width = weights.shape[:2]
    edges = num_rows * width
    left = list(product.irreps_left)
    left_degrees = [ir.l for _, ir in left]
    frames = rotations(max(*left_degrees, *(path.out.l for path in product.paths)), y)
    weights = weights.reshape((edges, -1))
    blocks = x.blocks
    parts = []
    for n, run in enumerate(product.runs):
        degrees = left_degrees[run.start : run.end]
        channels = left[run.start].mul
        features = [b.reshape((edges, -1, channels)) for b in blocks[run.start : run.end]]
        joined = jnp.concatenate(features, axis=1) if len(features) > 1 else features[0]
        z = sparse_product(
            _terms(product, n),
            run_weights(product, n, weights),
            into_frame(frames, degrees, joined),
        )
        parts.append(_turn_back(run, frames, z.reshape((num_rows, width, run.rows, channels))))
    return product.assemble(parts)


def _turn_back(run: Run, frames: list[jax.Array], z: jax.Array) -> jax.Array:
    """Messages in the frames of their edges [r, k, rows, C] -> [r, rows, C]."""
    degrees = [ir.l for ir in run.copies]
    if all(number == 1 for number in run.copies.values()):
        return sum_back(frames, degrees, z)
    parts = jax.lax.split(z, [ir.dim * n for ir, n in run.copies.items()], axis=2)
    summed = [
        # copies count as channels
        sum_turned(frames[ir.l], part.reshape((*z.shape[:2], ir.dim, -1)))
        for ir, part in zip(run.copies, parts, strict=True)
    ]
    rows = [part.reshape((z.shape[0], -1, z.shape[3])) for part in summed]
    return jnp.concatenate(rows, axis=1)


@cache
def _terms(product: ClebschGordan, n: int) -> Sparse:
    """(weight, row of x, row of the output, coefficient) of run n in the frame of the edge."""
    run, left, right = product.runs[n], list(product.irreps_left), list(product.irreps_right)
    sizes = [ir.dim for _, ir in left]
    terms: list[tuple[int | float, ...]] = []
    for weight, (number, (row, step)) in enumerate(zip(run.paths, run.places, strict=True)):
        path = product.paths[number]
        l1, l2, l3 = left[path.left].ir.l, right[path.right].ir.l, path.out.l
        scale = product.normalisation(path) / np.sqrt(path.out.dim)
        numbers, start = polar_coefficients(l1, l2, l3) * scale, sum(sizes[run.start : path.left])
        odd = (l1 + l2 + l3) % 2
        for m in range(-min(l1, l3), min(l1, l3) + 1):
            c = float(numbers[abs(m)]) * (-1 if odd and m < 0 else 1)
            if c != 0:
                z = row + (l3 + (-m if odd else m)) * step
                terms.append((weight, start + l1 + m, z, c))
    return Sparse(tuple(terms), (len(run.paths), sum(sizes[run.start : run.end]), run.rows))


def _check(product: ClebschGordan) -> None:
    check_direction(product.irreps_right)
    if product.mode == "uvw":
        raise ValueError("method so2 works channel by channel; to mix them there is product so2")
    for mul, ir in product.irreps_right:
        if mul != 1 or ir.p != (-1) ** ir.l:
            raise ValueError(
                "method so2 needs y to be harmonics of the edges, one channel each; "
                f"{product.irreps_right} are not: rows and dense take any"
            )
