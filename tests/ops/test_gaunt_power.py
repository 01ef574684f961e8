"""Powers as products of signals: against quadrature on a fine grid, methods, scale, exactness."""

from __future__ import annotations

from collections.abc import Callable

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from product_checks import assert_close, derivatives, random_array, turned

from eqnet.irreps import Irreps, IrrepsArray, spherical_irreps
from eqnet.ops import blocks, signals
from eqnet.ops.gaunt_power import GauntPower

pytestmark = pytest.mark.usefixtures("x64")
METHODS = ("grid", "fourier", "fft")
# inputs, outputs, correlation; the second has outputs that only some orders reach
CASES = {
    "three factors": ("2x0e+2x1o+2x2e", "2x0e+2x1o", 3),
    "gaps": ("2x1o+2x2e", "2x0e+2x1o+2x3o", 3),
    "two factors": ("2x0e+2x1o+2x2e+2x3o", "2x0e+2x2e", 2),
    "four factors": ("2x0e+2x1o", "2x0e+2x1o", 4),
    "one factor": ("2x0e+2x1o", "2x1o", 1),
}


def problem(name: str, rows: int = 3):
    inputs, outputs, correlation = CASES[name]
    power = GauntPower(Irreps(inputs), Irreps(outputs), correlation)
    weights = np.random.default_rng(1).normal(size=(rows, power.num_weights, 2))
    return power, random_array(power.irreps_in, (rows,), 0), jnp.asarray(weights)


def computed(power: GauntPower, x: IrrepsArray, weights: jax.Array, method: str = "grid"):
    return jax.jit(lambda x, w: power(IrrepsArray(power.irreps_in, x), w, method).array)(
        x.array, weights
    )


@pytest.mark.parametrize("name", CASES)
def test_against_quadrature(name: str) -> None:
    """Signals as functions by e3nn's harmonics, multiplied on a fine equiangular grid."""
    power, x, weights = problem(name)
    nodes, latitude_weights = np.polynomial.legendre.leggauss(20)
    around = 2 * np.pi / 41 * np.arange(41)
    y, angle = (v.ravel() for v in np.meshgrid(nodes, around, indexing="ij"))
    radius = np.sqrt(1 - y**2)
    points = np.stack([radius * np.cos(angle), y, radius * np.sin(angle)], axis=1)
    area = np.repeat(latitude_weights, 41) * 2 * np.pi / 41
    basis = {
        l: np.asarray(
            e3nn.spherical_harmonics(
                Irreps([(1, (l, (-1) ** l))]), jnp.asarray(points), True, "integral"
            ).array
        )
        for l in {*power.inputs, *power.outputs}
    }
    w, product = np.asarray(weights), np.ones((3, len(points), 2))
    expected = {l: np.zeros((3, 2 * l + 1, 2)) for l in power.outputs}
    for order in range(1, power.correlation + 1):
        if power.correlation > 1:
            start = (order - 1) * len(power.inputs)
            signal = sum(
                np.einsum("pm,nmc,nc->npc", basis[l], np.asarray(block), w[:, start + i])
                for i, (l, block) in enumerate(zip(power.inputs, x.blocks, strict=True))
            )
            product = product * signal
        for n, (nu, l) in enumerate(power.terms):
            if nu != order:
                continue
            c = w[:, None, power.num_factors + n]
            if order == 1:
                expected[l] = expected[l] + c * np.asarray(x.blocks[power.inputs.index(l)])
            else:
                values = np.einsum("p,pm,npc->nmc", area, basis[l], product)
                expected[l] = expected[l] + c * power.norm(order, l) * values
    out = IrrepsArray(power.irreps_out, computed(power, x, weights))
    for l, block in zip(power.outputs, out.blocks, strict=True):
        np.testing.assert_allclose(block, expected[l], atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_methods_agree(name: str) -> None:
    """With the dense form."""
    power, x, weights = problem(name)
    reference = computed(power, x, weights, "dense")
    scale = float(jnp.abs(reference).max())
    for method in METHODS:
        out = computed(power, x, weights, method)
        np.testing.assert_allclose(out, reference, atol=1e-12 * scale)


def test_third_derivatives() -> None:
    """With the dense form."""
    power = GauntPower(Irreps("2x0e+2x1o"), Irreps("2x0e"), 3)
    x = random_array(power.irreps_in, (2,), 0).array
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(2, power.num_weights, 2)))

    def chain(method: str) -> list[jax.Array]:
        def function(x, weights):
            return power(IrrepsArray(power.irreps_in, x), weights, method).array

        return derivatives(function, x, weights)

    reference = jax.jit(lambda: chain("dense"))()
    for method in METHODS:
        assert_close(jax.jit(lambda method=method: chain(method))(), reference, 1e-11)


