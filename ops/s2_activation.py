"""A nonlinearity at the points of a sphere: features -> values on a grid -> features.

    f(r) = sum_lm x_lm Y_lm(r) / sqrt((2 l + 1) / 4 pi (l_max + 1)),    x'_lm from g(f(r))

with unit variance of f for component-normalised x. The result of a polynomial g has finite degree,
and a large enough grid is exact; that of any other g does not, and the grid aliases it: rotations
then change the result a little (Cohen et al. 2018, Spherical CNNs). `S2Activation` measures and
declares how much.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

import jax
import jax.numpy as jnp
import numpy as np

from eqnet.layers import SILU_NORM
from eqnet.ops.product import Declaration
from eqnet.ops.sphere import harmonics, sphere_grid
from eqnet.so3 import HIGHEST

SAMPLES = 4096  # random features that the error is measured with; a few large ones make most of it
CHANNELS = 64  # that layers mix in the measurement


def check_activation(model: str, activation: str, grid_resolution: int) -> None:
    """Refuse a nonlinearity that a model does not have, and a grid that nothing would use.

    Raises:
        ValueError: saying what there is.
    """
    if activation not in ("gate", "s2"):
        raise ValueError(f"activation of {model} is gate or s2, not {activation!r}")
    if grid_resolution and activation != "s2":
        raise ValueError("grid_resolution has no effect without activation s2: leave it out")


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

    @property
    def num_points(self) -> int:
        """P, points of the grid."""
        return self.latitudes * self.azimuths

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
    """SiLU, or a network, at the points of a grid: approximately equivariant.

    Args:
        grid: of the features.
        depth: nonlinear layers of the network, one for SiLU alone.
    """

    grid: S2Grid
    depth: int = 1

    @cached_property
    def declaration(self) -> Declaration:
        """No couplings of two operands; with the error of the grid."""
        rows = len(self.grid.components)
        return Declaration(
            name="s2",
            couplings=frozenset(),
            group="O3",
            error=aliasing_error(self.grid, self.depth),
            weights="shared",
            operations=4 * rows * self.grid.num_points,
            floats=2 * rows,
        )

    def __call__(
        self, x: jax.Array, function: Callable[[jax.Array], jax.Array] = jax.nn.silu
    ) -> jax.Array:
        """[n, d, C] -> [n, d, C]; `function` maps [n, P, C] to itself, point by point."""
        return self.grid.features(function(self.grid.values(x)))


@cache
def aliasing_error(grid: S2Grid, depth: int = 1) -> float:
    """Relative equivariance error on this grid, root mean square over random features.

    With A the activation on the grid, B that on one twice as fine, which commutes with rotations D
    to far more digits, and e the relative error of A against B, |A D x - D A x| is at most
    |A D x - B D x| + |D B x - D A x| = 2 e. Layers have random weights between them.
    """
    fine = S2Grid(grid.components, 2 * grid.latitudes, 2 * grid.azimuths)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(len(grid.components), SAMPLES))
    weights = [rng.normal(size=(CHANNELS, CHANNELS)) / np.sqrt(CHANNELS) for _ in range(depth - 1)]
    ours, exact = (_network(*g.tables, x, weights) for g in (grid, fine))
    return float(2 * np.linalg.norm(ours - exact) / np.linalg.norm(exact))


def _network(
    values: np.ndarray, back: np.ndarray, x: np.ndarray, weights: list[np.ndarray]
) -> np.ndarray:
    f = _silu(values @ x)
    for matrix in weights:
        f = _silu((f.reshape((-1, CHANNELS)) @ matrix).reshape(f.shape))
    return back.T @ f


def _silu(x: np.ndarray) -> np.ndarray:
    """Of unit second moment, like the layers of a network."""
    return SILU_NORM * x / (1 + np.exp(-x))


def components(l_max: int) -> tuple[tuple[int, int], ...]:
    """(l, m) of each row of features of all degrees up to one."""
    return tuple((l, m) for l in range(l_max + 1) for m in range(-l, l + 1))
