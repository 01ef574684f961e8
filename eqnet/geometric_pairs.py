"""Pairs of different structures that some networks cannot tell apart, as points and edges.

Both structures of a pair have the same edges with the same lengths; they are not congruent, even if
mirror images count as equal. Lengths are scaled so that the longest edge is 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Edges = tuple[tuple[int, int], ...]


class Pair(NamedTuple):
    """Two structures with common edges, undirected.

    Attributes:
        needs: what a network must have to tell them apart.
        first: [n, 3].
        second: [n, 3].
        edges: pairs of points.
    """

    needs: str
    first: np.ndarray
    second: np.ndarray
    edges: Edges


def _pair(needs: str, first: list, second: list, edges: Edges) -> Pair:
    a, b = (np.asarray(points, float) for points in (first, second))
    longest = max(np.linalg.norm(a[i] - a[j]) for i, j in edges)
    return Pair(needs, a / longest, b / longest, edges)


def _path(n: int) -> Edges:
    return tuple((i, i + 1) for i in range(n - 1))


def _star(n: int) -> Edges:
    return tuple((0, i) for i in range(1, n))


def chain(k: int) -> Pair:
    """A line of k points and two ends that point to opposite sides or to the same (k-chains).

    Schuett et al. 2021, arXiv:2102.03150; Joshi et al., ICML 2023, arXiv:2301.09308, section 5.
    """
    line = [[0, 5 * n, 0] for n in range(k)]
    last = [4, 5 * (k - 1) + 3, 0]
    first, second = ([[x, -3, 0], *line, last] for x in (-4, 4))
    return _pair(f"vectors and at least {k // 2 + 1} layers", first, second, _path(k + 2))


def rosettes(fold: int) -> Pair:
    """Two rings of `fold` points about the ends of an axis, eclipsed or staggered.

    A tensor with the symmetry of a ring has components m = 0, +-fold, ... about the axis, so that
    degrees below `fold` do not know how it is turned (Joshi et al., section 5). An
    invariant of the pair needs such a tensor of both ends.
    """

    def ring(height: float, turn: float) -> list:
        angles = 2 * np.pi * (np.arange(fold) + turn) / fold
        return [[np.cos(a), np.sin(a), height] for a in angles]

    axis = [[0, 0, 0], [0, 0, 1]]
    first, second = ([*axis, *ring(-0.5, 0), *ring(1.5, turn)] for turn in (0, 0.5))
    edges = ((0, 1), *((end, 2 + end * fold + n) for end in (0, 1) for n in range(fold)))
    return _pair(f"degree {fold}", first, second, edges)


def two_body() -> Pair:
    """Two neighbours at the same distance, at an angle or opposite (Joshi et al., section 5)."""
    first, second = ([[0, 0, 0], [5, 0, 0], p] for p in ([3, 0, 4], [-5, 0, 0]))
    return _pair("angles: 3-body terms", first, second, _star(3))


def three_body() -> Pair:
    """Four neighbours with the same distances and angles (Pozdnyakov et al. 2020, figure 1b).

    Phys. Rev. Lett. 125, 166001, arXiv:2001.11696.
    """
    common = [[0, 0, 0], [5, 0, 5], [5, 5, 5], [-5, -5, 5]]
    first, second = ([*common, [0, y, 5]] for y in (5, -5))
    return _pair("4-body terms", first, second, _star(5))


def four_body() -> Pair:
    """Seven neighbours with the same triangles and tetrahedra about the centre (figure 2f).

    Two triangles, one above the other, turned against each other, and a point above or below. The
    triangle has no symmetry: with an isosceles one both structures are the same, turned.
    """
    triangle = np.array([[3, 2, -4], [0, 2, 5], [-4, 2, -3]])
    c, s = np.cos(np.pi / 5), np.sin(np.pi / 5)
    other = triangle * [1, -1, 1] @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    first, second = ([[0, 0, 0], *triangle, *other, [0, y, 0]] for y in (5, -5))
    return _pair("5-body terms", first, second, _star(8))


def bent_end() -> Pair:
    """A planar chain whose last bond is turned about the point before (Sverdlov & Dym, pair A)."""
    common = [[0, 0, 0], [1, 0.3, 0], [1.8, -0.4, 0], [2.7, 0, 0]]
    first, second = ([*common, [2.7 + x, y, 0]] for x, y in ((0.6, 0.8), (-0.8, 0.6)))
    return _pair("angles: vectors", first, second, _path(5))


def cis_and_trans() -> Pair:
    """A planar chain whose last point is mirrored at the bond before (Sverdlov & Dym, pair B)."""
    common = [[0, 0, 0], [1, 0.5, 0], [2, 0, 0], [3, 0, 0]]
    first, second = ([*common, [3.9, y, 0]] for y in (0.3, -0.3))
    return _pair("vectors and 2 layers", first, second, _path(5))


def six_points() -> Pair:
    """Six points, all connected, whose distances agree point by point (Sverdlov & Dym, 'hard')."""
    half = [[2.0395, 6.277, 0], [3.3, 0, -4.4]]
    first, second = (
        [[sign * x for x in p] for p in ([0, 1.1, z], *half) for sign in (1, -1)]
        for z in (2.2, -2.2)
    )
    every = tuple((i, j) for i in range(6) for j in range(i))
    return _pair("more than distances", first, second, every)


PAIRS: dict[str, Callable[[], Pair]] = {
    "2-body": two_body,
    "3-body": three_body,
    "4-body": four_body,
    "2-fold": lambda: rosettes(2),
    "3-fold": lambda: rosettes(3),
    "4-fold": lambda: rosettes(4),
    "bent end": bent_end,
    "cis/trans": cis_and_trans,
    "six points": six_points,
    "4-chain": lambda: chain(4),
    "12-chain": lambda: chain(12),
}
