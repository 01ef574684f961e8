"""Powers of one feature as powers of its matrix: X, X^2, X^3, ... (see `matrix.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from eqnet.irreps import Irrep, Irreps, IrrepsArray
from eqnet.ops.iterated_power import IteratedPower
from eqnet.ops.matrix import MULTIPLY, Matrix, from_matrices, multiplied, to_matrices


@dataclass(frozen=True)
class MatrixPower(IteratedPower):
    """Powers of a matrix, with one weight per order, output irrep and channel.

    All degrees up to 2 q are kept between the factors, q = ceil(highest degree / 2). Each product
    is divided by sqrt(2 q + 1), the growth of the entries of a power of a random matrix.
    """

    methods: ClassVar[tuple[str, ...]] = (*MULTIPLY, "dense")

    @property
    def spin(self) -> int:
        """The q of the matrices."""
        return -(-max(ir.l for _, ir in self.irreps_in + self.irreps_out) // 2)

    @cached_property
    def hidden(self) -> tuple[Irrep, ...]:
        """All irreps that fit in a matrix, of the parities that powers of the feature have."""
        parities = {1, *(ir.p for _, ir in self.irreps_in + self.irreps_out)}
        return tuple(Irrep(l, p) for l in range(2 * self.spin + 1) for p in sorted(parities))

    @cached_property
    def table(self) -> np.ndarray:
        """T of the product hidden x in -> hidden, float64."""
        hidden, inputs = (Irreps([(1, ir) for ir in side]) for side in (self.hidden, self.inputs))
        product = Matrix(hidden, inputs, hidden)
        table = np.zeros((self.embedding.shape[1], *self.embedding.shape))
        starts = np.cumsum([0, *(ir.dim for ir in self.inputs)])
        for path in product.couplings:
            left = self.component(self.hidden[path.left])
            right = slice(starts[path.right], starts[path.right + 1])
            out = self.component(product.outputs[path.out].irrep)
            table[left, right, out] = product.table(path)
        return table / np.sqrt(2 * self.spin + 1)

    def __call__(self, x: IrrepsArray, weights: jax.Array, method: str = "columns") -> IrrepsArray:
        """The powers of each atom and channel.

        Args:
            x: [N, irreps_in].
            weights: [N, num_weights, C].
            method: 'columns', 'matmul', or 'dense' for the plain form.

        Returns:
            [N, irreps_out].
        """
        if method == "dense":
            return self.dense(x, weights)
        base = to_matrices(self.spin, self.inputs, x.blocks)
        scale = jnp.asarray((2 * self.spin + 1) ** -0.5, x.array.dtype)
        scaled = {p: scale * matrix for p, matrix in base.items()}
        orders, power = [], base
        for order in range(self.correlation):
            if order:
                power = multiplied(power, scaled, MULTIPLY[method])
            there = [ir for ir in self.outputs if ir.p in power]
            orders.append(dict(zip(there, from_matrices(self.spin, there, power), strict=True)))
        return self.combined(orders, weights)
