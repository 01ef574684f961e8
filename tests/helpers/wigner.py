"""Wigner 3j and 6j symbols by Racah's formulas, integer or half-integer, independent of e3nn."""

from __future__ import annotations

from itertools import product
from math import factorial, sqrt


def _f(x: float) -> int:
    assert abs(x - round(x)) < 1e-9
    return factorial(round(x))


def _triangle(a: float, b: float, c: float) -> float:
    return sqrt(_f(a + b - c) * _f(a - b + c) * _f(-a + b + c) / _f(a + b + c + 1))


def _sign(x: float) -> int:
    return -1 if round(x) % 2 else 1


def three_j(a: float, b: float, c: float, p: float, q: float, r: float) -> float:
    """The symbol (a b c; p q r)."""
    if p + q + r or not abs(a - b) <= c <= a + b or abs(p) > a or abs(q) > b or abs(r) > c:
        return 0.0
    total = 0.0
    for k in range(round(a + b - c) + 1):
        parts = (k, a + b - c - k, a - p - k, b + q - k, c - b + p + k, c - a - q + k)
        if min(parts) > -0.5:
            below = 1
            for part in parts:
                below *= _f(part)
            total += (-1) ** k / below
    scale = 1
    for j, m in ((a, p), (b, q), (c, r)):
        scale *= _f(j + m) * _f(j - m)
    return _sign(a - b - r) * _triangle(a, b, c) * sqrt(scale) * total


def six_j(a: float, b: float, c: float, d: float, e: float, f: float) -> float:
    """The symbol {a b c; d e f}, by its definition as a sum over products of four 3j symbols."""
    triads = ((a, b, c), (a, e, f), (d, b, f), (d, e, c))
    if any(not abs(x - y) <= z <= x + y for x, y, z in triads):
        return 0.0
    components = [[-j + n for n in range(round(2 * j) + 1)] for j in (d, e, f)]
    total = 0.0
    for s, t, u in product(*components):
        p, q, r = t - u, u - s, s - t
        total += (
            _sign(d + e + f - s - t - u)
            * three_j(a, b, c, p, q, r)
            * three_j(a, e, f, p, -t, u)
            * three_j(d, b, f, s, q, -u)
            * three_j(d, e, c, -s, t, r)
        )
    return total
