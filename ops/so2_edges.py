"""The SO(2) product on edges: turn, one matrix product per order |m|, turn back, sum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from eqnet.irreps import IrrepsArray
from eqnet.ops.edge_frame import rotations, sum_turned
from eqnet.ops.small_matrices import turn
from eqnet.ops.so2_orders import Order, mix

if TYPE_CHECKING:
    from eqnet.ops.so2 import SO2


def components(z: jax.Array, m: int, natural: bool) -> jax.Array:
    """The complex number x[+m] + i x[-m] of each channel, times i if the irrep is not natural.

    Args:
        z: [edges, 2 l + 1, C] in the frame of the edge.
        m: order.
        natural: p = (-1)^l.

    Returns:
        [edges, 2, C], real and imaginary part; for m = 0 the one that is not zero, [edges, 1, C].
    """
    centre = z.shape[1] // 2
    plus, minus = z[:, centre + m], z[:, centre - m]
    if m == 0:
        return plus[:, None]
    return jnp.stack([plus, minus] if natural else [-minus, plus], axis=1)


def so2(
    product: SO2,
    x: IrrepsArray,
    y: IrrepsArray,
    weights: jax.Array,
    shared: jax.Array | None = None,
) -> IrrepsArray:
    """X [r, k, irreps_left], y [r, k, irreps_right], shared weights -> [r, irreps_out].

    Raises:
        ValueError: no shared weights.
    """
    if shared is None:
        raise ValueError("the SO(2) product needs its shared matrices: pass `shared`")
    num_rows, width = weights.shape[:2]
    degrees = [ir.l for _, ir in product.irreps_left + product.irreps_out]
    frames = rotations(max(degrees), y)
    turned = [
        turn(frames[ir.l], block.reshape((-1, ir.dim, mul))) if ir.l else block.reshape(-1, 1, mul)
        for (mul, ir), block in zip(product.irreps_left, x.blocks, strict=True)
    ]
    weights = weights.reshape((num_rows * width, -1))
    rows: list[dict[int, jax.Array]] = [{} for _ in product.irreps_out]
    parts = zip(
        product.orders,
        product.split_weights(weights),
        product.split_shared(shared),
        strict=True,
    )
    for order, edge, matrices in parts:
        z = jnp.concatenate(
            [
                components(turned[n], order.m, product.is_natural(product.left[n].ir))
                for n in order.inputs
            ],
            axis=-1,
        )
        _distribute(product, order, mix(z * edge[:, None], matrices), rows)
    out = []
    for (mul, ir), found in zip(product.irreps_out, rows, strict=True):
        orders = sorted(found)
        z = jnp.stack([found[m] for m in orders], axis=1)
        frame = frames[ir.l][:, [ir.l + m for m in orders]]
        out.append(sum_turned(frame, z.reshape((num_rows, width, len(orders), mul))))
    return IrrepsArray.from_blocks(product.irreps_out, out)


def _distribute(
    product: SO2, order: Order, mixed: jax.Array, rows: list[dict[int, jax.Array]]
) -> None:
    """Undo `components`: put x[+m] and x[-m] of every output irrep of an order into its rows."""
    sizes = [product.out[n].mul for n in order.outputs]
    for n, part in zip(order.outputs, jax.lax.split(mixed, sizes, axis=2), strict=True):
        if order.m == 0:
            rows[n][0] = part[:, 0]
        elif product.is_natural(product.out[n].ir):
            rows[n][order.m], rows[n][-order.m] = part[:, 0], part[:, 1]
        else:
            rows[n][order.m], rows[n][-order.m] = part[:, 1], -part[:, 0]
