"""Linear maps in the frame of an edge: one matrix for each order |m| (eSCN).

Features of several degrees with one number of channels are turned by one matrix A of the edge, from
rows by degree to rows by order, those with |m| > m_max left out; A^T turns back. Rows of an order
stand together, real parts before imaginary ones, so that its matrix product needs no copies:

    z = (W1_m + i W2_m) x for x = x[+m] + i x[-m];        z = W_0 x + b at m = 0

The frame is fixed up to a roll about the edge, a phase exp(i m g) that these maps commute with
(Passaro and Zitnick 2023, arXiv:2302.03655). `so2.py` is the same as a tensor product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from eqnet.irreps import Irrep, Irreps, spherical_irreps
from eqnet.ops.so2_orders import Group, Order, is_natural, meetings, mix
from eqnet.so3 import HIGHEST, edge_frame, wigner_d

MAPPED = "so2"  # name of the results of a linear map, for what may keep them


@dataclass(frozen=True)
class OrderRows:
    """Rows of features in the frame of an edge, by order.

    At m = 0 one row of each irrep, natural ones (p = (-1)^l) before the others; for m > 0 the real
    parts of all irreps with l >= m, then the imaginary ones.

    Args:
        irreps: of the features; each stands for one number of channels, which is not said here.
        m_max: highest order, all if None.
        group: 'O3' tells the two parities apart, 'SO3' does not.

    Raises:
        ValueError: multiplicities differ, or no such group or order.
    """

    irreps: Irreps
    m_max: int | None = None
    group: Group = "O3"

    def __post_init__(self) -> None:
        if len({mul for mul, _ in self.irreps}) != 1:
            raise ValueError(f"{self.irreps} differ in their number of channels: make it the same")
        _ = self.orders  # refuses what it cannot use

    @cached_property
    def members(self) -> list[Irrep]:
        """Irreps of the features."""
        return [ir for _, ir in self.irreps]

    @cached_property
    def orders(self) -> tuple[Order, ...]:
        """Orders in which the rows stand; natural irreps at m = 0 first."""
        return meetings(self.members, self.members, self.m_max, self.group)

    @cached_property
    def degrees(self) -> tuple[int, ...]:
        """Number of the irrep of each row."""
        return tuple(n for o in self.orders for _ in range(2 if o.m else 1) for n in o.inputs)

    @cached_property
    def components(self) -> tuple[tuple[int, int], ...]:
        """Degree and order (l, m) of each row."""
        return tuple(
            (self.members[n].l, m)
            for order in self.orders
            for m in ((order.m, -order.m) if order.m else (0,))
            for n in order.inputs
        )

    @property
    def num_rows(self) -> int:
        """Rows in the frame of the edge."""
        return len(self.degrees)

    @property
    def dim(self) -> int:
        """Rows by degree, sum of 2 l + 1."""
        return sum(ir.dim for ir in self.members)

    def parts(self, z: jax.Array) -> dict[tuple[int, tuple[int, ...]], jax.Array]:
        """Rows [N, num_rows, C] by order: (m, irreps) -> [N, 1 or 2, number of irreps times C]."""
        copies = [2 if order.m else 1 for order in self.orders]
        sizes = [n * len(order.inputs) for n, order in zip(copies, self.orders, strict=True)]
        # one split for all orders: the derivative of slices would be a sum of padded arrays
        parts = jax.lax.split(z, sizes, axis=1)
        return {
            (order.m, order.inputs): part.reshape((len(z), n, -1))
            for order, n, part in zip(self.orders, copies, parts, strict=True)
        }

    @cached_property
    def tables(self) -> list[np.ndarray]:
        """Signs of the components of each irrep in the rows, [num_rows, 2 l + 1] of 0, 1, -1."""
        tables = [np.zeros((self.num_rows, ir.dim)) for ir in self.members]
        row = 0
        for order in self.orders:
            for imaginary in range(2 if order.m else 1):
                for n in order.inputs:
                    ir, sign = self.members[n], 1
                    m = -order.m if imaginary else order.m
                    if order.m and not is_natural(ir, self.group):
                        # i (x[+m] + i x[-m])
                        m, sign = -m, 1 if imaginary else -1
                    tables[n][row, ir.l + m] = sign
                    row += 1
        return tables

    def matrices(self, unit: jax.Array) -> jax.Array:
        """The matrix A of each edge.

        Args:
            unit: directions of the edges, [..., 3].

        Returns:
            [..., num_rows, dim], with orthonormal rows.
        """
        with jax.named_scope("frames"):
            turns = wigner_d(max(ir.l for ir in self.members), edge_frame(unit))
            rows = [
                jnp.einsum(
                    "qm,...mk->...qk", table.astype(unit.dtype), turns[ir.l], precision=HIGHEST
                )
                if ir.l
                else jnp.broadcast_to(table.astype(unit.dtype), (*unit.shape[:-1], *table.shape))
                for table, ir in zip(self.tables, self.members, strict=True)
            ]
            return jnp.concatenate(rows, axis=-1)


@dataclass(frozen=True)
class SO2Map:
    """A linear map from rows in the frame of an edge to rows in the same frame.

    Parameters of unit variance give outputs of unit variance from inputs of unit variance.

    Args:
        rows_in: of the input.
        rows_out: of the output.
        channels_in: of the input.
        channels_out: of the output.
        extra: scalars that come out besides.
    """

    rows_in: OrderRows
    rows_out: OrderRows
    channels_in: int
    channels_out: int
    extra: int = 0

    @cached_property
    def orders(self) -> tuple[Order, ...]:
        """The matrix products."""
        m_max = min(max(o.m for o in rows.orders) for rows in (self.rows_in, self.rows_out))
        return meetings(self.rows_in.members, self.rows_out.members, m_max, self.rows_in.group)

    @cached_property
    def num_biases(self) -> int:
        """Natural rows at m = 0 may be shifted: neither rolls nor mirrors change them."""
        return len(self.orders[0].outputs) * self.channels_out + self.extra

    @cached_property
    def shapes(self) -> tuple[tuple[int, int, int], ...]:
        """Of the matrices of each order, [W1 or W2, inputs, outputs]; extra ones last at m = 0."""
        return tuple(
            (
                order.matrices,
                len(order.inputs) * self.channels_in,
                len(order.outputs) * self.channels_out + (self.extra if n == 0 else 0),
            )
            for n, order in enumerate(self.orders)
        )

    @property
    def num_factors(self) -> int:
        """Factors of an edge: one per order, irrep and channel of the input."""
        return sum(size for _, size, _ in self.shapes)

    def __call__(
        self,
        x: jax.Array,
        matrices: Sequence[jax.Array],
        bias: jax.Array,
        factors: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Map the rows of some edges.

        Args:
            x: [..., rows_in, channels_in].
            matrices: one array for each of `shapes`.
            bias: [num_biases].
            factors: of the input, [..., num_factors], the same for the two parts of an order.

        Returns:
            [..., rows_out, channels_out] and [..., extra].
        """
        lead = x.shape[:-2]
        x = x.reshape((-1, *x.shape[-2:]))
        sizes = [size for _, size, _ in self.shapes]
        edge: list[jax.Array | None] = [None] * len(sizes)
        if factors is not None:
            edge = list(jax.lax.split(factors.reshape((x.shape[0], -1)), sizes, axis=1))
        parts, found, scalars = self.rows_in.parts(x), {}, x[:, 0, :0]
        for n, (order, matrix, factor) in enumerate(zip(self.orders, matrices, edge, strict=True)):
            part = parts[order.m, order.inputs]
            if factor is not None:
                part = part * factor[:, None]
            scale = 1 / np.sqrt(matrix.shape[0] * matrix.shape[1])
            z = mix(part, matrix * scale.astype(matrix.dtype))
            if n == 0:
                z = z + bias
                z, scalars = jnp.split(z, [z.shape[-1] - self.extra], axis=-1)
            found[order.m, order.outputs] = z.reshape((x.shape[0], -1, self.channels_out))
        # rows that nothing leads to
        for order in self.rows_out.orders:
            size = len(order.inputs) * (2 if order.m else 1)
            nothing = jnp.zeros((x.shape[0], size, self.channels_out), x.dtype)
            found.setdefault((order.m, order.inputs), nothing)
        rows = [found[order.m, order.inputs] for order in self.rows_out.orders]
        z = jnp.concatenate(rows, axis=1)
        return z.reshape((*lead, *z.shape[1:])), scalars.reshape((*lead, -1))


