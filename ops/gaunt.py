"""The Gaunt product: x and y are signals on the sphere, multiplied point by point.

    z_k = sum_{ij} G_ijk x_i y_j,    G_ijk = integral over the sphere of Y_i Y_j Y_k

with orthonormal harmonics. It has the even paths (l1 + l2 + l3 even) only, with one coefficient:

    G = g C,    g = sqrt((2 l1 + 1)(2 l2 + 1)(2 l3 + 1) / 4 pi) 3j(l1 l2 l3; 0 0 0)

(C of unit norm; the 3j symbol is its entry at m = 0, sign included.) Luo et al., ICLR 2024,
arXiv:2401.10216, with 2D Fourier series; Xie et al., ICLR 2025, on grids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from eqnet.irreps import Irrep
from eqnet.ops.factorised import Core, Factorised
from eqnet.ops.factorised_edges import messages, rows
from eqnet.ops.factorised_sparse import sparse
from eqnet.ops.gaunt_fourier import fft, fourier
from eqnet.ops.gaunt_grid import grid
from eqnet.ops.product import Kernel
from eqnet.so3 import clebsch_gordan


@dataclass(frozen=True)
class Gaunt(Factorised):
    """The product of signals on the sphere; arguments, weights and errors of `Factorised`."""

    name: ClassVar[str] = "gaunt"
    cores: ClassVar[dict[str, Core]] = {
        "grid": grid,
        "sparse": sparse,
        "fourier": fourier,
        "fft": fft,
    }
    kernels: ClassVar[dict[str, Kernel]] = {
        "rows": rows,
        **{name: messages(core) for name, core in cores.items()},
    }

    def coefficient(self, left: Irrep, right: Irrep, out: Irrep) -> float:
        """The Gaunt coefficient; see above."""
        return gaunt_coefficient(left.l, right.l, out.l)


def gaunt_coefficient(l1: int, l2: int, l3: int) -> float:
    """Coefficient g of a path, zero if it is odd."""
    if (l1 + l2 + l3) % 2:
        return 0.0
    dims = (2 * l1 + 1) * (2 * l2 + 1) * (2 * l3 + 1)
    return float(np.sqrt(dims / (4 * np.pi)) * clebsch_gordan(l1, l2, l3)[l1, l2, l3])
