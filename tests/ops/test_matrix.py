"""The matrix product and powers of matrices: 6j symbols, spin matrices, TensorNet, methods."""

from __future__ import annotations

from functools import partial
from math import sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from product_checks import (
    assert_kernel_is_dense,
    assert_power_is_dense,
    equivariance_residual,
    measured_coefficients,
    random_array,
    turned,
)
from wigner import six_j

from eqnet.irreps import Irreps, IrrepsArray, regrouped, spherical_irreps
from eqnet.ops import matrix
from eqnet.ops.matrix import MULTIPLY, Matrix, basis
from eqnet.ops.matrix_power import MatrixPower
from eqnet.so3 import clebsch_gordan

pytestmark = pytest.mark.usefixtures("x64")
EVERY = "3x0e+3x0o+3x1o+3x1e+3x2e+3x2o"


def every(l_max: int) -> Irreps:
    return regrouped("+".join(f"{l}e+{l}o" for l in range(l_max + 1)))


def test_basis_is_orthonormal_and_complete() -> None:
    for spin in (1, 2, 3):
        stacked = np.concatenate([basis(spin, l) for l in range(2 * spin + 1)], axis=2)
        flat = stacked.reshape((2 * spin + 1) ** 2, -1)
        np.testing.assert_allclose(flat.T @ flat, np.eye(len(flat)), atol=1e-13)


@pytest.mark.parametrize("l_max", [1, 2, 3, 4])
def test_coefficients_are_6j_symbols(l_max: int) -> None:
    """Basis vectors through the matrix products against 6j symbols times Clebsch-Gordan tables."""
    harmonics = spherical_irreps(l_max)
    product = Matrix(harmonics, harmonics, every(l_max))
    q = -(-l_max // 2)

    def core(x: IrrepsArray, y: IrrepsArray) -> IrrepsArray:
        return product.multiply(x, y, jnp.ones(product.num_weights), "columns")

    measured = measured_coefficients(product, core)
    expected = np.zeros_like(measured)
    inputs = list(zip(harmonics, harmonics.slices(), strict=True))
    variance = {}
    for (_, a), i in inputs:
        for (_, b), j in inputs:
            for (_, c), k in zip(product.irreps_out, product.irreps_out.slices(), strict=True):
                if c not in a * b:
                    continue
                size = sqrt(a.dim * b.dim * c.dim)
                g = (-1) ** c.l * size * six_j(a.l, b.l, c.l, q, q, q)
                expected[i, j, k] = g * clebsch_gordan(a.l, b.l, c.l)
                variance[c] = variance.get(c, 0.0) + g**2 / c.dim
    for (_, c), k in zip(product.irreps_out, product.irreps_out.slices(), strict=True):
        expected[:, :, k] /= sqrt(variance[c])
    np.testing.assert_allclose(measured, expected, atol=1e-12)


def test_own_6j_symbols() -> None:
    for q in (1, 2, 3):
        degrees = range(2 * q + 1)
        for a in degrees:
            for b in degrees:
                for c in range(b + 1):
                    expected = six_j(a, b, c, q, q, q)
                    assert matrix.six_j(a, b, c, q, q, q) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize(
    ("l_max", "missing"),
    [(1, set()), (2, set()), (3, set()), (4, set()), (6, {(3, 5, 5)}), (8, {(5, 6, 7)})],
)
def test_missing_paths(l_max: int, missing: set) -> None:
    """All paths of O(3) that are declared, but those with a vanishing 6j symbol."""
    harmonics = spherical_irreps(l_max)
    product = Matrix(harmonics, harmonics, every(l_max))
    triples = {(a.l, b.l, c.l) for a, b, c in product.declaration.couplings}
    there = {
        (a, b, c)
        for a in range(l_max + 1)
        for b in range(l_max + 1)
        for c in range(abs(a - b), min(a + b, l_max) + 1)
    }
    assert {tuple(sorted(triple)) for triple in there - triples} == missing
    assert all(c in a * b for a, b, c in product.declaration.couplings)


@pytest.mark.parametrize("inversion", [False, True])
@pytest.mark.parametrize("irreps", ["3x0e+3x1o+3x2e+3x3o", EVERY])
def test_equivariance(irreps: str, inversion: bool) -> None:
    product = Matrix(regrouped(irreps), spherical_irreps(2), regrouped(irreps))
    assert equivariance_residual(product, inversion) < 1e-11


def test_vectors_give_their_dot_and_cross_product() -> None:
    product = Matrix(Irreps("1o"), Irreps("1o"), Irreps("0e+1e"))
    x, y = random_array(Irreps("1o"), (5,), 1), random_array(Irreps("1o"), (5,), 2)
    out = np.asarray(product(x, y, jnp.ones(4)).array)
    a, b = np.asarray(x.array), np.asarray(y.array)
    # unit variance of the outputs fixes the factors, up to a sign
    dot, cross = (a * b).sum(1) / sqrt(3), np.cross(a, b) / sqrt(2)
    np.testing.assert_allclose(np.abs(out[:, 0]), np.abs(dot), atol=1e-13)
    sign = np.sign(out[0, 1] * cross[0, 0])
    np.testing.assert_allclose(out[:, 1:], sign * cross, atol=1e-13)


@pytest.mark.parametrize("method", list(MULTIPLY))
def test_methods_are_the_dense_form_with_three_derivatives(method: str) -> None:
    product = Matrix(spherical_irreps(1) * 2, spherical_irreps(1), regrouped("0e+1e"))
    assert_kernel_is_dense(product, Matrix.kernels[method])


@pytest.mark.parametrize("method", list(MULTIPLY))
def test_products_of_two_features(method: str) -> None:
    """Right operands of one and of C channels, degree 3; under vmap."""
    irreps = spherical_irreps(3) * 2
    for right in (irreps, spherical_irreps(3)):
        product = Matrix(irreps, right, irreps)
        x, y = random_array(irreps, (4,), 1), random_array(right, (4,), 2)
        weights = jnp.asarray(np.random.default_rng(3).normal(size=(4, product.num_weights)))
        expected = product(x, y, weights).array
        got = product.multiply(x, y, weights, method).array
        np.testing.assert_allclose(got, expected, atol=1e-12)
        mapped = jax.vmap(partial(product.multiply, method=method))(x, y, weights)
        np.testing.assert_allclose(mapped.array, expected, atol=1e-12)


def test_component_normalisation() -> None:
    irreps = spherical_irreps(3) * 2
    product = Matrix(irreps, irreps, irreps)
    x, y = random_array(irreps, (20000,), 1), random_array(irreps, (20000,), 2)
    for block in product.multiply(x, y, jnp.ones(product.num_weights)).blocks:
        np.testing.assert_allclose((block**2).mean(), 1.0, rtol=0.1)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="matrix has no path from .* to 1x1e"):
        Matrix(Irreps("2x0e"), Irreps("1o"), Irreps("1e"))
    with pytest.raises(ValueError, match="matrix works channel by channel"):
        Matrix(Irreps("2x0e+3x1o"), Irreps("1o"), Irreps("1o"))