class SO2Linear(nnx.Module):
    """`SO2Map` with its parameters; arguments as of it."""

    def __init__(
        self,
        rows_in: OrderRows,
        rows_out: OrderRows,
        channels_in: int,
        channels_out: int,
        *,
        extra: int = 0,
        rngs: nnx.Rngs,
    ):
        self.map = SO2Map(rows_in, rows_out, channels_in, channels_out, extra)
        self.matrices = nnx.List(
            nnx.Param(jax.random.normal(rngs.params(), shape)) for shape in self.map.shapes
        )
        self.bias = nnx.Param(jnp.zeros(self.map.num_biases))

    def __call__(
        self, x: jax.Array, factors: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """[..., rows_in, channels_in] -> [..., rows_out, channels_out] and [..., extra]."""
        with jax.named_scope("so2"):
            matrices = [matrix[...] for matrix in self.matrices]
            z, scalars = self.map(x, matrices, self.bias[...], factors)
            return checkpoint_name(z, MAPPED), checkpoint_name(scalars, MAPPED)


def rows_of_degrees(max_L: int, m_max: int, group: Group) -> OrderRows:
    """Rows of features with the irreps of the harmonics up to a degree.

    Raises:
        ValueError: an order above the degree, or no such group.
    """
    if m_max > max_L:
        raise ValueError(f"m_max {m_max} has no effect above max_L {max_L}: lower it")
    return OrderRows(spherical_irreps(max_L), m_max, group)


def gated(rows: OrderRows, z: jax.Array, gates: jax.Array) -> jax.Array:
    """SiLU of even scalars; every other irrep times the sigmoid of a gate for each channel.

    Args:
        rows: of z.
        z: [..., num_rows, C].
        gates: [..., number of other irreps times C].

    Returns:
        Of the shape of z.
    """
    scalars = [n for n, ir in enumerate(rows.members) if ir.l == 0 and is_natural(ir, rows.group)]
    factors = jax.nn.sigmoid(gates.reshape((*z.shape[:-2], -1, z.shape[-1])))
    others = [n for n in range(len(rows.members)) if n not in scalars]
    place = {n: factors[..., k : k + 1, :] for k, n in enumerate(others)}
    # silu(z) = z sigmoid(z)
    first = rows.degrees.index(scalars[0])
    place[scalars[0]] = jax.nn.sigmoid(z[..., first : first + 1, :])
    return z * jnp.concatenate([place[n] for n in rows.degrees], axis=-2)
