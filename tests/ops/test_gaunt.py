"""The Gaunt product: closed coefficients, methods against each other, exactness, derivatives."""

from __future__ import annotations

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from product_checks import (
    assert_close,
    assert_kernel_is_dense,
    derivatives,
    edges,
    equivariance_residual,
    measured_coefficients,
    random_array,
)
from wigner import three_j

from eqnet.irreps import Irreps, IrrepsArray, spherical_irreps
from eqnet.ops import blocks, gaunt_fourier
from eqnet.ops.fourier import fft_sizes, projection, series, to_torus
from eqnet.ops.gaunt import Gaunt
from eqnet.ops.gaunt_grid import tables
from eqnet.so3 import clebsch_gordan

pytestmark = pytest.mark.usefixtures("x64")
METHODS = list(Gaunt.cores)
# natural and pseudo irreps on both sides, gaps in the degrees, one or C channels on the right
MIXED = {
    "parities": ("2x0e+2x0o+2x1o+2x1e", "2x0e+2x1o+2x1e", "0e+0o+1o+1e+2e+2o"),
    "one channel": ("2x0e+2x1o", "0e+1o+2e", "0e+1o+2e+3o"),
    "gaps": ("2x3o", "0e+2e", "1o+3o"),
}


def mixed(name: str) -> Gaunt:
    return Gaunt(*(Irreps(irreps) for irreps in MIXED[name]), mode="all")


def operands(product: Gaunt, rows: tuple[int, ...] = (3,)):
    weights = np.random.default_rng(3).normal(size=(*rows, product.num_weights))
    return (
        random_array(product.irreps_left, rows, 1),
        random_array(product.irreps_right, rows, 2),
        jnp.asarray(weights),
    )


def multiplied(product: Gaunt, x: IrrepsArray, y: IrrepsArray, weights, method="default"):
    return jax.jit(lambda x, y, w: product.multiply(x, y, w, method).array)(x, y, weights)


def value_and_gradients(product: Gaunt, method: str) -> list[jax.Array]:
    """Of a nonlinear function of the result."""
    x, y, weights = operands(product)

    def function(x, y, weights):
        left, right = IrrepsArray(product.irreps_left, x), IrrepsArray(product.irreps_right, y)
        out = product.multiply(left, right, weights, method).array
        return jnp.sin(out).sum(), out

    run = jax.jit(jax.value_and_grad(function, (0, 1, 2), has_aux=True))
    return jax.tree.leaves(run(x.array, y.array, weights))


def test_coefficients_are_those_of_the_closed_formula() -> None:
    """By 3j symbols of another source, and with a positive sign."""
    every = spherical_irreps(5)
    product = Gaunt(every, every, every)
    for left in product.left:
        for right in product.right:
            for out in left * right:
                symbol = three_j(left.l, right.l, out.l, 0, 0, 0)
                expected = np.sqrt(left.dim * right.dim * out.dim / (4 * np.pi)) * abs(symbol)
                g = product.coefficient(left, right, out)
                np.testing.assert_allclose(g, expected, atol=1e-13)


@pytest.mark.parametrize("method", [*METHODS, "dense"])
def test_measured_coefficients(method: str) -> None:
    """Basis vectors in: the closed formula, and zero wherever it has no path."""
    irreps = spherical_irreps(2)
    product = Gaunt(irreps, irreps, spherical_irreps(4))
    weights = jnp.ones(product.num_weights)
    measured = measured_coefficients(product, lambda x, y: product.multiply(x, y, weights, method))
    for (_, left), s1 in zip(irreps, irreps.slices(), strict=True):
        for (_, right), s2 in zip(irreps, irreps.slices(), strict=True):
            for n, (out, s3) in enumerate(
                zip(product.outputs, product.irreps_out.slices(), strict=True)
            ):
                symbol = three_j(left.l, right.l, out.irrep.l, 0, 0, 0)
                scale = np.sqrt(left.dim * right.dim * out.irrep.dim / (4 * np.pi)) * abs(symbol)
                expected = 0.0
                if scale:
                    table = clebsch_gordan(left.l, right.l, out.irrep.l)
                    expected = product.norms[n] * scale * table
                np.testing.assert_allclose(measured[s1, s2, s3], expected, atol=1e-12)


