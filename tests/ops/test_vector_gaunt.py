"""The vector-signal product: 9j symbols, its couplings, the bracket inside it, exactness."""

from __future__ import annotations

from itertools import product as choices

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from product_checks import (
    assert_close,
    derivatives,
    edges,
    equivariance_residual,
    random_array,
)
from wigner import six_j, three_j

from eqnet.irreps import Irreps, IrrepsArray, spherical_irreps
from eqnet.ops.gaunt_bracket import GauntBracket
from eqnet.ops.vector_gaunt import VectorGaunt, tables, vector_coefficient

pytestmark = pytest.mark.usefixtures("x64")


def nine_j(rows: tuple[tuple[int, int, int], ...]) -> float:
    """The symbol of three rows, as a sum over products of three 6j symbols."""
    (a, b, c), (d, e, f), (g, h, i) = rows
    return sum(
        (2 * x + 1) * six_j(a, b, c, f, i, x) * six_j(d, e, f, b, x, h) * six_j(g, h, i, x, a, d)
        for x in range(max(abs(a - i), abs(d - h), abs(b - f)), min(a + i, d + h, b + f) + 1)
    )


def triples(j_max: int) -> list[tuple[int, int, int]]:
    return [
        (a, b, c) for a, b, c in choices(range(j_max + 1), repeat=3) if abs(a - b) <= c <= a + b
    ]


def operands(product: VectorGaunt, rows: tuple[int, ...] = (3,)):
    weights = np.random.default_rng(3).normal(size=(*rows, product.num_weights))
    return (
        random_array(product.irreps_left, rows, 1),
        random_array(product.irreps_right, rows, 2),
        jnp.asarray(weights),
    )


def test_coefficients_are_those_of_the_closed_formula() -> None:
    """Gaunt coefficient times 9j symbol; sqrt(6) because epsilon is sqrt(6) times the 3j symbol."""
    for j1, j2, j3 in triples(2):
        l1, l2, l3 = max(j1, 1), j2 + 1, max(j3, 1)
        dims = np.prod([2 * n + 1.0 for n in (l1, l2, l3)])
        gaunt = np.sqrt(dims / (4 * np.pi)) * three_j(l1, l2, l3, 0, 0, 0)
        symbol = nine_j(((l1, l2, l3), (1, 1, 1), (j1, j2, j3)))
        scale = np.sqrt(6 * np.prod([2 * j + 1.0 for j in (j1, j2, j3)]))
        expected = abs(gaunt * symbol * scale)
        np.testing.assert_allclose(abs(vector_coefficient(j1, j2, j3)), expected, atol=1e-12)


def test_couplings() -> None:
    """Every odd path; of the even ones those with one scalar on the left or out."""
    reached = {path for path in triples(4) if abs(vector_coefficient(*path)) > 1e-12}
    odd = {path for path in triples(4) if sum(path) % 2}
    scalars = {(0, j, j) for j in range(1, 5)} | {(j, j, 0) for j in range(1, 5)}
    assert len(odd) == 23
    assert reached == odd | scalars


def test_odd_part_is_the_bracket() -> None:
    """Up to constants of each degree, here those of y and of the output."""
    left = right = spherical_irreps(3)
    target = Irreps("1e+2o+3e")
    product = VectorGaunt(left, right, target, "all")
    bracket = GauntBracket(left, right, target, "all")
    x, y, _ = operands(product)

    def weights(product, b: list[float], c: list[float]) -> jax.Array:
        return jnp.concatenate([jnp.ones(4), jnp.asarray(b), jnp.asarray(c) / product.norms])

    degrees = [1, 2, 3]
    b = [0.0] + [(j + 1) * np.sqrt(j / (2 * j + 1)) for j in degrees]
    c = [1 / np.sqrt(j * (j + 1)) for j in degrees]
    ours = product.multiply(x, y, weights(product, [1.0] * 4, [1.0] * 3)).array
    theirs = bracket.multiply(x, y, weights(bracket, b, c)).array
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_grid_and_its_third_derivatives() -> None:
    """With the dense form."""
    product = VectorGaunt(Irreps("2x1o"), Irreps("1o"), Irreps("0e+1e"))
    x, y, weights = operands(product)

    def chain(method: str) -> list[jax.Array]:
        def function(x, y, weights):
            left, right = IrrepsArray(product.irreps_left, x), IrrepsArray(product.irreps_right, y)
            return product.multiply(left, right, weights, method).array

        return derivatives(function, x.array, y.array, weights)

    assert_close(jax.jit(lambda: chain("grid"))(), jax.jit(lambda: chain("dense"))(), 1e-11)


@pytest.mark.parametrize("l_max", [4, 6])
def test_high_degrees(l_max: int) -> None:
    """The grid against the dense form."""
    irreps = spherical_irreps(l_max)
    product = VectorGaunt(irreps, irreps, Irreps("0e+1e+2e+2o+5e+6o"))
    x, y, weights = operands(product, (1,))
    fast, slow = (
        jax.jit(lambda method=method: product.multiply(x, y, weights, method).array)()
        for method in ("grid", "dense")
    )
    np.testing.assert_allclose(fast, slow, atol=1e-11)


def test_kernels() -> None:
    """Messages summed over neighbours."""
    product = VectorGaunt(Irreps("2x0e+2x1o"), Irreps("0e+1o"), Irreps("0e+1e+1o"))
    x, y, weights = edges(product)
    reference = product(x, y, weights).array.sum(1)
    for kernel in VectorGaunt.kernels.values():
        summed = jax.jit(lambda kernel=kernel: kernel(product, x, y, weights).array)()
        np.testing.assert_allclose(summed, reference, atol=1e-12)


def test_grid_of_the_exact_size_and_no_smaller() -> None:
    irreps = spherical_irreps(2)
    product = VectorGaunt(irreps, irreps, Irreps("1e+2o"))
    x, y, _ = operands(product)

    def on_grid(*size: int) -> np.ndarray:
        run = jax.jit(lambda: jnp.concatenate(tables(product, *size)(x.blocks, y.blocks), 1))
        return np.asarray(run())

    exact = on_grid()
    degree = 2 * (product.total_degree // 2)
    latitudes, azimuths = degree // 2 + 1, degree + 1
    np.testing.assert_allclose(on_grid(latitudes, azimuths), exact, atol=1e-13)
    assert np.abs(on_grid(latitudes - 1, azimuths) - exact).max() > 1e-3
    assert np.abs(on_grid(latitudes, azimuths - 1) - exact).max() > 1e-3


@pytest.mark.parametrize("inversion", [False, True])
def test_equivariance(inversion: bool) -> None:
    product = VectorGaunt(Irreps("2x0e+2x1o+2x1e"), Irreps("1o+2e"), Irreps("0e+0o+1o+1e+2o"))
    assert equivariance_residual(product, inversion) < 1e-11


def test_unit_variance() -> None:
    product = VectorGaunt(Irreps("8x0e+8x1o+8x1e"), spherical_irreps(2), Irreps("0e+1e+1o+2e+2o"))
    x, y, weights = operands(product, (4000,))
    out = jax.jit(lambda: product.multiply(x, y, weights).array)()
    for block in IrrepsArray(product.irreps_out, out).blocks:
        np.testing.assert_allclose((block**2).mean(), 1.0, rtol=0.15)


def test_impossible_products_are_refused() -> None:
    with pytest.raises(ValueError, match="vector_gaunt has no path from 2x0e x 1x0e to 1x0e"):
        VectorGaunt(Irreps("2x0e"), Irreps("0e"), Irreps("0e"))
