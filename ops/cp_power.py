"""Powers of one feature by the CP product: z_n = T(z_{n-1}, x) with the stacked tensor T."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from eqnet.irreps import Irrep, Irreps, IrrepsArray, regrouped
from eqnet.ops.cp import CP
from eqnet.ops.cp_tensor import Group
from eqnet.ops.iterated_power import IteratedPower
from eqnet.so3 import HIGHEST


@dataclass(frozen=True)
class CPPower(IteratedPower):
    """Iterated CP products; see `IteratedPower` for the first arguments and `CP` for the others.

    The hidden irreps are those of the input and of the output. All paths share their weight, so
    that an order has one weight per output irrep and channel.
    """

    rank: int | None = None
    tolerance: float | None = None
    group: Group = "O3"

    methods: ClassVar[tuple[str, ...]] = ("factors", "dense")

    @cached_property
    def hidden(self) -> tuple[Irrep, ...]:
        """Irreps of the input and of the output."""
        return tuple(ir for _, ir in regrouped(self.irreps_in + self.irreps_out))

    @cached_property
    def product(self) -> CP:
        """Of one channel, hidden x in -> those of hidden that are reached."""
        hidden, inputs = (Irreps([(1, ir) for ir in side]) for side in (self.hidden, self.inputs))
        return CP(hidden, inputs, hidden, self.rank, self.tolerance, self.group)

    @cached_property
    def table(self) -> np.ndarray:
        """T of the product hidden x in -> hidden, float64."""
        return self.product.table @ self._reached

    @cached_property
    def _reached(self) -> np.ndarray:
        """[d_out of the product, d_hidden] of zeros and ones."""
        identity = np.eye(sum(ir.dim for ir in self.hidden))
        return np.concatenate([identity[self.component(ir)] for ir in self.product.stacked.out])

    def __call__(self, x: IrrepsArray, weights: jax.Array, method: str = "factors") -> IrrepsArray:
        """The powers of each atom and channel.

        Args:
            x: [N, irreps_in].
            weights: [N, num_weights, C].
            method: 'factors', or 'dense' for the plain form.

        Returns:
            [N, irreps_out].
        """
        if method == "dense":
            return self.dense(x, weights)
        feature = jnp.concatenate(x.blocks, axis=1)
        a, b, q = self.product.factors
        a, b, q, first = (
            jnp.asarray(f, feature.dtype) for f in (a, b, self._reached.T @ q, self.embedding.T)
        )
        z = jnp.einsum("nic,hi->nhc", feature, first, precision=HIGHEST)
        right = jnp.einsum("nic,ir->nrc", feature, b, precision=HIGHEST)
        orders = []
        for order in range(self.correlation):
            if order:
                left = jnp.einsum("nhc,hr->nrc", z, a, precision=HIGHEST)
                z = jnp.einsum("nrc,hr->nhc", left * right, q, precision=HIGHEST)
            orders.append({ir: z[:, self.component(ir)] for ir in self.outputs})
        return self.combined(orders, weights)
