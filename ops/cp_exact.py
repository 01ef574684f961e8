"""CP decompositions in closed form of equivariant tensors, for the degrees 0 .. L on all sides.

They are exact and have other path weights than the stacked Clebsch-Gordan tensor: each block is
g(l1, l2, l3) C with the g below and C of unit norm. No fit is needed, but their ranks are larger
than the smallest possible ones.
"""

from __future__ import annotations

import numpy as np

from eqnet.ops.cp_fit import Factors
from eqnet.ops.sphere import Grid, gradients, harmonics, sphere_grid
from eqnet.so3 import clebsch_gordan


def quadrature(l_max: int, grid: Grid | None = None) -> Factors:
    """All even paths: integral of Y_i Y_j Y_k over the sphere, one term per point.

    g = sqrt((2 l1 + 1)(2 l2 + 1)(2 l3 + 1) / 4 pi) 3j(l1 l2 l3; 0 0 0), the Gaunt product.

    Args:
        l_max: L.
        grid: a quadrature exact to degree 3 L; Gauss-Legendre x uniform if not given.
    """
    grid = sphere_grid(3 * l_max) if grid is None else grid
    values = np.concatenate([harmonics(l, grid) for l in range(l_max + 1)], axis=1).T
    return Factors(values * grid.weights, values, values)


def bracket(l_max: int, grid: Grid | None = None) -> Factors:
    """All odd paths: integral of Y_i n.(grad Y_j x grad Y_k), two terms per point.

    |g| = sqrt((2 l1 + 1)(2 l2 + 1)(2 l3 + 1) / 4 pi) sqrt(l2 (l2 + 1) l3 (l3 + 1))
    |3j(l1 l2 l3; 0 1 -1)|.

    Args:
        l_max: L, at least 1.
        grid: a quadrature exact to degree 3 L - 1 without points on the polar axis;
            Gauss-Legendre x uniform if not given.
    """
    grid = sphere_grid(3 * l_max - 1) if grid is None else grid
    degrees = range(l_max + 1)
    values = np.concatenate([harmonics(l, grid) for l in degrees], axis=1).T * grid.weights
    first, second = np.concatenate([gradients(l, grid) for l in degrees], axis=2).swapaxes(1, 2)
    return Factors(
        np.concatenate([values, -values], axis=1),
        np.concatenate([first, second], axis=1),
        np.concatenate([second, first], axis=1),
    )


def matrix_algebra(l_max: int) -> Factors:
    """All paths but a few: Tr(T_i T_j T_k) with the operators T on a spin L / 2, rank (L + 1)^3.

    The factors are complex: the real part of the tensor holds the even paths, the imaginary part
    the odd ones, and |g| = |{l1 l2 l3; L/2 L/2 L/2}|, a 6j symbol. For even L this is the tensor of
    the matrix product, up to signs.
    """
    operators = spin_operators(l_max)
    size = l_max + 1
    a, b, c = np.unravel_index(np.arange(size**3), (size, size, size))
    return Factors(operators[:, a, b], operators[:, b, c], operators[:, c, a])


def spin_operators(l_max: int) -> np.ndarray:
    """Orthonormal Hermitian operators of degrees 0 .. L on a spin L / 2, [d, L + 1, L + 1].

    Degree 1 is the spin (J_x, J_y, J_z); degree l the stretched product of degrees 1 and l - 1,
    in which the order of the factors does not count.
    """
    size = l_max + 1
    m = np.arange(size) - l_max / 2
    raising = np.diag(np.sqrt((l_max / 2 - m[:-1]) * (l_max / 2 + m[:-1] + 1)), -1)
    spin = [(raising + raising.T) / 2, (raising - raising.T) / 2j, np.diag(m)]
    operators = [np.eye(size, dtype=complex)[None]]
    for l in range(1, l_max + 1):
        table = clebsch_gordan(1, l - 1, l)
        operators.append(np.einsum("abm,apq,bqr->mpr", table, np.array(spin), operators[-1]))
    unit = [op / np.sqrt(np.einsum("mpq,mpq->", op, op.conj()).real / len(op)) for op in operators]
    return np.concatenate(unit)