@pytest.mark.parametrize("l_max", [4, 6])
def test_high_degrees(l_max: int) -> None:
    """Methods against each other: values and gradients."""
    power = GauntPower(spherical_irreps(l_max), Irreps("0e+1o"), 3)
    x = random_array(power.irreps_in, (1,), 0).array
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(1, power.num_weights, 1)))

    def chain(method: str) -> list[jax.Array]:
        def function(x, weights):
            return jnp.sin(power(IrrepsArray(power.irreps_in, x), weights, method).array).sum()

        return list(jax.jit(jax.grad(function, (0, 1)))(x, weights))

    reference = chain("grid")
    for method in ("fourier", "fft"):
        assert_close(chain(method), reference, 1e-11)


@pytest.mark.parametrize("name", ["three factors", "gaps"])
def test_each_order_has_unit_variance(name: str) -> None:
    power, x, weights = problem(name, rows=8000)
    for n, (_, l) in enumerate(power.terms):
        alone = jnp.zeros(len(power.terms)).at[n].set(1.0)
        shape = (*weights.shape[:1], len(alone), *weights.shape[2:])
        chosen = jnp.concatenate(
            [weights[:, : power.num_factors], jnp.broadcast_to(alone[:, None], shape)], axis=1
        )
        out = IrrepsArray(power.irreps_out, computed(power, x, chosen))
        block = out.blocks[power.outputs.index(l)]
        np.testing.assert_allclose((block**2).mean(), 1.0, rtol=0.2)


def test_initial_scale() -> None:
    """The orders that reach an output share its variance."""
    power, _, _ = problem("gaps")
    scale = power.initial_scale()
    assert scale.shape == (power.num_weights,)
    for l in power.outputs:
        mine = [power.num_factors + n for n, (_, out) in enumerate(power.terms) if out == l]
        np.testing.assert_allclose((scale[mine] ** 2).sum(), 1.0)
    assert problem("three factors")[0].num_weights == 9 + 6


@pytest.mark.parametrize("inversion", [False, True])
def test_equivariance(inversion: bool) -> None:
    power, x, weights = problem("gaps")
    out = IrrepsArray(power.irreps_out, computed(power, x, weights))
    moved = computed(power, turned(x, inversion), weights)
    np.testing.assert_allclose(moved, turned(out, inversion).array, atol=1e-11)


@pytest.mark.parametrize("rows", [7, 8])
def test_rows_a_few_at_a_time(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    power, x, weights = problem("three factors", rows)
    reference = computed(power, x, weights)
    monkeypatch.setitem(blocks.BLOCK_BYTES, "cpu", 800)
    np.testing.assert_allclose(computed(power, x, weights), reference, atol=1e-13)


def smaller_grid(latitudes: int, azimuths: int) -> Callable:
    """Tables with so many latitudes and azimuths less."""
    exact = signals.grid_tables

    def tables(inputs: tuple[int, ...], outputs: tuple[int, ...], factors: int):
        degree = 2 * ((factors * max(inputs) + max(outputs)) // 2)
        size = degree // 2 + 1 - latitudes, degree + 1 - azimuths
        return exact(inputs, outputs, factors, *size)

    return tables


def test_grid_and_fft_of_the_exact_size_and_no_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    power, x, weights = problem("three factors")
    exact = computed(power, x, weights, "dense")

    def error(method: str) -> float:
        return float(jnp.abs(computed(power, x, weights, method) - exact).max())

    for less, wrong in (((0, 0), False), ((1, 0), True), ((0, 1), True)):
        with monkeypatch.context() as patch:
            patch.setattr(signals, "grid_tables", smaller_grid(*less))
            assert error("grid") > 1e-3 if wrong else error("grid") < 1e-12
    sizes = signals.fft_sizes
    monkeypatch.setattr(
        signals, "fft_sizes", lambda *arguments: (sizes(*arguments)[0], sizes(*arguments)[1] - 1)
    )
    assert error("fft") > 1e-3


def test_impossible_powers_are_refused() -> None:
    with pytest.raises(ValueError, match="have natural parity .* and 1e has not"):
        GauntPower(Irreps("2x0e+2x1e"), Irreps("2x0e"), 2)
    with pytest.raises(ValueError, match="and 0o has not; the powers of clebsch_gordan"):
        GauntPower(Irreps("2x0e+2x1o"), Irreps("2x0o"), 2)
    with pytest.raises(ValueError, match="equal multiplicities"):
        GauntPower(Irreps("2x0e+3x1o"), Irreps("2x0e"), 2)
    with pytest.raises(ValueError, match="no product of up to 2 signals of 2x1o contains 3o"):
        GauntPower(Irreps("2x1o"), Irreps("2x0e+2x3o"), 2)
    power, x, weights = problem("one factor")
    with pytest.raises(ValueError, match="no method 'quick'; it has: grid, fourier, fft, dense"):
        power(x, weights, "quick")
