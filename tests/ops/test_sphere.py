"""Quadrature, harmonics and gradients on the sphere, and the edge of exactness."""

from __future__ import annotations

from collections.abc import Callable

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqnet.irreps import spherical_irreps
from eqnet.ops.sphere import Grid, gradients, half_grid, harmonics, sphere_grid
from eqnet.so3 import spherical_harmonics

pytestmark = pytest.mark.usefixtures("x64")


def quadrature_error(grid: Grid, degrees: range) -> float:
    """Largest error of integrals of polynomials of these degrees.

    Re (z + i x)^m y^(l - m) has the integral 4 pi / (l + 1) for m = 0 and l even, otherwise 0; the
    Legendre polynomial of y has 0.
    """
    x, y, z = grid.points.T
    errors = []
    for l in degrees:
        for m in range(l + 1):
            exact = 4 * np.pi / (l + 1) if m == 0 and l % 2 == 0 else 0.0
            errors.append(abs(grid.weights @ (((z + 1j * x) ** m).real * y ** (l - m)) - exact))
        exact = 4 * np.pi if l == 0 else 0.0
        errors.append(abs(grid.weights @ np.polynomial.legendre.Legendre.basis(l)(y) - exact))
    return max(errors)


def test_harmonics_against_e3nn() -> None:
    grid = sphere_grid(5)
    theirs = e3nn.spherical_harmonics(
        spherical_irreps(6), jnp.asarray(grid.points), True, "integral"
    ).array
    ours = np.concatenate([harmonics(l, grid) for l in range(7)], axis=1)
    np.testing.assert_allclose(ours, theirs, atol=1e-13)


def test_gradients_against_automatic_differentiation() -> None:
    """Derivatives of other harmonics, polynomials in x, y, z, along a right-handed frame."""
    grid = sphere_grid(4)
    points, l_max = grid.points, 6
    east = np.cross([0.0, 1.0, 0.0], points)
    east /= np.linalg.norm(east, axis=1, keepdims=True)
    frame = np.stack([np.cross(east, points), east])  # from the pole, and around it
    np.testing.assert_allclose(np.cross(frame[0], frame[1]), points, atol=1e-12)

    def values(unit: jax.Array) -> list[jax.Array]:
        return [h / np.sqrt(4 * np.pi) for h in spherical_harmonics(l_max, unit)]

    for direction, tangent in enumerate(frame):
        _, slopes = jax.jvp(jax.jit(values), (jnp.asarray(points),), (jnp.asarray(tangent),))
        for l, slope in enumerate(slopes):
            np.testing.assert_allclose(gradients(l, grid)[direction], slope, atol=1e-12)


@pytest.mark.parametrize("degree", [1, 2, 3, 6, 9, 12])
@pytest.mark.parametrize(("make", "step"), [(sphere_grid, 1), (half_grid, 2)])
def test_grids_are_exact_and_not_larger(degree: int, make: Callable[..., Grid], step: int) -> None:
    """Exact up to the degree (half a grid for even ones), not with a latitude or azimuth less."""
    degrees = range(0, degree + 1, step)
    latitudes, azimuths = degrees[-1] // 2 + 1, degrees[-1] + 1
    assert quadrature_error(make(degree), degrees) < 1e-12
    assert len(make(degree, latitudes, azimuths).weights) == len(make(degree).weights)
    if azimuths > 1:
        assert quadrature_error(make(degree, latitudes, azimuths - 1), degrees) > 1e-3
    if latitudes > 1:
        assert quadrature_error(make(degree, latitudes - 1, azimuths), degrees) > 1e-3


def test_sizes_of_the_grids() -> None:
    """For products with l <= 1 .. 6 everywhere: half a grid is half as large, or smaller."""
    assert [len(sphere_grid(3 * l).weights) for l in range(1, 7)] == [8, 28, 50, 91, 128, 190]
    assert [len(half_grid(3 * l).weights) for l in range(1, 7)] == [3, 14, 23, 46, 60, 95]
