"""The Gaunt product by Fourier series in both angles: direct convolution, or FFT."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import jax

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
from eqnet.ops.pointwise import Group, Table, from_fields, grouped, join, part, times, to_fields

if TYPE_CHECKING:
    from eqnet.ops.factorised import Factorised

Multiply = Callable[[jax.Array, jax.Array, int], jax.Array]


class Tables(NamedTuple):
    """Harmonics to coefficients and back, and the highest degree of each side."""

    left: tuple[Group, ...]
    right: tuple[Group, ...]
    out: tuple[Group, ...]
    degrees: tuple[int, int, int]


@cache
def tables(product: Factorised) -> Tables:
    """Coefficients of the harmonics in use; fields are told apart by the parity of their values."""
    used = {path.left for path in product.couplings}, {path.right for path in product.couplings}
    sides = [
        [(n, ir) for n, ir in enumerate(irreps) if n in some]
        for irreps, some in zip((product.left, product.right), used, strict=True)
    ]
    outputs = [(n, out.irrep) for n, out in enumerate(product.outputs)]
    left, right, out = (max(ir.l for _, ir in side) for side in (*sides, outputs))

    def table(n, ir, values):
        return Table(n, (ir.p * (-1) ** ir.l, 0), 0, values.reshape(-1, ir.dim))

    return Tables(
        grouped(table(n, ir, series(ir.l, left)) for n, ir in sides[0]),
        grouped(table(n, ir, series(ir.l, right)) for n, ir in sides[1]),
        grouped(table(n, ir, projection(ir.l, left + right, out)) for n, ir in outputs),
        (left, right, out),
    )


def by_series(
    product: Factorised, left: list[jax.Array], right: list[jax.Array], multiply: Multiply
) -> list[jax.Array]:
    """The core by a way to multiply two Fourier series, of which |v| up to a bound is kept."""
    to_x, to_y, back, (first, second, kept) = tables(product)
    lead = left[0].shape[:-2]
    x, y = to_fields(to_x, join(to_x, left, lead)), to_fields(to_y, join(to_y, right, lead))
    wanted = {group.key for group in back}
    z = {}
    for (key_x, _), f in x.items():
        for (key_y, _), g in y.items():
            key = times(key_x, key_y)
            if key in wanted:
                term = multiply(to_complex(f, first), to_complex(g, second), kept)
                z[key, 0] = z[key, 0] + to_real(term) if (key, 0) in z else to_real(term)
    blocks = part(back, from_fields(back, z, left[0].shape[-1]), lead)
    return [blocks[n] for n in sorted(blocks)]


def fourier(product: Factorised, left: list[jax.Array], right: list[jax.Array]) -> list[jax.Array]:
    """The core by direct convolution: [..., 2 l + 1, C] of each block -> of each output."""
    return by_series(product, left, right, convolve)


def fft(product: Factorised, left: list[jax.Array], right: list[jax.Array]) -> list[jax.Array]:
    """The core by fast Fourier transforms of the smallest exact size, as `fourier`."""

    def multiply(x: jax.Array, y: jax.Array, kept: int) -> jax.Array:
        bounds = x.shape[1] - 1, y.shape[1] - 1
        sizes = fft_sizes(sum(bounds), bounds, kept)
        return from_torus(to_torus(x, sizes) * to_torus(y, sizes), kept)

    return by_series(product, left, right, multiply)
