"""Functions on the unit sphere: exact quadrature, spherical harmonics, surface gradients.

Points are given by the polar angle from +y and the azimuth from z to x, so that
r = (sin a sin p, cos a, sin a cos p) for polar angle a and azimuth p. Everything is float64 numpy.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np


class Grid(NamedTuple):
    """Points with quadrature weights, whose sum is the area 4 pi.

    Attributes:
        polar: [P] angle from +y.
        azimuth: [P] angle from z to x.
        weights: [P].
    """

    polar: np.ndarray
    azimuth: np.ndarray
    weights: np.ndarray

    @property
    def points(self) -> np.ndarray:
        """Unit vectors (x, y, z), [P, 3]."""
        sine = np.sin(self.polar)
        return np.stack(
            [sine * np.sin(self.azimuth), np.cos(self.polar), sine * np.cos(self.azimuth)], axis=-1
        )


@cache
def sphere_grid(degree: int, latitudes: int | None = None, azimuths: int | None = None) -> Grid:
    """The Gauss-Legendre x uniform grid that integrates polynomials up to `degree` exactly.

    n latitudes are exact to degree 2 n - 1 in y and n azimuths to n - 1 in m, so that
    ceil((degree + 1) / 2) and degree + 1 are enough and one less of either is not.

    Args:
        degree: highest degree of the integrand.
        latitudes: number of latitudes instead of the exact one.
        azimuths: number of azimuths instead of the exact one.
    """
    nodes, weights = np.polynomial.legendre.leggauss(latitudes or degree // 2 + 1)
    around = azimuths or degree + 1
    azimuth = 2 * np.pi / around * np.arange(around)
    polar = np.repeat(np.arccos(nodes), around)
    return Grid(
        polar, np.tile(azimuth, len(nodes)), np.repeat(weights * 2 * np.pi / around, around)
    )


@cache
def half_grid(degree: int, latitudes: int | None = None, azimuths: int | None = None) -> Grid:
    """Half a grid, exact for polynomials of even degree up to `degree`: f(-r) = f(r).

    The southern latitudes repeat the northern ones, seen from the antipodes. On the equator of an
    odd number of latitudes f has period pi, and half of the azimuths are enough.

    Args: as `sphere_grid`.
    """
    even = 2 * (degree // 2)
    nodes, weights = np.polynomial.legendre.leggauss(latitudes or even // 2 + 1)
    around = azimuths or even + 1
    north = nodes > 1e-9
    polar = [np.repeat(np.arccos(nodes[north]), around)]
    azimuth = [np.tile(2 * np.pi / around * np.arange(around), north.sum())]
    parts = [np.repeat(weights[north] * 4 * np.pi / around, around)]
    if len(nodes) % 2:
        around = around // 2 + 1 if azimuths is None else -(-around // 2)
        polar.append(np.full(around, np.pi / 2))
        azimuth.append(np.pi / around * np.arange(around))
        parts.append(np.full(around, weights[len(nodes) // 2] * 2 * np.pi / around))
    return Grid(np.concatenate(polar), np.concatenate(azimuth), np.concatenate(parts))


def legendre(l: int, polar: np.ndarray) -> np.ndarray:
    """Normalised associated Legendre functions N_lm P_lm(cos a) for m = 0 .. l, [l + 1, P].

    Without the phase (-1)^m, and such that Y_l0 = [0] and Y_l,+-m = sqrt(2) [m] {cos, sin}(m p)
    are orthonormal. As trigonometric polynomials they are right for polar angles beyond pi, too.
    """
    cosine, sine = np.cos(polar), np.sin(polar)
    rows = []
    for m in range(l + 1):
        # sectoral: sqrt((2m+1)!! / (2m)!! / 4 pi) sin^m, then upwards in degree at fixed m
        factors = [np.sqrt((2 * k + 1) / (2 * k)) for k in range(1, m + 1)]
        current = np.prod(factors) / np.sqrt(4 * np.pi) * sine**m
        previous = np.zeros_like(current)
        for n in range(m + 1, l + 1):
            a = np.sqrt((4 * n**2 - 1) / (n**2 - m**2))
            b = np.sqrt(((n - 1) ** 2 - m**2) / (4 * (n - 1) ** 2 - 1))
            current, previous = a * (cosine * current - b * previous), current
        rows.append(current)
    return np.stack(rows)


def harmonics(l: int, grid: Grid) -> np.ndarray:
    """Orthonormal real spherical harmonics of degree l at the points, [P, 2 l + 1].

    Component-normalised ones are sqrt(4 pi) larger. m = -l .. l, the sines at negative m.
    """
    return _trigonometric(legendre(l, grid.polar), l, grid.azimuth)[0]


def gradients(l: int, grid: Grid) -> np.ndarray:
    """Surface gradients of `harmonics` in the frame (e_polar, e_azimuth), [2, P, 2 l + 1].

    The frame is oriented: r . (e_polar x e_azimuth) = 1. Not for points on the polar axis.

    d P_lm / da = (l cos a P_lm - sqrt((2l+1)/(2l-1) (l^2 - m^2)) P_{l-1,m}) / sin a.
    """
    cosine, sine = np.cos(grid.polar), np.sin(grid.polar)
    upper = legendre(l, grid.polar)
    lower = np.zeros_like(upper)
    if l:
        lower[:l] = legendre(l - 1, grid.polar)
    m = np.arange(l + 1)[:, None]
    factor = np.sqrt((2 * l + 1) / max(2 * l - 1, 1) * (l**2 - m**2))
    polar = (l * cosine * upper - factor * lower) / sine
    values = _trigonometric(polar, l, grid.azimuth)[0]
    return np.stack([values, _trigonometric(upper, l, grid.azimuth)[1] / sine[:, None]])


def _trigonometric(rows: np.ndarray, l: int, azimuth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Functions of the polar angle [l + 1, P] times {sin, 1, cos}, and d/d azimuth of that."""
    value = np.empty((len(azimuth), 2 * l + 1))
    slope = np.zeros_like(value)
    value[:, l] = rows[0]
    for m in range(1, l + 1):
        part = np.sqrt(2) * rows[m]
        sine, cosine = np.sin(m * azimuth), np.cos(m * azimuth)
        value[:, l - m], value[:, l + m] = part * sine, part * cosine
        slope[:, l - m], slope[:, l + m] = part * m * cosine, -part * m * sine
    return value, slope
