"""Work on a few rows at a time.

What a step makes then stays in a core's cache, and it is made again in the backward pass, so that
memory does not grow with the number of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

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
    budget = BLOCK_BYTES.get(jax.default_backend(), OTHER_BLOCK_BYTES)
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

    # the loop already keeps the forward and the backward pass apart
    step = jax.checkpoint(lambda some: function(*some), prevent_cse=False)
    values = jax.lax.map(step, jax.tree.map(cut, operands))
    return jax.tree.map(lambda v: v.reshape((-1, *v.shape[2:]))[:rows], values)
