"""Products of several signals on the sphere, f_1 f_2, f_1 f_2 f_3, ..., projected on harmonics.

A signal is f = sum_l x_l . Y_l with orthonormal harmonics and irreps of natural parity (0e, 1o,
...); a projection is the integral of Y_L times a product. The functions take the degrees of the
blocks of the signals, those of the projections, and for each signal its blocks [N, 2 l + 1, C].
They give for each product, of two factors and more, its projections [N, 2 L + 1, C] by index.
"""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from eqnet.irreps import Irrep, Irreps, spherical_irreps
from eqnet.ops.factorised import dense
from eqnet.ops.fourier import (
    convolve,
    fft_sizes,
    from_torus,
    projection,
    series,
    to_complex,
    to_real,
    to_torus,
)
from eqnet.ops.gaunt import Gaunt
from eqnet.ops.pointwise import (
    VALUES,
    Group,
    Table,
    field_class,
    from_fields,
    grouped,
    join,
    multiply,
    part,
    to_fields,
)
from eqnet.ops.sphere import half_grid, harmonics

Degrees = tuple[int, ...]
Signal = list[jax.Array]
Projections = list[dict[int, jax.Array]]

EVEN, ODD = (1, 0), (-1, 1)  # the classes of natural parity
BOTH = frozenset({(EVEN, 0), (ODD, 0)})


@cache
def grid_tables(
    inputs: Degrees,
    outputs: Degrees,
    factors: int,
    latitudes: int | None = None,
    azimuths: int | None = None,
) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
    """Values of the harmonics and quadrature with them, exact for products of so many factors.

    Args:
        inputs: degrees of the blocks of the signals.
        outputs: degrees of the projections.
        factors: of the highest product.
        latitudes: of the grid, instead of the exact number.
        azimuths: of the grid, instead of the exact number.
    """
    points = half_grid(factors * max(inputs) + max(outputs), latitudes, azimuths)

    def tables(degrees: Degrees, weights: np.ndarray | float) -> tuple[Group, ...]:
        return grouped(
            Table(n, field_class(Irrep(l, (-1) ** l), l), 0, weights * harmonics(l, points))
            for n, l in enumerate(degrees)
        )

    return tables(inputs, 1.0), tables(outputs, points.weights[:, None])


def by_grid(inputs: Degrees, outputs: Degrees, signals: list[Signal]) -> Projections:
    """By values at the points of half a grid."""
    to_values, back = grid_tables(inputs, outputs, len(signals))
    rows, _, channels = signals[0][0].shape
    value, *others = (to_fields(to_values, join(to_values, s, (rows,))) for s in signals)
    projections = []
    for other in others:
        value = multiply(value, other, algebra=VALUES, wanted=BOTH)
        projections.append(part(back, from_fields(back, value, channels), (rows,)))
    return projections


@cache
def series_tables(
    inputs: Degrees, outputs: Degrees, factors: int
) -> tuple[tuple[Group, ...], list[tuple[Group, ...]]]:
    """Harmonics to Fourier coefficients, and those of each product to projections."""
    bound, kept = max(inputs), max(outputs)
    back = [
        grouped(
            Table(n, EVEN, 0, projection(l, order * bound, kept).reshape(-1, 2 * l + 1))
            for n, l in enumerate(outputs)
        )
        for order in range(2, factors + 1)
    ]
    coefficients = grouped(
        Table(n, EVEN, 0, series(l, bound).reshape(-1, 2 * l + 1)) for n, l in enumerate(inputs)
    )
    return coefficients, back


def _coefficients(inputs: Degrees, to_series: tuple[Group, ...], signal: Signal) -> jax.Array:
    """[2 l_max + 1, l_max + 1, N * C], complex."""
    fields = to_fields(to_series, join(to_series, signal, signal[0].shape[:1]))
    return to_complex(fields[EVEN, 0], max(inputs))


def _project(back: tuple[Group, ...], x: jax.Array, like: jax.Array) -> dict[int, jax.Array]:
    rows, _, channels = like.shape
    return part(back, from_fields(back, {(EVEN, 0): to_real(x)}, channels), (rows,))


def by_convolution(inputs: Degrees, outputs: Degrees, signals: list[Signal]) -> Projections:
    """By direct convolution of Fourier series."""
    to_series, back = series_tables(inputs, outputs, len(signals))
    bound, kept = max(inputs), max(outputs)
    value, *others = (_coefficients(inputs, to_series, s) for s in signals)
    projections = []
    for n, other in enumerate(others):
        # what later factors can still bring back to the frequencies that are kept
        reach = kept + bound * (len(others) - 1 - n)
        value = convolve(value, other, min(reach, bound * (n + 2)))
        seen = jnp.pad(value, ((0, 0), (0, max(kept + 1 - value.shape[1], 0)), (0, 0)))
        projections.append(_project(back[n], seen[:, : kept + 1], signals[0][0]))
    return projections


def by_fft(inputs: Degrees, outputs: Degrees, signals: list[Signal]) -> Projections:
    """By fast Fourier transforms of the smallest size that is exact for all products."""
    to_series, back = series_tables(inputs, outputs, len(signals))
    bound, kept = max(inputs), max(outputs)
    sizes = fft_sizes(bound * len(signals), (bound,) * len(signals), kept)
    value, *others = (to_torus(_coefficients(inputs, to_series, s), sizes) for s in signals)
    projections = []
    for n, other in enumerate(others):
        value = value * other
        unused = bound * (len(signals) - n - 2)
        x = from_torus(value, kept)[unused : sizes[0] - unused]
        projections.append(_project(back[n], x, signals[0][0]))
    return projections


def by_coefficients(inputs: Degrees, outputs: Degrees, signals: list[Signal]) -> Projections:
    """By dense Gaunt coefficients, one factor after the other: the plain form."""
    factor = Irreps([(1, (l, (-1) ** l)) for l in inputs])
    irreps, value, projections = factor, signals[0], []
    for signal in signals[1:]:
        highest = max(ir.l for _, ir in irreps) + max(inputs)
        product = Gaunt(irreps, factor, spherical_irreps(highest))
        value = dense(product, value, signal)
        irreps = product.irreps_out
        reached = [out.irrep.l for out in product.outputs]
        projections.append(
            {n: value[reached.index(l)] for n, l in enumerate(outputs) if l in reached}
        )
    return projections
