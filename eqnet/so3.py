"""Rotations: Clebsch-Gordan tables, spherical harmonics, Wigner D matrices, edge frames.

Conventions are those of e3nn-jax: real basis, polar axis y, l = 1 is (x, y, z). Tables are made
once in float64 numpy and cast where they are used.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

HIGHEST = jax.lax.Precision.HIGHEST


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """A proper rotation, uniform up to the conventions of the factorisation, [3, 3]."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.linalg.det(q)


def random_elements(
    rng: np.random.Generator, number: int, group: str = "O3"
) -> Iterator[np.ndarray]:
    """Rotations [3, 3], drawn one by one; every second one improper in 'O3', none in 'SO3'."""
    for n in range(number):
        yield random_rotation(rng) * (-1 if group == "O3" and n % 2 else 1)


@cache
def clebsch_gordan(l1: int, l2: int, l3: int) -> np.ndarray:
    """Real Clebsch-Gordan coefficients [2 l1 + 1, 2 l2 + 1, 2 l3 + 1], float64, of unit norm."""
    import e3nn_jax

    table = np.array(e3nn_jax.clebsch_gordan(l1, l2, l3), dtype=np.float64)
    table[np.abs(table) < 1e-14] = 0.0
    table.flags.writeable = False
    return table


@cache
def _ascent(l: int) -> tuple[tuple[tuple[int, int, float], ...], ...]:
    """Terms (a, b, c) with Y_l[m] = sum c Y_1[a] Y_{l-1}[b], all component-normalised.

    The product of Y_1 and Y_{l-1} projected on degree l is proportional to Y_l; at the pole, where
    only m = 0 is left and Y_l = sqrt(2 l + 1), the factor can be read off.
    """
    table = clebsch_gordan(1, l - 1, l)
    at_pole = table[1, l - 1, l] * np.sqrt(3.0) * np.sqrt(2 * l - 1)
    table = table * (np.sqrt(2 * l + 1) / at_pole)
    return tuple(
        tuple((int(a), int(b), float(table[a, b, m])) for a, b in np.argwhere(table[:, :, m]))
        for m in range(2 * l + 1)
    )


def spherical_harmonics(l_max: int, unit: jax.Array) -> list[jax.Array]:
    """Real spherical harmonics of unit vectors, component-normalised (sum over m of Y^2 = 2 l + 1).

    Args:
        l_max: highest degree.
        unit: [..., 3], of length one.

    Returns:
        One array [..., 2 l + 1] for each l = 0 .. l_max.
    """
    first = [np.sqrt(3.0).astype(unit.dtype) * unit[..., a] for a in range(3)]
    rows = [[jnp.ones_like(unit[..., 0])], first]
    for l in range(2, l_max + 1):
        rows.append(
            [
                sum(np.asarray(c, unit.dtype) * first[a] * rows[-1][b] for a, b, c in terms)
                for terms in _ascent(l)
            ]
        )
    return [jnp.stack(r, axis=-1) for r in rows[: l_max + 1]]


@cache
def generators(l: int) -> np.ndarray:
    """Derivatives of D^l at the identity, [2 l + 1, 3, 2 l + 1]: rotations about x, y, z."""
    if l == 0:
        return np.zeros((1, 3, 1))
    if l == 1:
        # the change of e_j turned about e_a is e_a x e_j
        return np.cross(np.eye(3)[:, None], np.eye(3)).transpose(2, 0, 1)
    c, first, lower = clebsch_gordan(1, l - 1, l), generators(1), generators(l - 1)
    table = np.einsum("aup,abk,pbq->kuq", first, c, c) + np.einsum("bup,abk,apq->kuq", lower, c, c)
    return (2 * l + 1) * table


def wigner_d(l_max: int, rotation: jax.Array) -> list[jax.Array]:
    """Wigner D matrices of rotations by recursion in l: no angles, polynomial in the matrix.

    D^l = (2 l + 1) sum C_{abc} C_{a'b'c'} D^1_{aa'} D^{l-1}_{bb'} with C = C(1, l-1, l). The
    derivative is that of the group, D^l(R exp w) = D^l(R) + D^l(R) sum_a w_a J^l_a, which costs
    less than half of following the recursion backwards.

    Args:
        l_max: highest degree.
        rotation: [..., 3, 3] acting on (x, y, z).

    Returns:
        One array [..., 2 l + 1, 2 l + 1] for each l = 0 .. l_max, with Y(R r) = D Y(r).
    """
    return _wigner_d(l_max, rotation)


def _recursion(l_max: int, rotation: jax.Array) -> list[jax.Array]:
    matrices = [jnp.ones((*rotation.shape[:-2], 1, 1), rotation.dtype), rotation]
    for l in range(2, l_max + 1):
        c = jnp.asarray(np.sqrt(2 * l + 1) * clebsch_gordan(1, l - 1, l), rotation.dtype)
        half = jnp.einsum("abc,...bq->...acq", c, matrices[-1], precision=HIGHEST)
        half = jnp.einsum("...acq,...ap->...cpq", half, rotation, precision=HIGHEST)
        matrices.append(jnp.einsum("...cpq,pqk->...ck", half, c, precision=HIGHEST))
    return matrices[: l_max + 1]


_wigner_d = jax.custom_jvp(_recursion, nondiff_argnums=(0,))


@_wigner_d.defjvp
def _group_derivative(
    l_max: int, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[list[jax.Array], list[jax.Array]]:
    (rotation,), (change,) = primals, tangents
    matrices = _wigner_d(l_max, rotation)
    spin = jnp.einsum("...ba,...bc->...ac", rotation, change, precision=HIGHEST)
    spin = (spin - spin.swapaxes(-1, -2)) / 2
    w = jnp.stack([spin[..., 2, 1], spin[..., 0, 2], spin[..., 1, 0]], axis=-1)
    changes = [jnp.zeros_like(matrices[0])]
    for l, matrix in enumerate(matrices[1:], start=1):
        table = jnp.asarray(generators(l), rotation.dtype)
        turned = jnp.einsum("...ij,jak->...iak", matrix, table, precision=HIGHEST)
        changes.append(jnp.einsum("...a,...iak->...ik", w, turned, precision=HIGHEST))
    return matrices, changes


def edge_frame(unit: jax.Array) -> jax.Array:
    """Rotations R with R n = y for unit vectors n, [..., 3] -> [..., 3, 3].

    Gram-Schmidt with the Cartesian axis least aligned with n; the rows are (x', n, z'). Never near
    degenerate; where the choice of axis switches, the frame jumps by a roll about n only.
    """
    axis = jax.nn.one_hot(jnp.argmin(jnp.abs(jax.lax.stop_gradient(unit)), -1), 3, dtype=unit.dtype)
    x = jnp.cross(unit, axis)
    x = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    return jnp.stack([x, unit, jnp.cross(x, unit)], axis=-2)