def test_it_is_the_product_of_functions() -> None:
    """With all degrees of the output: F1(r) F2(r) at random points, by e3nn's harmonics."""
    left, right = spherical_irreps(2), spherical_irreps(3)
    product = Gaunt(left, right, spherical_irreps(5), "all")
    x, y = random_array(left, (), 1), random_array(right, (), 2)
    weights = jnp.concatenate([jnp.ones(3 + 4), 1 / jnp.asarray(product.norms)])
    z = product.multiply(x, y, weights)
    points = jnp.asarray(np.random.default_rng(0).normal(size=(10, 3)))

    def function(values: IrrepsArray) -> np.ndarray:
        basis = e3nn.spherical_harmonics(values.irreps, points, True, "integral").array
        return np.asarray(basis) @ np.asarray(values.array)

    np.testing.assert_allclose(function(z), function(x) * function(y), atol=1e-12)


@pytest.mark.parametrize("name", MIXED)
def test_methods_agree(name: str) -> None:
    """With the dense form: values and gradients."""
    product = mixed(name)
    reference = value_and_gradients(product, "dense")
    for method in METHODS:
        assert_close(value_and_gradients(product, method), reference, 1e-11)


@pytest.mark.parametrize("l_max", [4, 5, 6])
def test_methods_at_high_degrees(l_max: int) -> None:
    """With each other: values and gradients."""
    irreps = spherical_irreps(l_max)
    product = Gaunt(irreps, irreps, irreps)
    reference = value_and_gradients(product, "grid")
    for method in ("fourier", "fft"):
        assert_close(value_and_gradients(product, method), reference, 1e-11)


@pytest.mark.slow  # long lists of coefficients compile for minutes
@pytest.mark.parametrize("l_max", [4, 5, 6])
def test_the_list_of_coefficients_at_high_degrees(l_max: int) -> None:
    """With the grid: values and gradients."""
    irreps = spherical_irreps(l_max)
    product = Gaunt(irreps, irreps, irreps)
    reference = value_and_gradients(product, "grid")
    assert_close(value_and_gradients(product, "sparse"), reference, 1e-11)


def test_third_derivatives() -> None:
    """With the dense form, jitted."""
    product = Gaunt(Irreps("2x0e+2x1o"), Irreps("2x1o"), Irreps("0e+1o"), "all")
    x, y, weights = operands(product)

    def chain(method: str) -> list[jax.Array]:
        def function(x, y, weights):
            left, right = IrrepsArray(product.irreps_left, x), IrrepsArray(product.irreps_right, y)
            return product.multiply(left, right, weights, method).array

        return derivatives(function, x.array, y.array, weights)

    reference = jax.jit(lambda: chain("dense"))()
    for method in METHODS:
        assert_close(jax.jit(lambda method=method: chain(method))(), reference, 1e-11)


def test_rows_and_their_derivatives() -> None:
    """Messages summed over neighbours, with padding, to the third derivative."""
    product = Gaunt(Irreps("2x0e+2x1o"), spherical_irreps(1), Irreps("0e+1o"))
    assert_kernel_is_dense(product, Gaunt.kernels["rows"])


def test_kernels() -> None:
    """Messages summed over neighbours, with several parities."""
    product = Gaunt(Irreps("2x0e+2x1o+2x1e"), spherical_irreps(2), Irreps("0e+1o+1e+2e"))
    x, y, weights = edges(product)
    reference = product(x, y, weights).array.sum(1)
    for kernel in Gaunt.kernels.values():
        summed = jax.jit(lambda kernel=kernel: kernel(product, x, y, weights).array)()
        np.testing.assert_allclose(summed, reference, atol=1e-12)


@pytest.mark.parametrize("highest", [2, 4])
def test_grid_of_the_exact_size_and_no_smaller(highest: int) -> None:
    """One latitude or azimuth less is wrong, also where the output is cut off."""
    product = Gaunt(spherical_irreps(2), spherical_irreps(2), spherical_irreps(highest))
    x, y, _ = operands(product)
    latitudes, azimuths = product.total_degree // 2 + 1, product.total_degree + 1

    def on_grid(*size: int) -> np.ndarray:
        run = jax.jit(lambda: jnp.concatenate(tables(product, *size)(x.blocks, y.blocks), 1))
        return np.asarray(run())

    exact = on_grid()
    np.testing.assert_allclose(on_grid(latitudes, azimuths), exact, atol=1e-13)
    for size in ((latitudes - 1, azimuths), (latitudes, azimuths - 1)):
        assert np.abs(on_grid(*size) - exact).max() > 1e-3


def test_fft_of_the_exact_size_and_no_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    product = Gaunt(spherical_irreps(2), spherical_irreps(2), spherical_irreps(3))
    x, y, weights = operands(product)
    exact = multiplied(product, x, y, weights, "dense")

    def one_azimuth_less(*arguments) -> tuple[int, int]:
        polar, azimuths = fft_sizes(*arguments)
        return polar, azimuths - 1

    monkeypatch.setattr(gaunt_fourier, "fft_sizes", one_azimuth_less)
    assert jnp.abs(multiplied(product, x, y, weights, "fft") - exact).max() > 1e-3


