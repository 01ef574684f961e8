"""What a tensor product says of itself: its paths, its symmetry, its exactness and its cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from eqnet.irreps import Irrep


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
