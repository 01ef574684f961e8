"""The vector-signal product: x and y are vector fields on the sphere, multiplied by cross product.

    z_k = integral over the sphere of Y^{l3}_{j3 k} . (V1 x V2),    V1 = sum_i x_i Y^{l1}_{j1 i}

with vector spherical harmonics of total degree j whose components have degree l,

    Y^l_{j k, s} = sqrt(2 j + 1) sum_m C(l, 1, j)[m, s, k] Y_{l m},    orthonormal.

A block is C(j1, j2, j3) times Gaunt(l1, l2, l3) 9j{l1 l2 l3; 1 1 1; j1 j2 j3} and constants, zero
unless l1 + l2 + l3 is even. One field per irrep is enough (arXiv:2603.08630, after
arXiv:2602.21466): with the offsets

    l1 = j1,    l2 = j2 + 1,    l3 = j3        (scalars on the left or out: l = 1, their only field)

the product has every odd path (j1 + j2 + j3 odd), and, by the fields of the scalars, (0, j, j) and
(j, j, 0) with j > 0; no other even path. As r x grad F is the field on the left and out, the odd
part is the surface bracket of `GauntBracket`, up to one constant for each degree of y and out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import ClassVar

import jax
import numpy as np

from eqnet.irreps import Irrep
from eqnet.ops.factorised import Core, Factorised
from eqnet.ops.factorised_edges import messages, rows
from eqnet.ops.factorised_sparse import sparse
from eqnet.ops.gaunt import gaunt_coefficient
from eqnet.ops.pointwise import Algebra, Pointwise, Table, field_class, grouped
from eqnet.ops.product import Kernel
from eqnet.ops.sphere import Grid, half_grid, harmonics
from eqnet.so3 import clebsch_gordan

CROSS: Algebra = tuple((o, (o + 1) % 3, (o + 2) % 3, 1) for o in range(3)) + tuple(
    (o, (o + 2) % 3, (o + 1) % 3, -1) for o in range(3)
)


def grid(product: Factorised, left: list[jax.Array], right: list[jax.Array]) -> list[jax.Array]:
    """The core: [..., 2 j + 1, C] of each left and right block -> of each output."""
    return tables(product)(left, right)


@dataclass(frozen=True)
class VectorGaunt(Factorised):
    """The cross product of vector fields; arguments, weights and errors of `Factorised`."""

    name: ClassVar[str] = "vector_gaunt"
    cores: ClassVar[dict[str, Core]] = {"grid": grid, "sparse": sparse}
    kernels: ClassVar[dict[str, Kernel]] = {
        "rows": rows,
        **{name: messages(core) for name, core in cores.items()},
    }

    def coefficient(self, left: Irrep, right: Irrep, out: Irrep) -> float:
        """See above; the 9j symbol as a sum over the tables that it recouples."""
        return vector_coefficient(left.l, right.l, out.l)

    @cached_property
    def total_degree(self) -> int:
        """Of the integrand: two fields r x grad F and one function, or gradients of two."""
        return (
            max(own_degree(self.left[i].l) for i, _, _, _ in self.paths)
            + max(self.right[j].l for _, j, _, _ in self.paths)
            + max(own_degree(out.irrep.l) for _, _, out, _ in self.paths)
            - 1
        )


def own_degree(j: int) -> int:
    """Degree of the components of the fields on the left and out."""
    return max(j, 1)


@cache
def vector_coefficient(j1: int, j2: int, j3: int) -> float:
    """Coefficient of C(j1, j2, j3) in the product."""
    l1, l2, l3 = own_degree(j1), j2 + 1, own_degree(j3)
    gaunt = gaunt_coefficient(l1, l2, l3) if abs(l1 - l2) <= l3 <= l1 + l2 else 0.0
    if gaunt == 0.0:
        return 0.0
    epsilon = np.zeros((3, 3, 3))
    for o, a, b, sign in CROSS:
        epsilon[a, b, o] = sign
    tables = [clebsch_gordan(l, 1, j) for l, j in ((l1, j1), (l2, j2), (l3, j3))]
    block = np.einsum(
        "abc,stu,asi,btj,cuk->ijk",
        gaunt * clebsch_gordan(l1, l2, l3),
        epsilon,
        *tables,
        optimize=True,
    )
    dims = (2 * j1 + 1) * (2 * j2 + 1) * (2 * j3 + 1)
    return float(np.sqrt(dims) * (block * clebsch_gordan(j1, j2, j3)).sum())


def vector_harmonics(j: int, l: int, points: Grid) -> np.ndarray:
    """The x, y and z component of each harmonic, [3, P, 2 j + 1]."""
    table = np.sqrt(2 * j + 1) * clebsch_gordan(l, 1, j)
    return np.einsum("pm,msk->spk", harmonics(l, points), table)


@cache
def tables(
    product: Factorised, latitudes: int | None = None, azimuths: int | None = None
) -> Pointwise:
    """Components of the fields at the points; arguments as for Gaunt."""
    points = half_grid(product.total_degree, latitudes, azimuths)

    def fields(blocks: list[tuple[int, Irrep, int]], weights: np.ndarray | float = 1.0):
        return grouped(
            Table(n, field_class(ir, l), component, weights * values)
            for n, ir, l in blocks
            for component, values in enumerate(vector_harmonics(ir.l, l, points))
        )

    left, right = product.left, product.right
    return Pointwise(
        fields([(n, left[n], own_degree(left[n].l)) for n in {p.left for p in product.couplings}]),
        fields([(n, right[n], right[n].l + 1) for n in {p.right for p in product.couplings}]),
        fields(
            [(n, o.irrep, own_degree(o.irrep.l)) for n, o in enumerate(product.outputs)],
            points.weights[:, None],
        ),
        CROSS,
    )
