"""Powers of one feature by a bilinear product applied again and again.

    z_1 = x,    z_n = T(z_{n-1}, x),    out[ir, c] = sum_n w[ir, n, c] z_n[ir, c]

channel by channel, up to `correlation` factors: one weight for each output irrep and order, where
the symmetric contraction of MACE has one for each independent coupling. Intermediate features have
the irreps `hidden`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from eqnet.irreps import Irrep, Irreps, IrrepsArray, regrouped
from eqnet.so3 import HIGHEST

SAMPLES = 500


@dataclass(frozen=True)
class IteratedPower:
    """What such powers share; one adds `hidden`, `table` and its methods.

    Args:
        irreps_in: irreps of the feature, equal multiplicities.
        irreps_out: irreps to keep, with the same multiplicity.
        correlation: highest number of factors.

    Raises:
        ValueError: the multiplicities differ, or no product reaches one of `irreps_out`.
    """

    irreps_in: Irreps
    irreps_out: Irreps
    correlation: int

    def __post_init__(self) -> None:
        if len({mul for mul, _ in self.irreps_in + self.irreps_out}) != 1:
            raise ValueError(
                f"a power needs equal multiplicities: {self.irreps_in} to {self.irreps_out}"
            )
        reached = {ir for ir, _ in self.terms}
        for _, ir in self.irreps_out:
            if ir not in reached:
                raise ValueError(
                    f"no iterated product of up to {self.correlation} of {self.irreps_in} contains "
                    f"{ir}; the powers of clebsch_gordan have every one that exists"
                )

    @cached_property
    def hidden(self) -> tuple[Irrep, ...]:
        """Irreps of the intermediate features, those of the input and of the output among them."""
        raise NotImplementedError

    @cached_property
    def table(self) -> np.ndarray:
        """T of the product hidden x in -> hidden, float64."""
        raise NotImplementedError

    @property
    def inputs(self) -> tuple[Irrep, ...]:
        """The irrep of each input block."""
        return tuple(ir for _, ir in self.irreps_in)

    @property
    def outputs(self) -> tuple[Irrep, ...]:
        """The irrep of each output block."""
        return tuple(ir for _, ir in regrouped(self.irreps_out))

    @cached_property
    def _sizes(self) -> np.ndarray:
        """Root mean square of each output [output, order], for standard normal features.

        Orders that vanish, such as the commutator of a feature with itself, give 0.
        """
        x = np.random.default_rng(0).normal(size=(SAMPLES, sum(ir.dim for ir in self.inputs)))
        z, sizes = x @ self.embedding, []
        for order in range(self.correlation):
            if order:
                z = np.einsum("nh,ni,hik->nk", z, x, self.table, optimize=True)
            sizes.append([np.sqrt((z[:, self.component(ir)] ** 2).mean()) for ir in self.outputs])
        return np.array(sizes).T

    @cached_property
    def terms(self) -> tuple[tuple[Irrep, int], ...]:
        """(output irrep, number of factors) of each weight, by output, then order."""
        return tuple((self.outputs[n], int(m) + 1) for n, m in np.argwhere(self._sizes > 1e-8))

    @property
    def num_weights(self) -> int:
        """Number of weights per channel."""
        return len(self.terms)

    def initial_scale(self) -> np.ndarray:
        """Standard deviation of the first weights, so that each term starts with unit variance."""
        return 1.0 / self._sizes[self._sizes > 1e-8]

    def component(self, ir: Irrep) -> slice:
        """Where the irrep stands in a hidden feature."""
        n = self.hidden.index(ir)
        start = sum(h.dim for h in self.hidden[:n])
        return slice(start, start + ir.dim)

    @cached_property
    def embedding(self) -> np.ndarray:
        """[d_in, d_hidden] of zeros and ones."""
        identity = np.eye(sum(ir.dim for ir in self.hidden))
        return np.concatenate([identity[self.component(ir)] for ir in self.inputs])

    def combined(self, orders: list[dict[Irrep, jax.Array]], weights: jax.Array) -> IrrepsArray:
        """Blocks [N, 2 l + 1, C] of each order times their weights [N, num_weights, C], summed."""
        shares = jax.lax.split(weights, (1,) * self.num_weights, axis=1)
        out: dict[Irrep, jax.Array] = {}
        for share, (ir, order) in zip(shares, self.terms, strict=True):
            term = share * orders[order - 1][ir]
            out[ir] = out[ir] + term if ir in out else term
        return IrrepsArray.from_blocks(regrouped(self.irreps_out), [out[ir] for ir in self.outputs])

    def dense(self, x: IrrepsArray, weights: jax.Array) -> IrrepsArray:
        """The plain form, by the dense table."""
        feature = jnp.concatenate(x.blocks, axis=1)
        table = jnp.asarray(self.table, feature.dtype)
        embedding = jnp.asarray(self.embedding, feature.dtype)
        z = jnp.einsum("nic,ih->nhc", feature, embedding, precision=HIGHEST)
        orders = []
        for order in range(self.correlation):
            if order:
                z = jnp.einsum("nhc,nic,hik->nkc", z, feature, table, precision=HIGHEST)
            orders.append({ir: z[:, self.component(ir)] for ir in self.outputs})
        return self.combined(orders, weights)