def power_of(name: str) -> MatrixPower:
    return {
        "natural": MatrixPower(spherical_irreps(2) * 3, spherical_irreps(1) * 3, 3),
        "labelled": MatrixPower(regrouped("3x0o+3x1e"), regrouped("3x0e+3x0o+3x1e"), 3),
        "higher output": MatrixPower(spherical_irreps(1) * 3, Irreps("3x2e"), 2),
    }[name]


@pytest.mark.parametrize("method", list(MULTIPLY))
def test_powers_with_three_derivatives(method: str) -> None:
    assert_power_is_dense(power_of("labelled"), method)


def spin_one(x: np.ndarray, l: int) -> np.ndarray:
    """Vectors or symmetric traceless tensors as 3 x 3 matrices of the same norm."""
    matrices = {
        0: np.eye(3)[:, :, None] / sqrt(3),
        1: np.cross(np.eye(3)[:, None], np.eye(3)[None]) / sqrt(2),
    }
    return np.einsum("abm,m->ab", matrices[l], x)


def test_powers_are_powers_of_3_by_3_matrices() -> None:
    """Scalars and vectors: X = s / sqrt(3) + eps v / sqrt(2) and its powers, by numpy."""
    power = MatrixPower(spherical_irreps(1), spherical_irreps(1), 4)
    x = random_array(spherical_irreps(1), (3,), 1)
    for n, (ir, order) in enumerate(power.terms):
        weights = jnp.zeros((3, power.num_weights, 1)).at[:, n].set(1.0)
        out = power(x, weights).blocks[ir.l][..., 0]
        for row, feature in zip(np.asarray(out), np.asarray(x.array), strict=True):
            single = spin_one(feature[:1], 0) + spin_one(feature[1:], 1)
            powered = np.linalg.matrix_power(single, order) / sqrt(3) ** (order - 1)
            expected = np.array([np.sum(powered * spin_one(e, ir.l)) for e in np.eye(ir.dim)])
            np.testing.assert_allclose(row, expected, atol=1e-13)


@pytest.mark.parametrize("name", ["natural", "labelled", "higher output"])
def test_powers_are_equivariant_and_start_with_unit_variance(name: str) -> None:
    power = power_of(name)
    x = random_array(power.irreps_in, (3000,), 1)
    weights = np.random.default_rng(2).normal(size=(3000, power.num_weights, 3))
    for inversion in (False, True):
        moved = power(turned(x, inversion), jnp.asarray(weights))
        out = turned(power(x, jnp.asarray(weights)), inversion)
        np.testing.assert_allclose(moved.array, out.array, atol=1e-10)
    for n, scale in enumerate(power.initial_scale()):
        one = jnp.zeros((3000, power.num_weights, 3)).at[:, n].set(scale)
        block = power(x, one).blocks[power.outputs.index(power.terms[n][0])]
        np.testing.assert_allclose((block**2).mean(), 1.0, rtol=0.35)


def test_power_refusals() -> None:
    """The commutator of a matrix with itself vanishes."""
    with pytest.raises(ValueError, match="no iterated product of up to 3 of .* contains 1e"):
        MatrixPower(spherical_irreps(2), Irreps("1e"), 3)
    with pytest.raises(ValueError, match="equal multiplicities"):
        MatrixPower(Irreps("3x0e+2x1o"), Irreps("3x0e"), 2)
