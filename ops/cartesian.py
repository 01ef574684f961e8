"""The Cartesian product: features as tensors with indices x, y, z, multiplied by contraction.

Two forms, with the factorised weights of `Factorised`:

'matrix' (degrees to 2): a scalar, a vector and a symmetric traceless tensor are one 3 x 3 matrix,

    X = x_0 / sqrt(3) + eps x_1 / sqrt(2) + S(x_2),     Z = X Y

as in TensorNet (Simeon & De Fabritiis, NeurIPS 2023, arXiv:2306.06482). With parity, features of
natural parity (0e, 1o, 2e) give such features by (X Y + Y X) / 2, the even paths, and pseudo ones
(0o, 1e, 2o) by (X Y - Y X) / 2, the odd paths; 'SO3' ignores parity and takes X Y. The coefficients
are those of the matrix product with q = 1.

'irreducible' (degrees to 4): each degree is a symmetric traceless tensor, and each path a
contraction as in `cartesian_tensors.py`, whose factor kappa is the coefficient. All paths.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import sqrt
from typing import ClassVar, Literal, cast

import jax

from eqnet.irreps import Irrep
from eqnet.ops.cartesian_tensors import HIGHEST_RANK, contraction, path_factor, to_tensor
from eqnet.ops.cp_tensor import Group
from eqnet.ops.factorised import Core, Factorised, Output
from eqnet.ops.factorised_edges import messages, rows
from eqnet.ops.matrix import Graded, from_matrices, six_j, to_matrices
from eqnet.ops.matrix import matmul as matrix_product
from eqnet.ops.product import Declaration, Kernel

Form = Literal["matrix", "irreducible"]


def einsum(product: Factorised, left: list[jax.Array], right: list[jax.Array]) -> list[jax.Array]:
    """The core by contraction of the indices of each path."""
    xs = [to_tensor(ir.l, block) for ir, block in zip(product.left, left, strict=True)]
    ys = [to_tensor(ir.l, block) for ir, block in zip(product.right, right, strict=True)]
    values: list = [0.0] * len(product.outputs)
    for path in product.couplings:
        out = product.outputs[path.out].irrep.l
        degrees = (product.left[path.left].l, product.right[path.right].l, out)
        term = contraction(degrees, xs[path.left], ys[path.right])
        values[path.out] = values[path.out] + path.coefficient / path_factor(*degrees) * term
    return values


def matmul(product: Factorised, left: list[jax.Array], right: list[jax.Array]) -> list[jax.Array]:
    """The core by products of 3 x 3 matrices.

    Raises:
        ValueError: the product is not of the form 'matrix'.
    """
    cartesian = cast("Cartesian", product)
    if cartesian.resolved_form != "matrix":
        raise ValueError(
            "cartesian has method 'matmul' for degrees up to 2 only, which are 3 x 3 matrices; "
            "its methods for higher degrees and for form 'irreducible' are rows, einsum, dense"
        )
    xs = to_matrices(1, tuple(cartesian.signal(ir) for ir in product.left), left)
    ys = to_matrices(1, tuple(cartesian.signal(ir) for ir in product.right), right)
    signals = [cartesian.signal(out.irrep) for out in product.outputs]
    z: Graded = {}
    for p, x in xs.items():
        for r, y in ys.items():
            for parity, term in cartesian.products(p * r, x, y, {ir.p for ir in signals}):
                z[parity] = z[parity] + term if parity in z else term
    return from_matrices(1, signals, z)


@dataclass(frozen=True)
class Cartesian(Factorised):
    """The product of Cartesian tensors; other arguments, weights and errors of `Factorised`.

    Args:
        form: 'matrix' or 'irreducible', see above; None for 'matrix' if all degrees are at most 2,
            otherwise 'irreducible'.
        group: 'O3', or 'SO3' to couple without regard to parity.
    """

    form: Form | None = None
    group: Group = "O3"

    name: ClassVar[str] = "cartesian"
    cores: ClassVar[dict[str, Core]] = {"einsum": einsum, "matmul": matmul}
    kernels: ClassVar[dict[str, Kernel]] = {
        "rows": rows,
        "einsum": messages(einsum),
        "matmul": messages(matmul),
    }

    def __post_init__(self) -> None:
        highest = max(ir.l for ir in (*self.left, *self.right))
        if self.form == "matrix" and highest > 2:
            raise ValueError(
                f"a 3 x 3 matrix holds degrees up to 2, not {highest}; take form 'irreducible'"
            )
        if max(highest, self._highest_target) > HIGHEST_RANK:
            raise ValueError(
                f"cartesian stops at degree {HIGHEST_RANK}, a tensor of 3^{HIGHEST_RANK} numbers: "
                f"{self.irreps_left} x {self.irreps_right} to {self.irreps_target}; matrix, gaunt "
                "and clebsch_gordan take any degree"
            )
        super().__post_init__()

    @property
    def _highest_target(self) -> int:
        """Highest degree of the target that the inputs can reach."""
        reach = max(ir.l for ir in self.left) + max(ir.l for ir in self.right)
        return max((ir.l for _, ir in self.irreps_target if ir.l <= reach), default=0)

    @property
    def resolved_form(self) -> Form:
        """The form, also where it was left open."""
        highest = max(self._highest_target, *(ir.l for ir in (*self.left, *self.right)))
        return self.form or ("matrix" if highest <= 2 else "irreducible")

    def coefficient(self, left: Irrep, right: Irrep, out: Irrep) -> float:
        """That of the matrix product with q = 1, or kappa; see above."""
        if self.resolved_form == "irreducible":
            return path_factor(left.l, right.l, out.l)
        scale = (-1) ** out.l * sqrt(left.dim * right.dim * out.dim)
        return scale * six_j(left.l, right.l, out.l, 1, 1, 1)

    @cached_property
    def paths(self) -> tuple[tuple[int, int, Output, float], ...]:
        """(left block, right block, output, coefficient) of each non-zero path to the target."""
        if self.group == "O3":
            return super().paths
        return tuple(
            (i, j, Output(out, 0), g)
            for i, left in enumerate(self.left)
            for j, right in enumerate(self.right)
            for out in sorted({ir for _, ir in self.irreps_target})
            if abs(left.l - right.l) <= out.l <= left.l + right.l
            and abs(g := self.coefficient(left, right, out)) > 1e-12
        )

    @cached_property
    def declaration(self) -> Declaration:
        """Exact; operations are those of the plain form."""
        return replace(super().declaration, group=self.group)

    def signal(self, ir: Irrep) -> Irrep:
        """The degree with the parity of its signal, p (-1)^l: 1 where natural, -1 where pseudo."""
        return Irrep(ir.l, ir.p * (-1) ** ir.l if self.group == "O3" else 1)

    def products(
        self, parity: int, x: jax.Array, y: jax.Array, wanted: set[int]
    ) -> Iterator[tuple[int, jax.Array]]:
        """(parity of signals, matrices) that X Y gives, with the product of parities of X and Y."""
        forward = matrix_product(x, y)
        if self.group == "SO3":
            yield 1, forward
            return
        backward = matrix_product(y, x)
        if parity in wanted:
            yield parity, 0.5 * (forward + backward)
        if -parity in wanted:
            yield -parity, 0.5 * (forward - backward)
