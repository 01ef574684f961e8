"""Cartesian tensors and irreps: conversion both ways, and products by contraction of indices.

Degree l is a symmetric traceless tensor of l indices (x, y, z). A product of degrees l1 and l2 to
l3 contracts k pairs of indices, with one epsilon if l1 + l2 + l3 is odd, and keeps the symmetric
traceless part:

    Z_{ab} = P sum_{s}  X_{s a} Y_{s b},                      k = (l1 + l2 - l3) / 2 indices s
    Z_{abw} = P sum_{s u v} eps_{uvw} X_{s a u} Y_{s b v},    k = (l1 + l2 - l3 - 1) / 2

Up to a positive factor this is the Clebsch-Gordan path of these degrees (Zaverkin et al., NeurIPS
2024, arXiv:2405.14253, use such products in message passing).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np

from eqnet.irreps import Irreps, IrrepsArray
from eqnet.so3 import HIGHEST, clebsch_gordan

LETTERS = "abcdefghijkl"
HIGHEST_RANK = 4
# eps_{abc}: the determinant of the unit vectors a, b, c
EPSILON = np.linalg.det(np.eye(3)[np.indices((3, 3, 3)).transpose(1, 2, 3, 0)])


@cache
def traceless_basis(l: int) -> np.ndarray:
    """Orthonormal symmetric traceless tensors of degree l, [3, ..., 3, 2 l + 1], float64.

    The product of a vector with degree l - 1, coupled to the highest degree.
    """
    if l == 0:
        return np.ones(1)
    table = np.sqrt(2 * l + 1) * clebsch_gordan(1, l - 1, l)
    return np.einsum("abm,...b->a...m", table, traceless_basis(l - 1))


def to_tensor(l: int, block: jax.Array) -> jax.Array:
    """[..., 2 l + 1, C] -> symmetric traceless [..., 3, ..., 3, C], of the same norm."""
    basis = jnp.asarray(traceless_basis(l), block.dtype)
    indices = LETTERS[:l]
    return jnp.einsum(f"...mz,{indices}m->...{indices}z", block, basis, precision=HIGHEST)


def to_block(l: int, tensor: jax.Array) -> jax.Array:
    """Symmetric traceless part of [..., 3, ..., 3, C] (l indices) -> [..., 2 l + 1, C]."""
    basis = jnp.asarray(traceless_basis(l), tensor.dtype)
    indices = LETTERS[:l]
    return jnp.einsum(f"...{indices}z,{indices}m->...mz", tensor, basis, precision=HIGHEST)


def contraction(degrees: tuple[int, int, int], x: jax.Array, y: jax.Array) -> jax.Array:
    """The path of these degrees by contraction: see above.

    Args:
        degrees: (l1, l2, l3), a triangle.
        x: symmetric traceless tensors [..., 3, ..., 3, C] with l1 indices.
        y: with l2 indices.

    Returns:
        [..., 2 l3 + 1, C].
    """
    first, second, out, odd = _indices(*degrees)
    if odd:
        epsilon = jnp.asarray(EPSILON, x.dtype)
        x = jnp.einsum(f"...{first}z,uvw->...{first[:-1]}vwz", x, epsilon, precision=HIGHEST)
        first = first[:-1] + "vw"
    form = f"...{first}z,...{second}z->...{out}z"
    return to_block(degrees[2], jnp.einsum(form, x, y, precision=HIGHEST))


@cache
def path_factor(l1: int, l2: int, l3: int) -> float:
    """The positive factor kappa in contraction = kappa C, C of unit norm."""
    first, second, out, odd = _indices(l1, l2, l3)
    x, y, z = (traceless_basis(l) for l in (l1, l2, l3))
    epsilon = ("uvw,", [EPSILON]) if odd else ("", [])
    form = f"{first}I,{second}J,{epsilon[0]}{out}K->IJK"
    table = np.einsum(form, x, y, *epsilon[1], z, optimize=True)
    return float(np.vdot(table, clebsch_gordan(l1, l2, l3)))


def _indices(l1: int, l2: int, l3: int) -> tuple[str, str, str, bool]:
    """Indices of x, of y and of their contraction (with eps_uvw if odd), and whether it is odd."""
    odd = (l1 + l2 + l3) % 2
    pairs = (l1 + l2 - l3 - odd) // 2
    shared, free = LETTERS[:pairs], LETTERS[pairs : l1 + l2 - pairs - 2 * odd]
    a, b = free[: l1 - pairs - odd], free[l1 - pairs - odd :]
    u, v, w = "uvw" if odd else ("", "", "")
    return shared + a + u, shared + b + v, a + b + w, bool(odd)


@cache
def cartesian_basis(symmetry: str) -> tuple[Irreps, np.ndarray]:
    """The irreps of Cartesian tensors with index symmetries, and an orthonormal basis of them.

    Args:
        symmetry: as 'ij=ji' (symmetric), 'ij=-ji', 'ijk', 'ijkl=jikl=ijlk=klij' (elasticity); ''
            for a scalar.

    Returns:
        irreps, and [3, ..., 3, irreps.dim] in ir_mul order.

    Raises:
        ValueError: more than four indices.
    """
    rank = len(symmetry.split("=")[0])
    if not rank:
        return Irreps("1x0e"), np.ones(1)
    if rank > HIGHEST_RANK:
        raise ValueError(f"'{symmetry}' has {rank} indices; up to {HIGHEST_RANK} are supported")
    letters: dict[str, Any] = {letter: "1o" for letter in symmetry if letter.isalpha()}
    found = e3nn.reduced_tensor_product_basis(symmetry, **letters)
    # e3nn stores [mul, 2 l + 1] per irrep
    order = [
        np.arange(slot.start, slot.stop).reshape(mul, ir.dim).T.ravel()
        for (mul, ir), slot in zip(found.irreps, found.irreps.slices(), strict=True)
    ]
    return found.irreps, np.asarray(found.array, np.float64)[..., np.concatenate(order)]


def to_irreps(symmetry: str, tensor: jax.Array) -> IrrepsArray:
    """The part of tensors [..., 3, ..., 3] that has the symmetry, as irreps; see `from_irreps`."""
    irreps, basis = cartesian_basis(symmetry)
    rank = basis.ndim - 1
    values = jnp.tensordot(tensor, jnp.asarray(basis, tensor.dtype), rank, precision=HIGHEST)
    return IrrepsArray(irreps, values)


def from_irreps(symmetry: str, x: IrrepsArray) -> jax.Array:
    """Irreps of `cartesian_basis(symmetry)` -> Cartesian tensors [..., 3, ..., 3], same norm.

    Raises:
        ValueError: the irreps are others.
    """
    irreps, basis = cartesian_basis(symmetry)
    if x.irreps != irreps:
        raise ValueError(f"tensors '{symmetry}' have irreps {irreps}, not {x.irreps}")
    table = jnp.asarray(np.moveaxis(basis, -1, 0), x.array.dtype)
    return jnp.tensordot(x.array, table, 1, precision=HIGHEST)
