"""Work on a few rows at a time.

What a step makes then stays in a core's cache, and it is made again in the backward pass, so that
memory does not grow with the number of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from eqnet.ops.apart import platform

T = TypeVar("T")

# Bytes of one intermediate array at a time. On a core with 1 MB of second-level cache (Gaunt
# products of 64 channels, L = 2 .. 6) 0.1 to 0.3 MB is best, and without blocks it takes up to 3
# times as long. On other devices many small steps would cost more.
BLOCK_BYTES = {"cpu": 2**18}
OTHER_BLOCK_BYTES = 2**27


def in_blocks(function: Callable[..., T], operands: tuple, row_bytes: int) -> T:
    """`function(*operands)`, computed a few rows at a time.

    Args:
        function: from arrays with leading rows to arrays with leading rows, row by row.
        operands: pytrees of arrays [rows, ...].
        row_bytes: bytes of the largest intermediate array per row.
    """
    rows = jax.tree.leaves(operands)[0].shape[0]
    budget = BLOCK_BYTES.get(platform(), OTHER_BLOCK_BYTES)
    size = max(budget // row_bytes, 1)
    if size >= rows:
        return function(*operands)
    # a divisor of the number of rows, if there is one near, saves the copies of padding
    divisors = [n for n in range(size // 2 + 1, 2 * size) if rows % n == 0]
    size = min(divisors, key=lambda n: abs(n - size), default=-(-rows // -(-rows // size)))
    padding = -rows % size

    def cut(v: jax.Array) -> jax.Array:
        v = jnp.pad(v, [(0, padding)] + [(0, 0)] * (v.ndim - 1)) if padding else v
        return v.reshape((-1, size, *v.shape[1:]))

    values = step_by_step(lambda some: function(*some), jax.tree.map(cut, operands))
    return jax.tree.map(lambda v: v.reshape((-1, *v.shape[2:]))[:rows], values)


def step_by_step(function: Callable[..., T], blocks: Any) -> T:
    """`function` of each block [n, ...] -> [n, ...]; nothing but its operands is kept."""
    # the loop already keeps the forward and the backward pass apart
    return jax.lax.map(jax.checkpoint(function, prevent_cse=False), blocks)
