"""Layers against numpy, e3nn-jax, quadrature and closed forms."""

from __future__ import annotations

from fractions import Fraction

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eqnet import layers, norms
from eqnet.irreps import IrrepsArray, regrouped

pytestmark = pytest.mark.usefixtures("x64")


def random_array(irreps: str, rows: int, seed: int = 0) -> IrrepsArray:
    irreps_ = regrouped(irreps)
    array = np.random.default_rng(seed).normal(size=(rows, irreps_.dim))
    return IrrepsArray(irreps_, jnp.asarray(array))


def turned(x: IrrepsArray, inversion: bool) -> IrrepsArray:
    """x under a fixed rotation (and inversion), by e3nn-jax."""
    theirs = x.to_e3nn().transform_by_axis_angle(jnp.array([0.3, -0.5, 0.8]), 1.1)
    if inversion:
        signs = np.concatenate([np.full(m.dim, m.ir.p) for m in theirs.irreps])
        theirs = e3nn.IrrepsArray(theirs.irreps, theirs.array * signs)
    return IrrepsArray.from_e3nn(theirs)


@pytest.mark.parametrize(
    ("function", "value"), [(layers.sigmoid, 1.0), (layers.tanh, 1.0), (layers.silu, 1.00316)]
)
def test_activations_have_unit_second_moment(function, value: float) -> None:
    """By Gauss-Hermite quadrature; silu carries the constant of e3nn, 0.16 % too large."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(150)
    moment = (weights / weights.sum()) @ np.asarray(function(jnp.asarray(nodes))) ** 2
    np.testing.assert_allclose(moment, value, atol=1e-5)


def test_linear_mixes_channels_of_each_irrep() -> None:
    linear = layers.Linear("4x0e+3x1o", "2x0e+5x1o+7x2e", rngs=nnx.Rngs(0))
    assert str(linear.irreps_out) == "2x0e+5x1o"
    x = random_array("4x0e+3x1o", 6)
    vectors = np.asarray(x.blocks[1])
    weight = np.asarray(linear.weights["1o"][...])
    expected = np.einsum("nmi,io->nmo", vectors, weight) / np.sqrt(3)
    np.testing.assert_allclose(linear(x).blocks[1], expected, rtol=1e-12)


def test_linear_by_element_is_the_product_with_the_one_hot_element() -> None:
    linear = layers.Linear("4x0e+3x1o", "2x0e+5x1o", rngs=nnx.Rngs(0), num_elements=3)
    x, species = random_array("4x0e+3x1o", 6), np.array([0, 2, 1, 1, 0, 2])
    out = linear(x, layers.one_hot(jnp.asarray(species), 3, jnp.dtype("float64")))
    for n, z in enumerate(species):
        weight = np.asarray(linear.weights["0e"][...])[z]
        expected = np.asarray(x.blocks[0])[n] @ weight / np.sqrt(4 * 3)
        np.testing.assert_allclose(out.blocks[0][n], expected, rtol=1e-12)


def test_mlp_is_its_factors_and_keeps_zero() -> None:
    mlp = layers.MLP((3, 8, 5), rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(7, 3))
    first, second = (np.asarray(w[...]) for w in mlp.weights)
    hidden = x @ first / np.sqrt(3)
    hidden = layers.SILU_NORM * hidden / (1 + np.exp(-hidden))
    np.testing.assert_allclose(mlp(jnp.asarray(x)), hidden @ second / np.sqrt(8), rtol=1e-12)
    assert not np.any(mlp(jnp.zeros((2, 3))))


@pytest.mark.parametrize("inversion", [False, True])
def test_gate_and_norm_are_equivariant(inversion: bool) -> None:
    gate = layers.Gate("4x0e+2x0o+3x1o+2x1e+1x2e")
    assert str(gate.irreps_in) == str(regrouped("10x0e+2x0o+3x1o+2x1e+1x2e"))
    x = random_array(str(gate.irreps_in), 5)
    np.testing.assert_allclose(
        gate(turned(x, inversion)).array, turned(gate(x), inversion).array, atol=1e-12
    )
    for kind in (norms.LayerNorm, norms.RMSNorm):
        norm = kind(x.irreps, rngs=nnx.Rngs(0))
        np.testing.assert_allclose(
            norm(turned(x, inversion)).array, turned(norm(x), inversion).array, atol=1e-12
        )


def test_gates_multiply_their_own_channel() -> None:
    gate = layers.Gate("1x0e+2x1o")
    x = random_array(str(gate.irreps_in), 3)
    scalars, vectors = (np.asarray(b) for b in x.blocks)
    out = gate(x).blocks
    gates = layers.SIGMOID_NORM / (1 + np.exp(-scalars[:, 0, 1:]))
    np.testing.assert_allclose(out[1], vectors * gates[:, None, :], rtol=1e-12)


def test_layer_norm_gives_unit_root_mean_square() -> None:
    norm = norms.LayerNorm("8x0e+4x2e", rngs=nnx.Rngs(0), epsilon=0.0)
    scalars, tensors = norm(random_array("8x0e+4x2e", 5)).blocks
    np.testing.assert_allclose(scalars.mean((1, 2)), 0.0, atol=1e-12)
    np.testing.assert_allclose((tensors**2).mean((1, 2)), 1.0, rtol=1e-12)


def test_rms_norm_has_one_scale() -> None:
    """rms_norm_sh of eSEN for degrees 0 to 2, weight 1 / ((2 l + 1)(L + 1)) of every component."""
    norm = norms.RMSNorm("8x0e+8x1o+8x2e", rngs=nnx.Rngs(0))
    norm.scale["1o"][...], norm.shift[...] = jnp.arange(8.0), jnp.arange(8.0) + 1
    x = random_array("8x0e+8x1o+8x2e", 5)
    blocks = [np.asarray(b) for b in x.blocks]
    blocks[0] = blocks[0] - blocks[0].mean(-1, keepdims=True)
    square = sum((b**2).sum(1).mean(-1) / b.shape[1] / 3 for b in blocks)
    a, b, c = (block / np.sqrt(square + 1e-5)[:, None, None] for block in blocks)
    out = norm(x).blocks
    np.testing.assert_allclose(out[0], a + np.arange(8) + 1, rtol=1e-12)
    np.testing.assert_allclose(out[1], b * np.arange(8), rtol=1e-12)
    np.testing.assert_allclose(out[2], c, rtol=1e-12)
    zero = IrrepsArray(x.irreps, jnp.zeros_like(x.array))
    assert np.isfinite(jax.grad(lambda x: norm(x).array.sum())(zero).array).all()


def test_normed_mlp_is_its_factors() -> None:
    mlp = norms.NormedMLP((3, 8, 5), rngs=nnx.Rngs(0))
    mlp.layers[0].bias[...] = jnp.arange(8.0)
    mlp.norms[0].scale[...], mlp.norms[0].shift[...] = jnp.arange(8.0) + 1, jnp.arange(8.0) / 5
    x = np.random.default_rng(0).normal(size=(7, 3))
    first, second = (np.asarray(layer.weight[...]) for layer in mlp.layers)
    hidden = x @ first / np.sqrt(3) + np.arange(8)
    hidden = hidden - hidden.mean(-1, keepdims=True)
    hidden = hidden / np.sqrt(hidden.var(-1, keepdims=True) + 1e-5)
    hidden = hidden * (np.arange(8) + 1) + np.arange(8) / 5
    hidden = hidden / (1 + np.exp(-hidden))
    np.testing.assert_allclose(mlp(jnp.asarray(x)), hidden @ second / np.sqrt(8), rtol=1e-12)


def test_bessel_functions_are_orthonormal_on_the_sphere() -> None:
    """Integral of b_m b_n r^2 dr from 0 to the cutoff is the identity."""
    nodes, weights = np.polynomial.legendre.leggauss(80)
    r = 0.5 * 4.0 * (nodes + 1)
    b = np.asarray(layers.bessel(jnp.asarray(r), 4.0, 6))
    overlap = np.einsum("n,ni,nj->ij", 0.5 * 4.0 * weights * r**2, b, b)
    np.testing.assert_allclose(overlap, np.eye(6), atol=1e-10)


def test_gaussians_peak_at_their_centres() -> None:
    values = layers.gaussian(jnp.linspace(0.0, 5.0, 6), 5.0, 6)
    np.testing.assert_allclose(jnp.diagonal(values), 1.0)
    np.testing.assert_allclose(values[0, 1], np.exp(-0.5))


@pytest.mark.parametrize("p", [3, 5, 6])
def test_cutoff_has_two_vanishing_derivatives(p: int) -> None:
    def cutoff(r: jax.Array) -> jax.Array:
        return layers.polynomial_cutoff(r, 5.0, p)

    end = jnp.asarray(5.0 - 1e-7)
    assert cutoff(jnp.asarray(0.0)) == 1.0
    for order, bound in ((0, 1e-13), (1, 1e-12), (2, 1e-5)):
        function = cutoff
        for _ in range(order):
            function = jax.grad(function)
        assert abs(function(end)) < bound
        assert function(jnp.asarray(5.5)) == 0.0


@pytest.mark.parametrize("p", [3, 5, 6])
def test_cutoff_keeps_its_digits_in_float32(p: int) -> None:
    """Against the published polynomial in rational numbers, whose terms all but cancel there."""
    for gap in (4.0, 1.0, 2.0**-6, 2.0**-12, 2.0**-20):
        u = 1 - Fraction(gap) / 4
        terms = ((p + 1) * (p + 2) // 2, -p * (p + 2), p * (p + 1) // 2)
        exact = 1 - sum(term * u ** (p + k) for k, term in enumerate(terms))
        value = layers.polynomial_cutoff(jnp.asarray(4.0 - gap, "float32"), 4.0, p)
        assert value.dtype == "float32"
        assert float(value) == pytest.approx(float(exact), rel=1e-6)


def test_select_picks_rows() -> None:
    weights = np.random.default_rng(0).normal(size=(4, 3, 2))
    species = np.array([3, 0, 0, 2])
    chosen = layers.one_hot(jnp.asarray(species), 4, jnp.dtype("float64"))
    np.testing.assert_array_equal(layers.select(jnp.asarray(weights), chosen), weights[species])
