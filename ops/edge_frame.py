"""Features in the frame of their edge, where the harmonics of the edge have m = 0 alone.

Turned so that the edge lies along the polar axis, a Clebsch-Gordan path (l1, l2 -> l3) with Y(n)
takes m to m (l1 + l2 + l3 even) or m to -m (odd), with one number s c[m] for each |m| (Passaro and
Zitnick 2023). The frame is fixed up to a roll about the edge, which such maps commute with.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from eqnet.irreps import Irrep, Irreps, IrrepsArray
from eqnet.ops.small_matrices import turn
from eqnet.so3 import HIGHEST, clebsch_gordan, edge_frame, wigner_d

# Rows of a matrix that turns several irreps at once: fewer, larger products are faster on a CPU,
# until the zeros between the irreps cost more (64 channels: flat between 9 and 25).
LARGEST_MATRIX = 16


@cache
def polar_coefficients(l1: int, l2: int, l3: int) -> np.ndarray:
    """The numbers s c[m] of a path for m = 0 .. min(l1, l3), float64; component normalisation.

    s = sqrt((2 l2 + 1) (2 l3 + 1)); c[m] = C[m, 0, m] if l1 + l2 + l3 is even (the entry for -m is
    the same), C[m, 0, -m] if it is odd (input +m to output -m; the other one has the other sign).
    """
    table = np.sqrt((2 * l2 + 1) * (2 * l3 + 1)) * clebsch_gordan(l1, l2, l3)[:, l2, :]
    m = np.arange(min(l1, l3) + 1)
    return table[l1 + m, l3 + m] if (l1 + l2 + l3) % 2 == 0 else table[l1 + m, l3 - m]


def check_direction(irreps_right: Irreps) -> None:
    """Refuse a second operand that does not tell the direction of the edge.

    Raises:
        ValueError: not exactly one 1o.
    """
    number = sum(mul for mul, ir in irreps_right if ir == Irrep(1, -1))
    if number != 1:
        raise ValueError(
            f"the frame of an edge needs its direction: one 1o among {irreps_right}, not {number}"
        )


def direction(y: IrrepsArray) -> jax.Array:
    """Unit vectors [..., 3] of component-normalised harmonics, or y where there are zeros."""
    places = [ir for _, ir in y.irreps]
    vector = y.blocks[places.index(Irrep(1, -1))][..., 0]
    unit = vector / np.sqrt(3).astype(vector.dtype)
    # rows that only fill up a block of the convolution hold zeros
    is_edge = jnp.any(vector != 0, axis=-1, keepdims=True)
    return jnp.where(is_edge, unit, jnp.asarray([0.0, 1.0, 0.0], unit.dtype))


def rotations(l_max: int, y: IrrepsArray) -> list[jax.Array]:
    """For each l <= l_max the matrices [edges, 2 l + 1, 2 l + 1] into the frame of each edge."""
    return wigner_d(l_max, edge_frame(direction(y).reshape((-1, 3))))


def into_frame(matrices: list[jax.Array], degrees: Sequence[int], x: jax.Array) -> jax.Array:
    """Turn features of several degrees with one number of channels.

    Args:
        matrices: as from `rotations`.
        degrees: l of the features, one after the other along axis 1 of `x`.
        x: [edges, sum of 2 l + 1, C].

    Returns:
        Of the shape of `x`.
    """
    groups = _groups(degrees)
    parts = jax.lax.split(x, [sum(2 * l + 1 for l in group) for group in groups], axis=1)
    turned = [
        turn(_block_diagonal([matrices[l] for l in group]), part)
        for group, part in zip(groups, parts, strict=True)
    ]
    return jnp.concatenate(turned, axis=1) if len(turned) > 1 else turned[0]


def sum_back(matrices: list[jax.Array], degrees: Sequence[int], z: jax.Array) -> jax.Array:
    """Turn messages of several degrees out of the frames of their edges and sum the neighbours.

    Args:
        matrices: as from `rotations`, for r k edges.
        degrees: l of the messages, one after the other along axis 2 of `z`.
        z: [r, k, sum of 2 l + 1, C].

    Returns:
        [r, sum of 2 l + 1, C].
    """
    groups = _groups(degrees)
    parts = jax.lax.split(z, [sum(2 * l + 1 for l in group) for group in groups], axis=2)
    summed = [
        sum_turned(_block_diagonal([matrices[l] for l in group]), part)
        for group, part in zip(groups, parts, strict=True)
    ]
    return jnp.concatenate(summed, axis=1) if len(summed) > 1 else summed[0]


def sum_turned(matrices: jax.Array, z: jax.Array) -> jax.Array:
    """Transposed matrices [r k, i, o] times [r, k, i, C], summed over neighbours k: [r, o, C]."""
    num_rows, width, size, channels = z.shape
    return jnp.einsum(
        "rqo,rqc->roc",
        matrices.reshape((num_rows, width * size, -1)),
        z.reshape((num_rows, width * size, channels)),
        precision=HIGHEST,
    )


def _groups(degrees: Sequence[int]) -> list[list[int]]:
    """Consecutive degrees whose matrices fit into one of the largest size."""
    groups: list[list[int]] = []
    for l in degrees:
        rows = sum(2 * other + 1 for other in groups[-1]) if groups else 0
        if not groups or rows + 2 * l + 1 > LARGEST_MATRIX:
            groups.append([])
        groups[-1].append(l)
    return groups


def _block_diagonal(matrices: list[jax.Array]) -> jax.Array:
    """[N, a, a], [N, b, b], ... -> [N, a + b + ..., a + b + ...]."""
    if len(matrices) == 1:
        return matrices[0]
    total, start, rows = sum(m.shape[-1] for m in matrices), 0, []
    for matrix in matrices:
        end = start + matrix.shape[-1]
        rows.append(jnp.pad(matrix, [(0, 0), (0, 0), (start, total - end)]))
        start = end
    return jnp.concatenate(rows, axis=1)
