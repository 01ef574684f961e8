"""What a tensor product is, and what it says of itself: paths, symmetry, exactness, cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import jax
import numpy as np

from eqnet.irreps import Irrep, Irreps, IrrepsArray


@dataclass(frozen=True)
class Path:
    """One coupling (left x right -> out): block indices into the inputs and the output irrep."""

    left: int
    right: int
    out: Irrep


@dataclass(frozen=True)
class Declaration:
    """The promise of a product, checked by tests against its coefficient tensor.

    Attributes:
        name: of the function class, e.g. 'clebsch_gordan'.
        couplings: every (left, right, out) irrep triple that can be non-zero.
        group: 'O3', or 'SO3' where mirror images are told apart.
        error: 0 for an exact product, otherwise a bound on the relative equivariance error.
        weights: 'per_path' if each coupling has a free weight.
        operations: multiplications and additions per row and channel.
        floats: numbers read and written per row and channel.
    """

    name: str
    couplings: frozenset[tuple[Irrep, Irrep, Irrep]]
    group: Literal["O3", "SO3"]
    error: float
    weights: Literal["per_path", "factorised", "shared"]
    operations: int
    floats: int


class Radial(NamedTuple):
    """The weights of edges, not yet made: silu(... silu(basis @ first) ...) @ last.

    Attributes:
        basis: [R, K, H], zero in slots without an edge.
        matrices: of the layers, one after the other, the last one [..., num_weights].
        shared: [num_shared], common to all edges; None where the product has none.
    """

    basis: jax.Array
    matrices: tuple[jax.Array, ...]
    shared: jax.Array | None = None


class Product(Protocol):
    """A bilinear map of irreps with weights; `Name(irreps_left, irreps_right, irreps_target)`.

    Attributes:
        irreps_out: those of the target that are reached, sorted and merged.
        num_weights: last axis of the weights, which may differ from row to row.
        num_shared: weights common to all rows.
        declaration: what it promises.
        kernels: ways to compute it on edges, by name; the first is the default.
    """

    kernels: ClassVar[dict[str, Kernel]]

    @property
    def irreps_left(self) -> Irreps: ...  # noqa: D102
    @property
    def irreps_right(self) -> Irreps: ...  # noqa: D102
    @property
    def irreps_out(self) -> Irreps: ...  # noqa: D102
    @property
    def num_weights(self) -> int: ...  # noqa: D102
    @property
    def num_shared(self) -> int: ...  # noqa: D102
    @property
    def declaration(self) -> Declaration: ...  # noqa: D102

    def __call__(
        self, x: IrrepsArray, y: IrrepsArray, weights: jax.Array, shared: jax.Array | None = None
    ) -> IrrepsArray:
        """The plain form by dense coefficients, which every kernel is tested against.

        Args:
            x: [..., irreps_left].
            y: [..., irreps_right].
            weights: [..., num_weights], or [num_weights] for all rows.
            shared: [num_shared] if there are any.

        Returns:
            [..., irreps_out].
        """
        ...


class NodePower(Protocol):
    """Sum of products of one to `correlation` copies of a feature, channel by channel.

    `Name(irreps_in, irreps_out, correlation)`, all of the same multiplicity C.

    Attributes:
        irreps_out: sorted and merged.
        num_weights: per channel.
        methods: ways to compute it; the first is the default.
    """

    methods: ClassVar[tuple[str, ...]]

    @property
    def irreps_in(self) -> Irreps: ...  # noqa: D102
    @property
    def irreps_out(self) -> Irreps: ...  # noqa: D102
    @property
    def num_weights(self) -> int: ...  # noqa: D102

    def initial_scale(self) -> np.ndarray:
        """Standard deviation of the first weights, [num_weights]."""
        ...

    def __call__(self, x: IrrepsArray, weights: jax.Array, method: str) -> IrrepsArray:
        """[N, irreps_in] and weights [N, num_weights, C] -> [N, irreps_out]."""
        ...


class Kernel(Protocol):
    """A way to compute a product on edges: messages of the neighbours of each row, summed."""

    def __call__(
        self,
        product: Any,
        x: IrrepsArray,
        y: IrrepsArray,
        weights: jax.Array,
        shared: jax.Array | None = None,
        /,
    ) -> IrrepsArray:
        """Messages [r, irreps_out], summed over k.

        Args:
            product: one that has this kernel.
            x: [r, k, irreps_left].
            y: [r, k, irreps_right], one channel each.
            weights: [r, k, num_weights], zero in padding slots.
            shared: [num_shared] if the product has any.
        """
        ...


def dense(
    product: Product,
    x: IrrepsArray,
    y: IrrepsArray,
    weights: jax.Array,
    shared: jax.Array | None = None,
) -> IrrepsArray:
    """One message per edge in the plain form, then their sum: the kernel of every product."""
    messages = product(x, y, weights, shared)
    return IrrepsArray(messages.irreps, messages.array.sum(1))
