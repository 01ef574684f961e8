"""A nonlinearity at the points of a sphere: features -> values on a grid -> features.

    f(r) = sum_lm x_lm Y_lm(r) / sqrt((2 l + 1) / 4 pi (l_max + 1)),    x'_lm from g(f(r))

with unit variance of f for component-normalised x. The result of a polynomial g has finite degree,
and a large enough grid is exact; that of any other g does not, and the grid aliases it: rotations
then change the result a little (Cohen et al. 2018, Spherical CNNs). `S2Activation` measures and
declares how much.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import jax
import jax.numpy as jnp
import numpy as np

from eqnet.ops.product import Declaration
from eqnet.ops.sphere import harmonics, sphere_grid
from eqnet.so3 import HIGHEST

SAMPLES = 4096  # random features that the error is measured with; a few large ones make most of it


@dataclass(frozen=True)
class S2Grid:
    """Values of features at the points of a Gauss-Legendre grid, and back.

    Args:
        components: (l, m) of each row of the features.
        latitudes: of the grid.
        azimuths: of the grid.

    Raises:
        ValueError: the grid cannot tell these components apart.
    """

    components: tuple[tuple[int, int], ...]
    latitudes: int
    azimuths: int

    def __post_init__(self) -> None:
        l_max, m_max = (max(abs(c[n]) for c in self.components) for n in (0, 1))
        if self.latitudes <= l_max or self.azimuths <= 2 * m_max:
            raise ValueError(
                f"{self.latitudes} latitudes and {self.azimuths} azimuths are not enough for "
                f"degree {l_max} and order {m_max}: take {l_max + 1} and {2 * m_max + 1} or more"
            )

    @cached_property
    def tables(self) -> tuple[np.ndarray, np.ndarray]:
        """Values [P, d] of every component and quadrature with them, [P, d]; float64.

        A degree of which only |m| <= m_max < l are here has less variance; it is scaled up by
        sqrt((2 l + 1) / (2 m_max + 1)), and back again.
        """
        grid = sphere_grid(2 * self.latitudes, self.latitudes, self.azimuths)
        l_max, rows = max(l for l, _ in self.components), {}
        for l, m in self.components:
            rows.setdefault(l, []).append(m)
        by_degree = {}
        for l, orders in rows.items():
            unit = np.sqrt(len(orders) * (l_max + 1) / (4 * np.pi))
            by_degree[l] = harmonics(l, grid) / unit, harmonics(l, grid) * unit
        values, back = (
            np.stack([by_degree[l][n][:, l + m] for l, m in self.components], axis=1)
            for n in (0, 1)
        )
        return values, back * grid.weights[:, None]

    def values(self, x: jax.Array) -> jax.Array:
        """[n, d, C] -> [n, P, C]."""
        table = jnp.asarray(self.tables[0], x.dtype)
        return jnp.einsum("pd,ndc->npc", table, x, precision=HIGHEST)

    def features(self, values: jax.Array) -> jax.Array:
        """[n, P, C] -> [n, d, C]."""
        table = jnp.asarray(self.tables[1], values.dtype)
        return jnp.einsum("pd,npc->ndc", table, values, precision=HIGHEST)


@dataclass(frozen=True)
class S2Activation:
    """SiLU at the points of a grid, approximately equivariant.

    Args:
        grid: of the features.
    """

    grid: S2Grid

    @cached_property
    def declaration(self) -> Declaration:
        """No couplings of two operands; with the error of the grid."""
        rows, points = len(self.grid.components), self.grid.latitudes * self.grid.azimuths
        return Declaration(
            name="s2",
            couplings=frozenset(),
            group="O3",
            error=aliasing_error(self.grid),
            weights="shared",
            operations=4 * rows * points,
            floats=2 * rows,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """[n, d, C] -> [n, d, C]."""
        return self.grid.features(jax.nn.silu(self.grid.values(x)))


@cache
def aliasing_error(grid: S2Grid) -> float:
    """Relative equivariance error of SiLU on this grid, root mean square over random features.

    With A the activation on the grid, B that on one twice as fine, which commutes with rotations D
    to far more digits, and e the relative error of A against B, |A D x - D A x| is at most
    |A D x - B D x| + |D B x - D A x| = 2 e.
    """
    fine = S2Grid(grid.components, 2 * grid.latitudes, 2 * grid.azimuths)
    x = np.random.default_rng(0).normal(size=(len(grid.components), SAMPLES))
    ours, exact = (_silu(*g.tables, x) for g in (grid, fine))
    return float(2 * np.linalg.norm(ours - exact) / np.linalg.norm(exact))


def _silu(values: np.ndarray, back: np.ndarray, x: np.ndarray) -> np.ndarray:
    f = values @ x
    return back.T @ (f / (1 + np.exp(-f)))
