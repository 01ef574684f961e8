"""The SO(2) product of eSCN: in the frame of the edge, one matrix for each order |m|.

A Clebsch-Gordan convolution with path weights W_lf and harmonics of every degree lf up to l1 + l3
is, in the frame of its edge (`edge_frame.py`), a linear map between components of equal |m|:

    z[l3, +m] = W1_m x[l1, +m] - W2_m x[l1, -m],      z[l3, -m] = W1_m x[l1, -m] + W2_m x[l1, +m]

'cosine' W1 from paths with l1 + lf + l3 even, 'sine' W2 from odd ones; m = 0 has W1 alone. The map
from path weights to (W1, W2) is linear and invertible: this is the same function, mixing all
channels at the cost of L^3 instead of L^6 (Passaro and Zitnick 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from eqnet.irreps import Irrep, Irreps, IrrepsArray, MulIrrep, regrouped
from eqnet.ops.clebsch_gordan import ClebschGordan
from eqnet.ops.edge_frame import check_direction, direction, polar_coefficients
from eqnet.ops.product import Declaration, Kernel
from eqnet.ops.so2_edges import so2
from eqnet.ops.so2_orders import Group, Order, is_natural, meetings
from eqnet.so3 import spherical_harmonics


@cache
def mixing_table(l1: int, l3: int) -> np.ndarray:
    """[paths, orders]: path weights @ table = W1_0 .. W1_n, W2_1 .. W2_n, with n = min(l1, l3).

    Paths by degree lf = |l1 - l3| .. l1 + l3: as many as orders. Float64.
    """
    n = min(l1, l3)
    table = np.zeros((2 * n + 1, 2 * n + 1))
    for row, lf in enumerate(range(abs(l1 - l3), l1 + l3 + 1)):
        entries = polar_coefficients(l1, lf, l3)
        if (l1 + lf + l3) % 2 == 0:
            table[row, : n + 1] = entries
        else:
            table[row, n + 1 :] = entries[1:]
    return table


@cache
def path_table(l1: int, l3: int) -> np.ndarray:
    """[orders, paths]: the inverse of `mixing_table`, its transpose with m > 0 counted twice.

    Clebsch-Gordan coefficients being orthogonal, with w = W1, W2 @ table

        W1_0^2 + 2 sum_{m > 0} (W1_m^2 + W2_m^2) = (2 l3 + 1) sum_lf w_lf^2.
    """
    counts = np.full(2 * min(l1, l3) + 1, 2.0)
    counts[0] = 1.0
    return counts[:, None] * mixing_table(l1, l3).T / (2 * l3 + 1)


@dataclass(frozen=True)
class SO2:
    """A convolution that mixes channels, by one matrix for each order in the frame of the edge.

    Weights of an edge multiply the inputs of each order, one per order, left irrep and channel; the
    matrices are shared by all edges. With unit-variance features and weights of both kinds every
    component of the output has unit variance, averaged over directions.

    Args:
        irreps_left: irreps of x.
        irreps_right: irreps of y, component-normalised harmonics; of these only 1o is used.
        irreps_target: outputs to keep, with their multiplicities.
        m_max: highest order, all if None. Exact for any: a subspace of the path weights.
        group: 'O3' lets parity decide which pairs have W1 and which W2; 'SO3' gives both to all, as
            in eSCN, EquiformerV2 and eSEN, which tell a molecule from its mirror image.

    Raises:
        ValueError: y has not exactly one 1o, or nothing leads to the target.
    """

    irreps_left: Irreps
    irreps_right: Irreps
    irreps_target: Irreps
    m_max: int | None = None
    group: Group = "O3"

    kernels: ClassVar[dict[str, Kernel]] = {"so2": so2}

    def __post_init__(self) -> None:
        check_direction(self.irreps_right)
        if not self.irreps_out:
            raise ValueError(
                f"no order |m| of {self.irreps_left} leads to {self.irreps_target} in {self.group}"
            )

    def is_natural(self, irrep: Irrep) -> bool:
        """Whether m = 0 keeps its sign in mirrors that contain the edge; 'SO3' has no mirrors."""
        return is_natural(irrep, self.group)

    def _orders(self, irreps_out: Irreps) -> tuple[Order, ...]:
        left, out = ([ir for _, ir in irreps] for irreps in (self.irreps_left, irreps_out))
        return meetings(left, out, self.m_max, self.group)

    @cached_property
    def irreps_out(self) -> Irreps:
        """The part of the target that is reached."""
        target = regrouped(self.irreps_target)
        reached = {n for order in self._orders(target) for n in order.outputs}
        return Irreps([m for n, m in enumerate(target) if n in reached])

    @property
    def left(self) -> tuple[MulIrrep, ...]:
        """The blocks of x."""
        return tuple(self.irreps_left)

    @property
    def out(self) -> tuple[MulIrrep, ...]:
        """The blocks of the output."""
        return tuple(self.irreps_out)

    @cached_property
    def orders(self) -> tuple[Order, ...]:
        """The matrix products, by |m|; at m = 0 natural irreps before the others."""
        return self._orders(self.irreps_out)

    def input_size(self, order: Order) -> int:
        """Channels that go into an order."""
        return sum(self.left[n].mul for n in order.inputs)

    def output_size(self, order: Order) -> int:
        """Channels that come out of it."""
        return sum(self.out[n].mul for n in order.outputs)

    @property
    def num_weights(self) -> int:
        """One number per order, left irrep and channel, in this order."""
        return sum(self.input_size(order) for order in self.orders)

    @property
    def num_shared(self) -> int:
        """Entries of the matrices [W1 or W2, inputs, outputs], order after order."""
        return sum(o.matrices * self.input_size(o) * self.output_size(o) for o in self.orders)

    def split_weights(self, weights: jax.Array) -> list[jax.Array]:
        """Weights [..., num_weights] of each order, [..., inputs]."""
        sizes = [self.input_size(order) for order in self.orders]
        return list(jax.lax.split(weights, sizes, axis=weights.ndim - 1))

    def split_shared(self, shared: jax.Array) -> list[jax.Array]:
        """Normalised matrices of each order, [1 or 2, inputs, outputs].

        An order contributes variance one to each of its rows, and the 2 l + 1 components of an
        output share that of its rows: sqrt((2 l + 1) / rows) / sqrt(matrices inputs).
        """
        rows = [0] * len(self.irreps_out)
        for order in self.orders:
            for n in order.outputs:
                rows[n] += 2 if order.m else 1
        sizes = [(o.matrices, self.input_size(o), self.output_size(o)) for o in self.orders]
        parts = jax.lax.split(shared, [int(np.prod(size)) for size in sizes])
        matrices = []
        for order, part, size in zip(self.orders, parts, sizes, strict=True):
            scales = np.concatenate(
                [
                    np.full(self.out[n].mul, np.sqrt(self.out[n].ir.dim / rows[n]))
                    for n in order.outputs
                ]
            )
            scales = scales / np.sqrt(size[0] * size[1])
            matrices.append(part.reshape(size) * jnp.asarray(scales, shared.dtype))
        return matrices

    @cached_property
    def plain(self) -> ClebschGordan:
        """The same function in path weights, mode 'uvw', harmonics up to l1 + l3.

        With group 'SO3' the harmonics appear with both parities, so that every path is allowed.
        """
        l_max = max(ir.l for _, ir in self.irreps_left) + max(ir.l for _, ir in self.irreps_out)
        parities = (1, -1) if self.group == "SO3" else (1,)
        harmonics = Irreps(
            [(1, Irrep(l, p * (-1) ** l)) for l in range(l_max + 1) for p in parities]
        )
        return ClebschGordan(self.irreps_left, harmonics, self.irreps_out, "uvw")

    @cached_property
    def declaration(self) -> Declaration:
        """All paths, lf <= l1 + l3, with weights shared by the edges up to radial factors."""
        turned = sum(m.mul * m.ir.dim**2 for m in self.irreps_left + self.irreps_out)
        mixed = sum((2 if o.m else 1) * o.matrices * self.output_size(o) for o in self.orders)
        channels = max(m.mul for m in self.irreps_left)
        return Declaration(
            name="so2",
            couplings=self.plain.declaration.couplings,
            group=self.group,
            error=0.0,
            weights="shared",
            operations=2 * (turned // channels + mixed),
            floats=sum(ir.dim for _, ir in self.irreps_left + self.irreps_out),
        )

    def mixing(self, weights: jax.Array, shared: jax.Array) -> dict[tuple, jax.Array]:
        """Every W1 and W2 with the weights of the edges: (left, out, 'cosine' or 'sine', m) -> it.

        Args:
            weights: [..., num_weights].
            shared: [num_shared].

        Returns:
            Matrices [..., channels of the left block, channels of the output block].
        """
        found = {}
        parts = zip(
            self.orders, self.split_weights(weights), self.split_shared(shared), strict=True
        )
        for order, radial, matrices in parts:
            rows = np.cumsum([0] + [self.left[n].mul for n in order.inputs])
            columns = np.cumsum([0] + [self.out[n].mul for n in order.outputs])
            for i, left in enumerate(order.inputs):
                for j, out in enumerate(order.outputs):
                    block = (slice(rows[i], rows[i + 1]), slice(columns[j], columns[j + 1]))
                    edge = radial[..., block[0], None]
                    from_natural = self.is_natural(self.left[left].ir)
                    if from_natural == self.is_natural(self.out[out].ir):
                        found[left, out, "cosine", order.m] = edge * matrices[0][block]
                        if order.matrices == 2:
                            found[left, out, "sine", order.m] = edge * matrices[1][block]
                    else:
                        # x of the other kind is multiplied by i, see `so2_edges.components`
                        sign = -1 if from_natural else 1
                        found[left, out, "sine", order.m] = sign * edge * matrices[0][block]
        return found

    def path_weights(self, weights: jax.Array, shared: jax.Array) -> jax.Array:
        """Weights of the same function as a Clebsch-Gordan product, `plain`.

        Args:
            weights: [..., num_weights].
            shared: [num_shared].

        Returns:
            [..., plain.num_weights].
        """
        mixing, plain = self.mixing(weights, shared), self.plain
        harmonics = list(plain.irreps_right)
        blocks = {ir: n for n, (_, ir) in enumerate(self.irreps_out)}
        flat = []
        for path in plain.paths:
            left, right = self.left[path.left], harmonics[path.right].ir
            l1, l3, out = left.ir.l, path.out.l, blocks[path.out]
            table = path_table(l1, l3)[:, right.l - abs(l1 - l3)]
            scale = np.sqrt(path.out.dim) / plain.normalisation(path)
            kind = "sine" if (l1 + right.l + l3) % 2 else "cosine"
            total = jnp.zeros((*weights.shape[:-1], left.mul, self.out[out].mul))
            total = total.astype(weights.dtype)
            for m in range(min(l1, l3) + 1):
                if (path.left, out, kind, m) in mixing:
                    entry = table[m] if kind == "cosine" else table[min(l1, l3) + m]
                    total = total + float(scale * entry) * mixing[path.left, out, kind, m]
            flat.append(total.reshape((*weights.shape[:-1], -1)))
        return jnp.concatenate(flat, axis=-1)

    def __call__(
        self, x: IrrepsArray, y: IrrepsArray, weights: jax.Array, shared: jax.Array | None = None
    ) -> IrrepsArray:
        """The product of rows as a Clebsch-Gordan product with the mapped path weights.

        Args:
            x: [..., irreps_left].
            y: [..., irreps_right], harmonics of the edges.
            weights: [..., num_weights], or [num_weights] for all rows.
            shared: [num_shared].

        Returns:
            [..., irreps_out].

        Raises:
            ValueError: no shared weights.
        """
        if shared is None:
            raise ValueError("the SO(2) product needs its shared matrices: pass `shared`")
        right = self.plain.irreps_right
        harmonics = spherical_harmonics(max(ir.l for _, ir in right), direction(y))
        filters = IrrepsArray.from_blocks(right, [harmonics[ir.l][..., None] for _, ir in right])
        return self.plain(x, filters, self.path_weights(weights, shared))
