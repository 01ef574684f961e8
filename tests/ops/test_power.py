"""The symmetric contraction: counts, independence, agreement with dense tensors, derivatives."""

from __future__ import annotations

from functools import partial

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqnet.irreps import Irrep, Irreps, IrrepsArray, regrouped, spherical_irreps
from eqnet.ops.power import Power, independent_trees

pytestmark = pytest.mark.usefixtures("x64")


def inputs(l_max: int) -> tuple[Irrep, ...]:
    return tuple(ir for _, ir in spherical_irreps(l_max))


@pytest.mark.parametrize(
    ("l_max", "order", "out"),
    [
        (3, 1, "0e"),
        (3, 2, "0e"),
        (3, 3, "0e"),
        (3, 3, "1o"),
        (2, 4, "0e"),
        (2, 4, "1o"),
        (2, 3, "1e"),
    ],
)
def test_number_of_trees_is_the_dimension_of_equivariant_polynomials(
    l_max: int, order: int, out: str
) -> None:
    """Multiplicity of `out` in the symmetric power, by characters of O(3) (Weyl integration).

    Character of Sym^n from power sums by Newton's identities; natural parity makes the degree of
    the polynomial in inversion-odd parts a sign, so the average is over both components of O(3).
    """
    ((_, irrep),) = Irreps(out)
    angles = (np.arange(400) + 0.5) * np.pi / 400
    weight = (1 - np.cos(angles)) / np.pi * (np.pi / 400)

    def character(l: int, angle: np.ndarray) -> np.ndarray:
        return np.sum([np.cos(m * angle) for m in range(-l, l + 1)], axis=0)

    def power_sum(k: int, sign: int) -> np.ndarray:
        return np.sum(
            [((sign**l) ** k) * character(l, k * angles) for l in range(l_max + 1)], axis=0
        )

    total = 0.0
    for sign in (1, -1):
        symmetric = [np.ones_like(angles)]
        for n in range(1, order + 1):
            symmetric.append(
                np.sum([power_sum(k, sign) * symmetric[n - k] for k in range(1, n + 1)], axis=0) / n
            )
        value = irrep.p if sign == -1 else 1
        total += 0.5 * np.sum(weight * symmetric[order] * value * character(irrep.l, angles))
    trees = independent_trees(inputs(l_max), irrep, order)
    assert len(trees) == round(total)
    assert abs(total - round(total)) < 1e-6


def problem(l_max: int, out: str, correlation: int, channels: int = 3):
    power = Power(spherical_irreps(l_max) * channels, regrouped(out), correlation)
    rng = np.random.default_rng(0)
    x = IrrepsArray(power.irreps_in, jnp.asarray(rng.normal(size=(4, power.irreps_in.dim))))
    weights = jnp.asarray(rng.normal(size=(4, power.num_weights, channels)))
    return power, x, weights


@pytest.mark.parametrize(
    ("l_max", "out", "correlation"),
    [(3, "3x0e+3x1o", 3), (2, "3x0e+3x1o+3x2e", 2), (1, "3x0e+3x1o", 4), (2, "3x2e+3x1e", 3)],
)
def test_trees_agree_with_dense_tensors(l_max: int, out: str, correlation: int) -> None:
    power, x, weights = problem(l_max, out, correlation)

    def chain(f):
        def energy(x, w):
            return jnp.sin(f(IrrepsArray(power.irreps_in, x), w).array).sum()

        def squares(x, w):
            return sum((g**2).sum() for g in jax.grad(energy, (0, 1))(x, w))

        return energy(x.array, weights), jax.grad(squares, (0, 1))(x.array, weights)

    fast, slow = (
        jax.jit(lambda: chain(power))(),
        jax.jit(lambda: chain(partial(power, method="dense")))(),
    )
    for a, b in zip(jax.tree.leaves(fast), jax.tree.leaves(slow), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10 * float(jnp.abs(b).max()))


def test_second_order_invariants_are_the_norms() -> None:
    """With weights one: A_0 + sum_l |A_l|^2 / sqrt(2 l + 1), up to the sign of each table."""
    power, x, _ = problem(3, "3x0e", 2)
    assert power.num_weights == 1 + 4
    weights = jnp.ones((4, 5, 3))
    signs = [np.sign(e3nn.clebsch_gordan(l, l, 0)[0, 0, 0]) for l in range(4)]
    blocks = [np.asarray(b) for b in x.blocks]
    expected = blocks[0][:, 0] + sum(
        s * (b**2).sum(1) / np.sqrt(2 * l + 1)
        for l, (s, b) in enumerate(zip(signs, blocks, strict=True))
    )
    np.testing.assert_allclose(power(x, weights).array, expected, atol=1e-12)


@pytest.mark.parametrize("inversion", [False, True])
def test_equivariance(inversion: bool) -> None:
    power, x, weights = problem(2, "3x0e+3x1o+3x1e+3x2e", 3)

    def turned(v: IrrepsArray) -> IrrepsArray:
        theirs = v.to_e3nn().transform_by_axis_angle(jnp.array([0.3, -0.5, 0.8]), 1.1)
        signs = np.concatenate([np.full(m.dim, m.ir.p if inversion else 1) for m in theirs.irreps])
        return IrrepsArray.from_e3nn(e3nn.IrrepsArray(theirs.irreps, theirs.array * signs))

    np.testing.assert_allclose(
        power(turned(x), weights).array, turned(power(x, weights)).array, atol=1e-11
    )


def test_unequal_multiplicities_are_refused() -> None:
    with pytest.raises(ValueError, match="equal multiplicities"):
        Power(Irreps("3x0e+2x1o"), Irreps("3x0e"), 2)


def test_outputs_that_no_product_reaches_are_refused() -> None:
    with pytest.raises(ValueError, match="no product of up to 3 of .* contains 0o"):
        Power(Irreps("2x0e+2x1o"), Irreps("2x0e+2x0o"), 3)