@pytest.mark.parametrize("less", [0, 1])
def test_polar_points_of_the_fft(less: int) -> None:
    """Integrals of Y_i Y_j Y_k (l = 2, 1, 1) from samples on the torus: every frequency counts."""
    polar, azimuths = fft_sizes(3, (2, 1), 1)
    first, second = (
        np.asarray(
            to_torus(jnp.asarray(series(l, l)[0] + 1j * series(l, l)[1]), (polar - less, azimuths))
        )
        for l in (2, 1)
    )
    product = first[..., :, None] * second[..., None, :]
    spectrum = np.fft.fftshift(np.fft.rfft2(product, axes=(0, 1), norm="forward"), axes=0)[:, :2]
    back = projection(1, 3, 1)[:, : len(spectrum)]
    integrals = np.einsum("uvk,uvij->ijk", back[0], spectrum.real)
    integrals += np.einsum("uvk,uvij->ijk", back[1], spectrum.imag)
    scale = np.sqrt(5 * 3 * 3 / (4 * np.pi)) * three_j(2, 1, 1, 0, 0, 0)
    error = np.abs(integrals - scale * clebsch_gordan(2, 1, 1)).max()
    assert error > 1e-3 if less else error < 1e-13


def test_closed_moments_against_quadrature() -> None:
    """The way back from Fourier coefficients, by Gauss-Legendre in the polar angle."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    angle = np.pi / 2 * (nodes + 1)
    for u in range(-3, 4):
        moment = np.pi / 2 * weights @ (np.exp(1j * u * angle) * np.sin(angle))
        expected = 2 * np.pi * moment / np.sqrt(4 * np.pi)
        re, im = projection(0, 3, 0)[:, u + 3, 0, 0]
        np.testing.assert_allclose(re - 1j * im, expected, atol=1e-13)


def test_symmetric() -> None:
    """X and y may be exchanged: nothing antisymmetric can appear."""
    irreps = spherical_irreps(2) * 2
    product = Gaunt(irreps, irreps, irreps, "all")
    x, y, weights = operands(product)
    a, b, c = jnp.split(weights, 3, axis=1)
    exchanged = multiplied(product, y, x, jnp.concatenate([b, a, c], axis=1))
    np.testing.assert_allclose(multiplied(product, x, y, weights), exchanged, atol=1e-13)


@pytest.mark.parametrize("inversion", [False, True])
def test_equivariance(inversion: bool) -> None:
    assert equivariance_residual(mixed("parities"), inversion) < 1e-11


@pytest.mark.parametrize("l_max", [1, 3])
def test_unit_variance(l_max: int) -> None:
    irreps = spherical_irreps(l_max) * 4
    product = Gaunt(irreps, irreps, irreps)
    x, y, weights = operands(product, (4000,))
    out = IrrepsArray(product.irreps_out, multiplied(product, x, y, weights))
    for block in out.blocks:
        np.testing.assert_allclose((block**2).mean(), 1.0, rtol=0.15)


@pytest.mark.parametrize("rows", [1, 7, 8])
def test_rows_a_few_at_a_time(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With weights by row and common ones, whether or not the blocks divide the rows."""
    product = mixed("one channel")
    x, y, weights = operands(product, (rows, 2))
    monkeypatch.setitem(blocks.BLOCK_BYTES, "cpu", 1000)
    for w in (weights, weights[0, 0]):
        reference = multiplied(product, x, y, w, "dense")
        np.testing.assert_allclose(multiplied(product, x, y, w), reference, atol=1e-13)


def test_impossible_products_are_refused() -> None:
    with pytest.raises(ValueError, match="no path from 2x0e x 1x1o to 2x2e; clebsch_gordan has"):
        Gaunt(Irreps("2x0e"), Irreps("1o"), Irreps("2x2e"))
    with pytest.raises(ValueError, match="no path"):  # 1o x 1o -> 1e is odd
        Gaunt(Irreps("2x1o"), Irreps("1o"), Irreps("1e"))
    with pytest.raises(ValueError, match="channel by channel: it needs one multiplicity"):
        Gaunt(Irreps("2x0e+3x1o"), Irreps("1o"), Irreps("1o"))
    with pytest.raises(ValueError, match="channel by channel"):
        Gaunt(Irreps("2x1o"), Irreps("3x1o"), Irreps("0e"))
    product = mixed("gaps")
    with pytest.raises(
        ValueError, match="no method 'quick'; it has: grid, sparse, fourier, fft, dense"
    ):
        product.multiply(*operands(product), method="quick")
