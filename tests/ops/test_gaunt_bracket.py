"""Gaunt product and surface bracket: closed coefficients, parity, symmetry, exactness."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from product_checks import (
    assert_close,
    derivatives,
    edges,
    equivariance_residual,
    measured_coefficients,
    random_array,
)
from wigner import three_j

from eqnet.irreps import Irrep, Irreps, IrrepsArray, spherical_irreps
from eqnet.ops.gaunt import Gaunt
from eqnet.ops.gaunt_bracket import GauntBracket, tables
from eqnet.so3 import clebsch_gordan

pytestmark = pytest.mark.usefixtures("x64")
BOTH = Irreps("0e+0o+1o+1e+2e+2o+3o+3e")


def operands(product: GauntBracket, rows: tuple[int, ...] = (3,)):
    weights = np.random.default_rng(3).normal(size=(*rows, product.num_weights))
    return (
        random_array(product.irreps_left, rows, 1),
        random_array(product.irreps_right, rows, 2),
        jnp.asarray(weights),
    )


def test_measured_coefficients() -> None:
    """Basis vectors in: closed formulas with 3j symbols, nothing else, and the declared paths."""
    irreps = spherical_irreps(3)
    product = GauntBracket(irreps, irreps, BOTH)
    weights = jnp.ones(product.num_weights)
    measured = measured_coefficients(product, lambda x, y: product.multiply(x, y, weights))
    found = set()
    for (_, left), s1 in zip(irreps, irreps.slices(), strict=True):
        for (_, right), s2 in zip(irreps, irreps.slices(), strict=True):
            for (_, out), s3 in zip(product.irreps_out, product.irreps_out.slices(), strict=True):
                block, expected = measured[s1, s2, s3], 0.0
                if out.p == left.p * right.p and out in left * right:
                    table = clebsch_gordan(left.l, right.l, out.l)
                    ms = (1, -1, 0) if (left.l + right.l + out.l) % 2 else (0, 0, 0)
                    scale = np.sqrt(left.dim * right.dim * out.dim / (4 * np.pi))
                    symbol = scale * abs(three_j(left.l, right.l, out.l, *ms))
                    coefficient = (block * table).sum()
                    norm = product.norms[[o.irrep for o in product.outputs].index(out)]
                    np.testing.assert_allclose(abs(coefficient), norm * symbol, atol=1e-12)
                    expected = coefficient * table
                    if symbol:
                        found.add((left, right, out))
                np.testing.assert_allclose(block, expected, atol=1e-12)
    assert found == product.declaration.couplings
    assert len(found) == 34  # every path with all degrees up to 3


def test_vectors() -> None:
    """1 x 1 -> 1 is the cross product and 1 x 1 -> 0 the dot product, with unit variance."""
    product = GauntBracket(Irreps("1o"), Irreps("1o"), Irreps("0e+1e"))
    x, y, _ = operands(product)
    out = product.multiply(x, y, jnp.ones(product.num_weights))
    a, b = np.asarray(x.array), np.asarray(y.array)
    np.testing.assert_allclose(out.array[:, :1], (a * b).sum(1, keepdims=True) / np.sqrt(3))
    np.testing.assert_allclose(out.array[:, 1:], np.cross(a, b) / np.sqrt(2), atol=1e-13)


def test_bracket_is_antisymmetric() -> None:
    """With equal weights of both factors; of x with itself only the even part is left."""
    irreps = spherical_irreps(2) * 2
    product = GauntBracket(irreps, irreps, Irreps("1e+2o"), "all")
    assert {out.kind for out in product.outputs} == {1}
    x, y, weights = operands(product)
    a, c = weights[:, :6], weights[:, 12:]
    both = jnp.concatenate([a, a, c], axis=1)
    there, back = product.multiply(x, y, both).array, product.multiply(y, x, both).array
    np.testing.assert_allclose(there, -back, atol=1e-13)
    np.testing.assert_allclose(product.multiply(x, x, both).array, 0, atol=1e-13)


def test_natural_outputs_of_natural_inputs_are_the_gaunt_product() -> None:
    irreps = spherical_irreps(2) * 2
    product, gaunt = GauntBracket(irreps, irreps, irreps), Gaunt(irreps, irreps, irreps)
    x, y, weights = operands(product)
    np.testing.assert_allclose(
        product.multiply(x, y, weights).array, gaunt(x, y, weights).array, atol=1e-13
    )
    assert {group.component for group in tables(product).left} == {0}  # no gradients are made


def test_outputs_of_both_kinds_have_weights_for_each() -> None:
    left, right = Irreps("2x1o+2x1e"), Irreps("1o+1e")
    product = GauntBracket(left, right, Irreps("1e"))
    assert [(out.irrep, out.kind) for out in product.outputs] == [(Irrep(1, 1), 1)]
    product = GauntBracket(Irreps("2x0e+2x1o+2x1e"), Irreps("0e+1o"), Irreps("1o"), "all")
    assert [out.kind for out in product.outputs] == [0, 1]
    assert product.num_weights == 2 * (3 + 2 + 2)


def test_grid_and_its_third_derivatives() -> None:
    """With the dense form."""
    product = GauntBracket(Irreps("2x1o"), Irreps("1o"), Irreps("0e+1e"))
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
    irreps, every = spherical_irreps(l_max), Irreps("0e+1e+2o+4e+5e+6o")
    product = GauntBracket(irreps, irreps, every)
    x, y, weights = operands(product, (1,))
    fast, slow = (
        jax.jit(lambda method=method: product.multiply(x, y, weights, method).array)()
        for method in ("grid", "dense")
    )
    np.testing.assert_allclose(fast, slow, atol=1e-11)


def test_kernels() -> None:
    """Messages summed over neighbours."""
    product = GauntBracket(Irreps("2x0e+2x1o"), Irreps("0e+1o"), Irreps("0e+1e+1o"))
    x, y, weights = edges(product)
    reference = product(x, y, weights).array.sum(1)
    for kernel in GauntBracket.kernels.values():
        summed = jax.jit(lambda kernel=kernel: kernel(product, x, y, weights).array)()
        np.testing.assert_allclose(summed, reference, atol=1e-12)


def test_grid_of_the_exact_size_and_no_smaller() -> None:
    irreps = spherical_irreps(2)
    product = GauntBracket(irreps, irreps, Irreps("0e+1e+2o+2e"))
    x, y, _ = operands(product)

    def on_grid(*size: int) -> np.ndarray:
        run = jax.jit(lambda: jnp.concatenate(tables(product, *size)(x.blocks, y.blocks), 1))
        return np.asarray(run())

    exact = on_grid()
    np.testing.assert_allclose(on_grid(4, 7), exact, atol=1e-13)
    assert np.abs(on_grid(3, 7) - exact).max() > 1e-3
    assert np.abs(on_grid(4, 6) - exact).max() > 1e-3


@pytest.mark.parametrize("inversion", [False, True])
def test_equivariance(inversion: bool) -> None:
    product = GauntBracket(Irreps("2x0e+2x1o+2x1e"), Irreps("1o+2e"), Irreps("0e+0o+1o+1e+2o"))
    assert equivariance_residual(product, inversion) < 1e-11


def test_unit_variance() -> None:
    """Also where both kinds add up to one output."""
    product = GauntBracket(Irreps("8x0e+8x1o+8x1e+8x2e"), spherical_irreps(2), BOTH)
    x, y, weights = operands(product, (4000,))
    out = jax.jit(lambda: product.multiply(x, y, weights).array)()
    for block in IrrepsArray(product.irreps_out, out).blocks:
        np.testing.assert_allclose((block**2).mean(), 1.0, rtol=0.15)


def test_impossible_products_are_refused() -> None:
    with pytest.raises(ValueError, match="gaunt_bracket has no path from 2x0e x 1x1o to 1x1e"):
        GauntBracket(Irreps("2x0e"), Irreps("1o"), Irreps("1e"))
