"""Products with factorised weights: one weight per irrep and channel, before and after.

    z_out = c_out n_out sum_{left, right} g(left, right, out) C(a_left x_left, b_right y_right)

channel by channel, with C the Clebsch-Gordan table of unit norm and g the coefficient that tells
one product from another. All paths to an irrep are summed into one copy. A convolution makes b
alone from the length of its edge: a, and c where there is one kind, are what the linear maps before
and after it do, and a product of three numbers that all change with the length trains worse.

With unit-variance x, y, a, b, c, a component of a block g C(x, y) has variance
g^2 / (2 l_out + 1), so that

    n_out = (number of kinds of out * sum_{left, right} g^2 / (2 l_out + 1))^(-1/2)

gives unit variance of the output. A product may keep sums of different *kinds* apart, each with its
own weight c in mode 'all'.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eqnet.irreps import Irrep, Irreps, IrrepsArray, regrouped
from eqnet.ops.blocks import in_blocks
from eqnet.ops.product import Declaration, Kernel
from eqnet.so3 import HIGHEST, clebsch_gordan


class Output(NamedTuple):
    """One sum of paths with its own weights."""

    irrep: Irrep
    kind: int


class Coupling(NamedTuple):
    """One non-zero path: left block, right block, output (by index) and its coefficient."""

    left: int
    right: int
    out: int
    coefficient: float


# The bilinear map without weights and norms: left blocks [..., 2 l + 1, C], right blocks
# [..., 2 l + 1, C] -> one block [..., 2 l + 1, C] for each of `outputs`.
Core = Callable[[Any, list[jax.Array], list[jax.Array]], list[jax.Array]]


@dataclass(frozen=True)
class Factorised:
    """What products with factorised weights share; a product adds `coefficient` and its methods.

    Args:
        irreps_left: irreps of x, all with the same multiplicity C.
        irreps_right: irreps of y, all with multiplicity C, or all with one.
        irreps_target: outputs to keep; their multiplicities do not count.
        mode: which weights there are: 'right' for b [right block, C]; 'all' for a [left block, C],
            b [right block, C], c [output, C], one after the other.

    Raises:
        ValueError: multiplicities differ, or nothing of the target is reached.
    """

    irreps_left: Irreps
    irreps_right: Irreps
    irreps_target: Irreps
    mode: Literal["right", "all"] = "right"

    name: ClassVar[str]
    cores: ClassVar[dict[str, Core]]
    kernels: ClassVar[dict[str, Kernel]]
    num_shared: ClassVar[int] = 0

    def coefficient(self, left: Irrep, right: Irrep, out: Irrep) -> float:
        """Coefficient g of a path that angular momentum and parity allow; 0 if there is none."""
        raise NotImplementedError

    def kind(self, left: Irrep, right: Irrep, out: Irrep) -> int:
        """Paths to an irrep are summed with one weight for each kind."""
        return 0

    def __post_init__(self) -> None:
        if self.mode not in ("right", "all"):
            raise ValueError(f"{self.name} has the modes 'right' and 'all', not {self.mode!r}")
        left = {mul for mul, _ in self.irreps_left}
        right = {mul for mul, _ in self.irreps_right}
        if len(left) != 1 or not (right == left or right == {1}):
            raise ValueError(
                f"{self.name} works channel by channel: it needs one multiplicity on the left, and "
                f"the same or one on the right, not {self.irreps_left} x {self.irreps_right}; "
                "clebsch_gordan takes any"
            )
        if not self.couplings:
            raise ValueError(
                f"{self.name} has no path from {self.irreps_left} x {self.irreps_right} to "
                f"{self.irreps_target}; clebsch_gordan has every path there is"
            )

    @property
    def channels(self) -> int:
        """C, the multiplicity of the left and of the output irreps."""
        return max(mul for mul, _ in self.irreps_left)

    @cached_property
    def left(self) -> tuple[Irrep, ...]:
        """The irrep of each left block."""
        return tuple(ir for _, ir in self.irreps_left)

    @cached_property
    def right(self) -> tuple[Irrep, ...]:
        """The irrep of each right block."""
        return tuple(ir for _, ir in self.irreps_right)

    @cached_property
    def paths(self) -> tuple[tuple[int, int, Output, float], ...]:
        """(left block, right block, output, g) of each non-zero path to the target."""
        targets = {ir for _, ir in self.irreps_target}
        found = []
        for i, left in enumerate(self.left):
            for j, right in enumerate(self.right):
                for out in left * right:
                    g = self.coefficient(left, right, out) if out in targets else 0.0
                    if abs(g) > 1e-12:
                        found.append((i, j, Output(out, self.kind(left, right, out)), g))
        return tuple(found)

    @cached_property
    def total_degree(self) -> int:
        """The sum of the highest degrees of x, y and output among the blocks in use."""
        return (
            max(self.left[i].l for i, _, _, _ in self.paths)
            + max(self.right[j].l for _, j, _, _ in self.paths)
            + max(out.irrep.l for _, _, out, _ in self.paths)
        )

    @cached_property
    def outputs(self) -> tuple[Output, ...]:
        """The sums with a weight of their own, sorted."""
        return tuple(sorted({out for _, _, out, _ in self.paths}))

    @cached_property
    def couplings(self) -> tuple[Coupling, ...]:
        """The non-zero paths, sorted by output."""
        index = {out: n for n, out in enumerate(self.outputs)}
        return tuple(
            sorted(
                (Coupling(i, j, index[out], g) for i, j, out, g in self.paths),
                key=lambda coupling: coupling.out,
            )
        )

    @cached_property
    def irreps_out(self) -> Irreps:
        """C copies of each irrep of the target that is reached."""
        return regrouped(
            Irreps([(self.channels, ir) for ir in {out.irrep for out in self.outputs}])
        )

    @property
    def num_weights(self) -> int:
        """One number per channel for each block that has weights."""
        blocks = len(self.irreps_right)
        if self.mode == "all":
            blocks += len(self.irreps_left) + len(self.outputs)
        return blocks * self.channels

    @cached_property
    def norms(self) -> np.ndarray:
        """n_out of each output, see above."""
        kinds = [out.irrep for out in self.outputs]
        variance = np.zeros(len(self.outputs))
        for path in self.couplings:
            out = self.outputs[path.out].irrep
            variance[path.out] += kinds.count(out) * path.coefficient**2 / out.dim
        return 1.0 / np.sqrt(variance)

    def table(self, path: Coupling) -> np.ndarray:
        """Table g C of a path, [2 l1 + 1, 2 l2 + 1, 2 l3 + 1], float64."""
        out = self.outputs[path.out].irrep
        table = clebsch_gordan(self.left[path.left].l, self.right[path.right].l, out.l)
        return path.coefficient * table

    @cached_property
    def declaration(self) -> Declaration:
        """Exact, O(3); operations are those of the plain form."""
        triples = [(self.left[i], self.right[j], out.irrep) for i, j, out, _ in self.paths]
        features = (*self.left, *self.right, *(ir for _, ir in self.irreps_out))
        return Declaration(
            name=self.name,
            couplings=frozenset(triples),
            group="O3",
            error=0.0,
            weights="factorised",
            operations=sum(2 * prod(ir.dim for ir in triple) for triple in triples),
            floats=sum(ir.dim for ir in features),
        )

    def split_weights(self, weights: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """a, b and n_out c, each [..., number of blocks, C] or, without weights, [..., 1]."""
        stacked = weights.reshape((*weights.shape[:-1], -1, self.channels))
        norms = jnp.asarray(self.norms[:, None], weights.dtype)
        if self.mode == "right":
            return jnp.ones((len(self.irreps_left), 1), weights.dtype), stacked, norms
        sizes = (len(self.irreps_left), len(self.irreps_right), len(self.outputs))
        a, b, c = jax.lax.split(stacked, sizes, axis=stacked.ndim - 2)
        return a, b, c * norms

    def apply(self, core: Core, x: IrrepsArray, y: IrrepsArray, weights: jax.Array) -> IrrepsArray:
        """The product by one of its cores; arguments and result as in `__call__`."""
        a, b, c = self.split_weights(weights)
        left = [a[..., n, None, :] * block for n, block in enumerate(x.blocks)]
        right = [b[..., n, None, :] * block for n, block in enumerate(y.blocks)]
        values = core(self, left, right)
        summed: dict[Irrep, jax.Array] = {}
        for n, (out, value) in enumerate(zip(self.outputs, values, strict=True)):
            term = c[..., n, None, :] * value
            summed[out.irrep] = summed[out.irrep] + term if out.irrep in summed else term
        return IrrepsArray.from_blocks(self.irreps_out, [summed[ir] for _, ir in self.irreps_out])

    def __call__(
        self, x: IrrepsArray, y: IrrepsArray, weights: jax.Array, shared: jax.Array | None = None
    ) -> IrrepsArray:
        """The product by dense contraction; the plain form that the methods are tested against.

        Args:
            x: [..., irreps_left].
            y: [..., irreps_right].
            weights: [..., num_weights], or [num_weights] for all rows.
            shared: these products have none.

        Returns:
            [..., irreps_out].
        """
        del shared
        return self.apply(dense, x, y, weights)

    def multiply(
        self, x: IrrepsArray, y: IrrepsArray, weights: jax.Array, method: str = "default"
    ) -> IrrepsArray:
        """The product of two features by a method; 'default' is the first. Otherwise as `__call__`.

        Raises:
            ValueError: there is no method of this name.
        """
        cores = {**self.cores, "dense": dense}
        method = next(iter(cores)) if method == "default" else method
        if method not in cores:
            raise ValueError(f"{self.name} has no method {method!r}; it has: {', '.join(cores)}")
        lead, core = x.array.shape[:-1], cores[method]

        def some_rows(x: jax.Array, y: jax.Array, rows: jax.Array | None) -> jax.Array:
            left, right = IrrepsArray(self.irreps_left, x), IrrepsArray(self.irreps_right, y)
            return self.apply(core, left, right, weights if rows is None else rows).array

        operands = [v.reshape((-1, v.shape[-1])) for v in (x.array, y.array)]
        rows = weights.reshape((-1, self.num_weights)) if weights.ndim > 1 else None
        # about the points of half a grid
        points = max(self.total_degree, 2) ** 2 // 4
        row_bytes = points * self.channels * x.array.dtype.itemsize
        out = in_blocks(some_rows, (*operands, rows), row_bytes)
        return IrrepsArray(self.irreps_out, out.reshape((*lead, -1)))


def dense(product: Factorised, left: list[jax.Array], right: list[jax.Array]) -> list[jax.Array]:
    """The core by one table [2 l1 + 1, 2 l2 + 1, 2 l3 + 1] per path."""
    values: list = [0.0] * len(product.outputs)
    for path in product.couplings:
        x, y = left[path.left], right[path.right]
        table = jnp.asarray(product.table(path), x.dtype)
        term = jnp.einsum("...ic,...jc,ijk->...kc", x, y, table, precision=HIGHEST)
        values[path.out] = values[path.out] + term
    return values
