"""Which irreps meet at each order |m| in the frame of an edge, and what parity lets them mix.

A roll about the edge multiplies x[+m] + i x[-m] by a phase: maps that commute with it are one
complex matrix W1 + i W2 for each |m|, real at m = 0. A mirror that contains the edge is complex
conjugation once irreps of the other parity, p = -(-1)^l, are multiplied by i: then the matrix is
real for m > 0 too, and at m = 0 it leaves the two parities apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from eqnet.irreps import Irrep
from eqnet.so3 import HIGHEST

Group = Literal["O3", "SO3"]


class Order(NamedTuple):
    """The matrix product of one |m|.

    Attributes:
        m: |m|.
        inputs: numbers of the irreps that go in.
        outputs: numbers of the irreps that come out.
        matrices: 1, or 2 where each pair of irreps has both W1 and W2.
    """

    m: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    matrices: int


def check_group(group: str) -> None:
    """Refuse a word that is no group.

    Raises:
        ValueError: naming those there are.
    """
    if group not in ("O3", "SO3"):
        raise ValueError(f"the group is 'O3' or 'SO3', not {group!r}")


def is_natural(irrep: Irrep, group: Group) -> bool:
    """Whether m = 0 keeps its sign in mirrors that contain the edge; 'SO3' has no mirrors."""
    return group == "SO3" or irrep.p == (-1) ** irrep.l


def meetings(
    left: Sequence[Irrep], out: Sequence[Irrep], m_max: int | None, group: Group
) -> tuple[Order, ...]:
    """The matrix products by |m| <= m_max; at m = 0 natural irreps before the others.

    Raises:
        ValueError: no such group or order.
    """
    check_group(group)
    if m_max is not None and m_max < 0:
        raise ValueError(f"m_max is the highest |m| to keep, 0 or more, not {m_max}")
    found = []
    for natural in (True, False):
        same = [
            tuple(n for n, ir in enumerate(irreps) if is_natural(ir, group) == natural)
            for irreps in (left, out)
        ]
        found.append(Order(0, same[0], same[1], 1))
    highest = max(ir.l for ir in (*left, *out))
    for m in range(1, highest + 1 if m_max is None else min(m_max, highest) + 1):
        high = [tuple(n for n, ir in enumerate(irreps) if ir.l >= m) for irreps in (left, out)]
        found.append(Order(m, high[0], high[1], 2 if group == "SO3" else 1))
    return tuple(order for order in found if order.inputs and order.outputs)


def mix(z: jax.Array, matrices: jax.Array) -> jax.Array:
    """[edges, 1 or 2, inputs] times real W1, or complex W1 + i W2: [edges, 1 or 2, outputs]."""
    if matrices.shape[0] == 1:
        return jnp.einsum("nsi,io->nso", z, matrices[0], precision=HIGHEST)
    # as one real matrix, which leaves nothing to add up afterwards
    cosine, sine = matrices
    rows = jnp.concatenate([cosine, sine], axis=1), jnp.concatenate([-sine, cosine], axis=1)
    z = jnp.dot(z.reshape((len(z), -1)), jnp.concatenate(rows), precision=HIGHEST)
    return z.reshape((len(z), 2, -1))
