"""The stacked Clebsch-Gordan tensor of path-weight sharing (Lin et al. 2025, arXiv:2507.01131).

All couplings of a set of irreps in one tensor, each block of unit norm:

    T[i, j, k] = sum over (ir1, ir2 -> ir3) of C(l1, l2, l3)   at the components of ir1, ir2, ir3

so that |T|^2 is the number of couplings.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from eqnet.irreps import Irrep
from eqnet.so3 import clebsch_gordan

Group = Literal["O3", "SO3"]


@dataclass(frozen=True)
class StackedTensor:
    """All couplings of one channel of some irreps.

    Args:
        left: irreps of the first axis, one after the other.
        right: of the second axis.
        out: of the third axis.
        group: 'O3' keeps the couplings with p3 = p1 p2; 'SO3' ignores parity.
    """

    left: tuple[Irrep, ...]
    right: tuple[Irrep, ...]
    out: tuple[Irrep, ...]
    group: Group = "O3"

    @cached_property
    def couplings(self) -> tuple[tuple[int, int, int], ...]:
        """Indices into left, right and out of every coupling."""
        return tuple(
            (i, j, k)
            for i, a in enumerate(self.left)
            for j, b in enumerate(self.right)
            for k, c in enumerate(self.out)
            if abs(a.l - b.l) <= c.l <= a.l + b.l and (self.group == "SO3" or a.p * b.p == c.p)
        )

    @cached_property
    def values(self) -> np.ndarray:
        """T, [d1, d2, d3] with d the sum of 2 l + 1, float64."""
        return self.from_weights({coupling: 1.0 for coupling in self.couplings})

    @cached_property
    def norms(self) -> np.ndarray:
        """sqrt(2 l + 1) / sqrt(number of couplings into the irrep) of each component of out, [d3].

        Times T they give outputs of unit variance for inputs of unit variance.
        """
        counts = [sum(k == n for _, _, k in self.couplings) for n in range(len(self.out))]
        return np.concatenate(
            [
                np.full(ir.dim, np.sqrt(ir.dim / max(count, 1)))
                for ir, count in zip(self.out, counts, strict=True)
            ]
        )

    def from_weights(self, weights: dict[tuple[int, int, int], float]) -> np.ndarray:
        """The tensor with a weight on the unit-norm block of each coupling."""
        tensor = np.zeros([sum(ir.dim for ir in side) for side in self._sides])
        for coupling, weight in weights.items():
            tensor[self._block(coupling)] = weight * self._table(coupling)
        return tensor

    def weights(self, tensor: np.ndarray) -> dict[tuple[int, int, int], float]:
        """Component of any tensor [d1, d2, d3] along the unit-norm block of each coupling."""
        return {c: float(np.vdot(self._table(c), tensor[self._block(c)])) for c in self.couplings}

    def equivariance_error(self, tensor: np.ndarray) -> float:
        """Relative root mean square equivariance error of the bilinear map of any tensor.

        eps = sqrt(2) |T' - P T'| / |T'|, P the projection on the couplings: for standard normal
        inputs x, y and random elements g of the group, the root of
        <|T'(g x, g y) - g T'(x, y)|^2> / <|T'(x, y)|^2>, because the two terms on the left are
        uncorrelated but for the equivariant part P T', in which they cancel.
        """
        rest = tensor - self.from_weights(self.weights(tensor))
        return float(np.sqrt(2) * np.linalg.norm(rest) / np.linalg.norm(tensor))

    @property
    def _sides(self) -> tuple[tuple[Irrep, ...], ...]:
        return self.left, self.right, self.out

    def _table(self, coupling: tuple[int, int, int]) -> np.ndarray:
        i, j, k = coupling
        return clebsch_gordan(self.left[i].l, self.right[j].l, self.out[k].l)

    def _block(self, coupling: tuple[int, int, int]) -> tuple[slice, ...]:
        starts = [
            sum(ir.dim for ir in side[:n]) for side, n in zip(self._sides, coupling, strict=True)
        ]
        dims = [side[n].dim for side, n in zip(self._sides, coupling, strict=True)]
        return tuple(slice(a, a + d) for a, d in zip(starts, dims, strict=True))
