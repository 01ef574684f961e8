"""Elasticity tensors: Mandel's 6 x 6 matrix, and tensors with a nonnegative energy of every strain.

With the orthonormal basis (xx, yy, zz, sqrt2 yz, sqrt2 xz, sqrt2 xy) of symmetric matrices the map
strain -> C : strain is a symmetric 6 x 6 matrix K, the energy of a strain is a quadratic form of K,
and a rotation acts on K by an orthogonal matrix Q. So f(Q K Q^T) = Q f(K) Q^T for every matrix
function, and a model makes C positive by one of them: the square (Grega et al., ICLR 2024,
arXiv:2401.16914) or the exponential.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from eqnet.so3 import HIGHEST

_PAIRS = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
# place of the pair (i, j) among the six, and the length of its basis matrix
_PLACE = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])
_FACTOR = np.where(np.arange(6) < 3, 1.0, np.sqrt(2.0))


def to_mandel(tensor: jax.Array) -> jax.Array:
    """[..., 3, 3, 3, 3] with the symmetries of an elasticity tensor -> [..., 6, 6]."""
    i, j = np.array(_PAIRS).T
    matrix = tensor[..., i[:, None], j[:, None], i, j]
    return matrix * jnp.asarray(np.outer(_FACTOR, _FACTOR), tensor.dtype)


def from_mandel(matrix: jax.Array) -> jax.Array:
    """[..., 6, 6], symmetric, -> [..., 3, 3, 3, 3]: equal entries are the same number, bit by bit.

    The upper triangle is taken.
    """
    upper = jnp.triu(matrix)
    matrix = upper + jnp.triu(matrix, 1).swapaxes(-1, -2)
    matrix = matrix / jnp.asarray(np.outer(_FACTOR, _FACTOR), matrix.dtype)
    return matrix[..., _PLACE[:, :, None, None], _PLACE]


def positive(tensor: jax.Array, how: str) -> jax.Array:
    """Matrix function of elasticity tensors [..., 3, 3, 3, 3]: no strain has a negative energy.

    Args:
        tensor: with the symmetries of an elasticity tensor.
        how: 'square', whose result may be singular, or 'exp', whose result is not.

    Raises:
        ValueError: another word.
    """
    functions = {"square": _square, "exp": jax.scipy.linalg.expm}
    if how not in functions:
        raise ValueError(f"there is no positive {how!r}; there are {', '.join(functions)}")
    return from_mandel(functions[how](to_mandel(tensor)))


def _square(matrix: jax.Array) -> jax.Array:
    return jnp.matmul(matrix, matrix, precision=HIGHEST)
