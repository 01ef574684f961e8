"""SiLU on a sphere grid against e3nn-jax's, and its equivariance error against known numbers."""

from __future__ import annotations

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from eqnet.ops.s2_activation import S2Activation, S2Grid
from eqnet.so3 import random_rotation, wigner_d


def components(l_max: int, m_max: int) -> tuple[tuple[int, int], ...]:
    found = [(l, m) for l in range(l_max + 1) for m in range(-l, l + 1)]
    return tuple((l, m) for l, m in found if abs(m) <= m_max)


def activation(l_max: int, m_max: int, latitudes: int, azimuths: int) -> S2Activation:
    return S2Activation(S2Grid(components(l_max, m_max), latitudes, azimuths))


def roll(rows: tuple[tuple[int, int], ...], angle: float) -> np.ndarray:
    """A turn about y of features."""
    matrix = np.zeros((len(rows), len(rows)))
    for n, (l, m) in enumerate(rows):
        matrix[n, n] = np.cos(m * angle)
        if m:
            matrix[n, rows.index((l, -m))] = np.sin(m * angle)
    return matrix


def rotations(l_max: int, number: int) -> list[np.ndarray]:
    """Random rotations of features."""
    rng = np.random.default_rng(3)
    elements = np.stack([random_rotation(rng) for _ in range(number)])
    matrices = [np.asarray(d) for d in wigner_d(l_max, jnp.asarray(elements))]
    return [np.asarray(scipy.linalg.block_diag(*(d[n] for d in matrices))) for n in range(number)]


def relative_error(apply: S2Activation, turns: list[np.ndarray]) -> float:
    """|A(D x) - D A(x)| / |A(x)|, root mean square over random features and these turns D."""
    x = np.random.default_rng(0).normal(size=(turns[0].shape[0], 500))
    function = jax.jit(lambda x: apply(x[None])[0])
    plain = np.asarray(function(x))
    off = [np.asarray(function(turn @ x)) - turn @ plain for turn in turns]
    return float(np.sqrt(np.mean([np.sum(e**2) for e in off])) / np.linalg.norm(plain))


# e3nn-jax calls a function of jax.scipy that is going to leave
@pytest.mark.filterwarnings("ignore:.*lpmn_values:DeprecationWarning")
def test_agrees_with_e3nn_on_the_same_grid(x64: None) -> None:
    l_max, latitudes, azimuths = 2, 4, 7
    irreps = e3nn.s2_irreps(l_max, p_val=1, p_arg=-1)
    x = np.random.default_rng(1).normal(size=(3, irreps.dim))
    signal = e3nn.to_s2grid(
        e3nn.IrrepsArray(irreps, jnp.asarray(x)), latitudes, azimuths,
        normalization="component", quadrature="gausslegendre", fft=False,
    )  # fmt: skip
    theirs = e3nn.from_s2grid(
        signal.apply(jax.nn.silu), irreps, normalization="component", fft=False
    )
    ours = activation(l_max, l_max, latitudes, azimuths)(jnp.asarray(x.T)[None])[0]
    np.testing.assert_allclose(ours.T, theirs.array, atol=1e-12)


@pytest.mark.parametrize(("l_max", "m_max"), [(2, 2), (3, 1), (6, 2)])
def test_the_identity_and_unit_variance(l_max: int, m_max: int, x64: None) -> None:
    grid = S2Grid(components(l_max, m_max), l_max + 1, 2 * m_max + 1)
    x = np.random.default_rng(2).normal(size=(5, len(grid.components), 40))
    values = grid.values(jnp.asarray(x))
    np.testing.assert_allclose(grid.features(values), x, atol=1e-13)
    # with all m at hand the variance is the same everywhere
    weights = np.linalg.norm(grid.tables[0], axis=1) ** 2
    assert np.ptp(weights) < 1e-12 if l_max == m_max else weights.mean() == pytest.approx(1, 0.2)
    assert weights[0] == pytest.approx(1) or l_max != m_max


# Measured beforehand with e3nn's grids, whose latitudes are at equal angles instead: degree, points
# and relative error of node features under rotations.
NODES = [
    (2, 6, 7, 1.8e-2), (4, 14, 15, 6e-3), (4, 18, 19, 1.2e-3), (6, 18, 19, 1.0e-2),
    (6, 30, 31, 2.7e-4),
]  # fmt: skip


@pytest.mark.parametrize(("l_max", "latitudes", "azimuths", "known"), NODES)
def test_error_under_rotations(
    l_max: int, latitudes: int, azimuths: int, known: float, x64: None
) -> None:
    apply = activation(l_max, l_max, latitudes, azimuths)
    error = relative_error(apply, rotations(l_max, 4))
    assert known / 2 < error < 2 * known
    # the declaration is a bound, and not a wild one
    assert error < apply.declaration.error < 4 * error


# The same under rolls about the edge, of features with |m| <= m_max, on 18 x 18 points, where
# Gauss-Legendre grids turn out a little better.
EDGES = [(6, 3, 1.3e-3), (6, 4, 4e-3)]


@pytest.mark.parametrize(("l_max", "m_max", "known"), EDGES)
def test_error_under_rolls_of_the_edge(l_max: int, m_max: int, known: float, x64: None) -> None:
    apply = activation(l_max, m_max, 18, 18)
    angles = np.random.default_rng(4).uniform(0, 2 * np.pi, 8)
    error = relative_error(apply, [roll(apply.grid.components, angle) for angle in angles])
    assert known / 4 < error < known
    assert error < apply.declaration.error


def test_few_azimuths_are_bad_and_too_few_are_refused() -> None:
    """As many as make the harmonics orthogonal leave errors of a quarter in the edge frame."""
    apply = activation(4, 2, 10, 5)
    angles = np.random.default_rng(5).uniform(0, 2 * np.pi, 8)
    turns = [roll(apply.grid.components, angle) for angle in angles]
    assert 0.15 < relative_error(apply, turns) < 0.36
    for latitudes, azimuths in ((4, 5), (5, 4)):
        with pytest.raises(ValueError, match="take 5 and 5 or more"):
            S2Grid(components(4, 2), latitudes, azimuths)
