"""The Gaunt product and the surface bracket together: every path, with factorised weights.

    z_k = c_even Int Y_k F1 F2 + c_odd Int Y_k r . (grad F1 x grad F2)

The bracket has the odd paths (l1 + l2 + l3 odd), the Gaunt product the even ones; both are computed
from the same points. Degrees of the bracket's factors are scaled by 1 / sqrt(l (l + 1)), so that
gradients have the norm of values. Its blocks are h C with C of unit norm and

    h = sqrt((2 l1 + 1)(2 l2 + 1)(2 l3 + 1) / 4 pi) 3j(l1 l2 l3; 1 -1 0)

up to a sign that comes with the real basis: it is that of the entry of C at the cosine of x with
m = 1, the sine of y with m = 1, and m = 0, which has the value of the 3j symbol. The bracket
changes the parity of values, r being a vector, as cross products do. After arXiv:2605.15073.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import jax
import numpy as np

from eqnet.irreps import Irrep
from eqnet.ops.factorised import Core, Factorised
from eqnet.ops.factorised_edges import messages, rows
from eqnet.ops.factorised_sparse import sparse
from eqnet.ops.gaunt import gaunt_coefficient
from eqnet.ops.pointwise import VALUES, Algebra, Pointwise, Table, field_class, grouped
from eqnet.ops.product import Kernel
from eqnet.ops.sphere import Grid, gradients, half_grid, harmonics
from eqnet.so3 import clebsch_gordan

# values are component 0; the gradients of the inputs are 1 and 2, their bracket is 1
BRACKET: Algebra = ((1, 1, 2, 1), (1, 2, 1, -1))


def grid(product: Factorised, left: list[jax.Array], right: list[jax.Array]) -> list[jax.Array]:
    """The core: [..., 2 l + 1, C] of each left and right block -> of each output."""
    return tables(product)(left, right)


@dataclass(frozen=True)
class GauntBracket(Factorised):
    """Gaunt product plus surface bracket; arguments, weights and errors of `Factorised`.

    Of the two kinds of output, 0 is even and 1 is odd.
    """

    name: ClassVar[str] = "gaunt_bracket"
    cores: ClassVar[dict[str, Core]] = {"grid": grid, "sparse": sparse}
    kernels: ClassVar[dict[str, Kernel]] = {
        "rows": rows,
        **{name: messages(core) for name, core in cores.items()},
    }

    def coefficient(self, left: Irrep, right: Irrep, out: Irrep) -> float:
        """Coefficient g of even, h of odd paths; see above."""
        if self.kind(left, right, out) == 0:
            return gaunt_coefficient(left.l, right.l, out.l)
        if left.l == 0 or right.l == 0:
            return 0.0
        entry = clebsch_gordan(left.l, right.l, out.l)[left.l + 1, right.l - 1, out.l]
        return float(np.sqrt(left.dim * right.dim * out.dim / (4 * np.pi)) * entry)

    def kind(self, left: Irrep, right: Irrep, out: Irrep) -> int:
        """Whether the path is odd."""
        return (left.l + right.l + out.l) % 2


@cache
def tables(
    product: Factorised, latitudes: int | None = None, azimuths: int | None = None
) -> Pointwise:
    """Values and gradients at the points, those that the outputs need; arguments as for Gaunt."""
    points = half_grid(product.total_degree, latitudes, azimuths)
    kinds = {out.kind for out in product.outputs}
    algebra = (VALUES if 0 in kinds else ()) + (BRACKET if 1 in kinds else ())
    components = {a for _, a, _, _ in algebra}
    left = {path.left for path in product.couplings}
    right = {path.right for path in product.couplings}

    def fields(irreps: tuple[Irrep, ...], used: set[int]):
        return grouped(
            Table(n, field_class(ir, ir.l), a, values)
            for n, ir in enumerate(irreps)
            for a, values in enumerate(value_and_gradient(ir.l, points))
            if n in used and a in components
        )

    outputs = (
        # the bracket of two even fields is odd
        Table(
            n,
            field_class(out.irrep, out.irrep.l + out.kind),
            out.kind,
            points.weights[:, None] * harmonics(out.irrep.l, points),
        )
        for n, out in enumerate(product.outputs)
    )
    return Pointwise(
        fields(product.left, left), fields(product.right, right), grouped(outputs), algebra
    )


def value_and_gradient(l: int, points: Grid) -> np.ndarray:
    """Harmonics and the two components of their gradients, of equal norm, [3, P, 2 l + 1]."""
    values = harmonics(l, points)
    slopes = gradients(l, points) / np.sqrt(max(l * (l + 1), 1))
    return np.concatenate([values[None], slopes])
