"""Functions on the sphere as Fourier series in both angles, after Luo et al., arXiv:2401.10216.

A spherical harmonic of degree l, continued by its own formula to polar angles beyond pi, is a
trigonometric polynomial on a torus,

    Y(a, p) = sum_{|u| <= l, |v| <= l} F_uv exp(i (u a + v p)),

so that products of functions are convolutions of their coefficients. Functions are real: the
coefficients at v >= 0 are stored, F_{-u,-v} is the conjugate of F_uv. The way back from a series X,

    z = integral over the sphere of Y X = sum_uv X_uv Z_uv,

has closed coefficients Z, because the integral of exp(i n a) sin a over a from 0 to pi is
(1 + (-1)^n) / (1 - n^2), and +- i pi / 2 at n = +-1.
"""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from eqnet.ops.sphere import legendre


@cache
def series(l: int, bound: int) -> np.ndarray:
    """F of the orthonormal harmonics of degree l: [2 (re, im), 2 bound + 1, bound + 1, 2 l + 1].

    Index u + bound, then v.
    """
    table = np.zeros((2 * bound + 1, bound + 1, 2 * l + 1), complex)
    inner = slice(bound - l, bound + l + 1)
    for m, polar in enumerate(_polar_series(l)):
        if m == 0:
            table[inner, 0, l] = polar
        else:  # sqrt(2) cos and sqrt(2) sin
            table[inner, m, l + m] = polar / np.sqrt(2)
            table[inner, m, l - m] = -1j * polar / np.sqrt(2)
    return np.stack([np.real(table), np.imag(table)])


@cache
def projection(l: int, polar_bound: int, azimuth_bound: int) -> np.ndarray:
    """Z for degree l, [2, 2 polar_bound + 1, azimuth_bound + 1, 2 l + 1].

    z is the sum of these times the real and imaginary parts of the coefficients at v >= 0.
    """
    table = np.zeros((2 * polar_bound + 1, azimuth_bound + 1, 2 * l + 1), complex)
    u = np.arange(-polar_bound, polar_bound + 1)
    for m, polar in enumerate(_polar_series(l)[: azimuth_bound + 1]):
        moments = _sine_moment(u[:, None] + np.arange(-l, l + 1)) @ polar
        if m == 0:
            table[:, 0, l] = 2 * np.pi * moments
        else:  # twice: the terms at -v are the conjugates of those at v
            table[:, m, l + m] = 2 * np.sqrt(2) * np.pi * moments
            table[:, m, l - m] = 2j * np.sqrt(2) * np.pi * moments
    return np.stack([np.real(table), -np.imag(table)])


def _polar_series(l: int) -> np.ndarray:
    """Coefficients of the Legendre functions of degree l, [l + 1, 2 l + 1], index u + l.

    2 l + 1 samples determine a polynomial of degree l in exp(+-i a).
    """
    size = 2 * l + 1
    samples = legendre(l, 2 * np.pi / size * np.arange(size))
    return np.fft.fftshift(np.fft.fft(samples, axis=1) / size, axes=1)


def _sine_moment(n: np.ndarray) -> np.ndarray:
    """Integral of exp(i n a) sin a over a from 0 to pi."""
    one = np.abs(n) == 1
    even = np.where(n % 2 == 0, 2.0, 0.0) / np.where(one, 1, 1 - n**2)
    return np.where(one, 0.5j * np.pi * n, even)


def convolve(x: jax.Array, y: jax.Array, azimuth_bound: int) -> jax.Array:
    """Coefficients of a product of two functions by direct convolution.

    Args:
        x: [2 U1 + 1, V1 + 1, n], complex.
        y: [2 U2 + 1, V2 + 1, n].
        azimuth_bound: V, highest v to keep.

    Returns:
        [2 (U1 + U2) + 1, V + 1, n].
    """
    x, y = _both_signs(x), _both_signs(y)
    left, right = x.shape[1] // 2, y.shape[1] // 2
    y = jnp.pad(y, ((0, 0), (left, max(left + azimuth_bound - right, 0)), (0, 0)))

    def add(out: jax.Array, term: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        u, start, value = term
        shifted = value * jax.lax.dynamic_slice_in_dim(y, start, azimuth_bound + 1, axis=1)
        sum_here = jax.lax.dynamic_slice_in_dim(out, u, len(y)) + shifted
        return jax.lax.dynamic_update_slice_in_dim(out, sum_here, u, 0), None

    # a loop over the terms of x: unrolled, the compiler repeats one product inside the next
    rows = jnp.repeat(jnp.arange(x.shape[0]), x.shape[1])
    starts = jnp.tile(left + right - jnp.arange(-left, left + 1), x.shape[0])
    out = jnp.zeros((x.shape[0] + y.shape[0] - 1, azimuth_bound + 1, x.shape[2]), x.dtype)
    return jax.lax.scan(add, out, (rows, starts, x.reshape(-1, x.shape[2])))[0]


def to_complex(field: jax.Array, bound: int) -> jax.Array:
    """[2 (2 U + 1) (V + 1), n], as made by `series`, -> coefficients [2 U + 1, V + 1, n]."""
    parts = field.reshape(2, 2 * bound + 1, bound + 1, -1)
    return jax.lax.complex(parts[0], parts[1])


def to_real(x: jax.Array) -> jax.Array:
    """The inverse of `to_complex`."""
    return jnp.stack([x.real, x.imag]).reshape(-1, x.shape[-1])


def _both_signs(x: jax.Array) -> jax.Array:
    """[2 U + 1, V + 1, n] -> [2 U + 1, 2 V + 1, n] with the conjugates at negative v."""
    return jnp.concatenate([jnp.conj(x[::-1, :0:-1]), x], axis=1)


def fft_sizes(polar_bound: int, azimuth_bounds: tuple[int, ...], kept: int) -> tuple[int, int]:
    """Points of the torus for a product of which the coefficients at |v| <= `kept` are wanted.

    Of the polar angle every frequency is needed, because sin a on half a period is not
    band-limited; of the azimuth those that are kept must not be reached by the others.

    Args:
        polar_bound: highest u of the product.
        azimuth_bounds: highest v of each factor.
        kept: highest v of the result.
    """
    azimuths = max(sum(azimuth_bounds) + kept, 2 * max(azimuth_bounds)) + 1
    return 2 * polar_bound + 1, azimuths


def to_torus(x: jax.Array, sizes: tuple[int, int]) -> jax.Array:
    """Values at uniform points of the torus, [2 U + 1, V + 1, n] -> [*sizes, n]."""
    bound = x.shape[0] // 2
    zeros = jnp.zeros((sizes[0] - x.shape[0], *x.shape[1:]), x.dtype)
    ordered = jnp.concatenate([x[bound:], zeros, x[:bound]])
    return jnp.fft.irfft2(ordered, s=sizes, axes=(0, 1), norm="forward")


def from_torus(values: jax.Array, azimuth_bound: int) -> jax.Array:
    """Coefficients of values at an odd number of polar points, [2 U + 1, azimuth_bound + 1, n]."""
    x = jnp.fft.rfft2(values, axes=(0, 1), norm="forward")[:, : azimuth_bound + 1]
    bound = x.shape[0] // 2
    return jnp.concatenate([x[bound + 1 :], x[: bound + 1]])
