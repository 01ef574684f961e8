"""The measures: on maps with known answers, and the published table of expressivity."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from eqnet.irreps import Irrep, Irreps, IrrepsArray, spherical_irreps
from eqnet.ops import measures
from eqnet.ops.clebsch_gordan import ClebschGordan
from eqnet.ops.gaunt import Gaunt
from eqnet.so3 import clebsch_gordan

pytestmark = pytest.mark.usefixtures("x64")

# Xie et al., degrees 0..L on both sides and 0..L3 out: paths, even ones, the dimension that the
# Gaunt product reaches with one channel, and the channels it needs to reach all even paths.
TABLE = {
    (1, 1): (5, 4, 4, 1),
    (1, 2): (6, 5, 5, 1),
    (2, 2): (15, 11, 7, 2),
    (2, 4): (19, 14, 9, 2),
    (3, 3): (34, 23, 10, 3),
    (3, 6): (44, 30, 13, 3),
    (4, 4): (65, 42, 13, 4),
    (4, 8): (85, 55, 17, 4),
}


def both_parities(l_max: int) -> Irreps:
    return Irreps([(1, (l, p)) for l in range(l_max + 1) for p in (1, -1)])


ROWS = [pytest.param(*row, marks=[pytest.mark.slow] if row[0] == 4 else []) for row in TABLE]


@pytest.mark.parametrize(("left", "out"), ROWS)
def test_paths_and_expressivity_of_the_table(left: int, out: int) -> None:
    """Natural inputs: even paths lead to natural irreps, odd ones to the others."""
    paths, even, dimension, needed = TABLE[left, out]
    inputs, natural = spherical_irreps(left), spherical_irreps(out)
    everything: Any = ClebschGordan(inputs, inputs, both_parities(out))
    assert len(everything.declaration.couplings) == paths
    assert len(ClebschGordan(inputs, inputs, natural).paths) == even
    if out <= 2:  # free weights: what is there is reached
        assert measures.expressivity(everything) == paths

    def reached(channels: int) -> int:
        gaunt: Any = Gaunt(inputs * channels, inputs * channels, natural)
        assert len(gaunt.declaration.couplings) == even
        return measures.expressivity(gaunt)

    assert reached(1) == dimension
    if needed > 1:
        assert reached(needed - 1) < even
        assert reached(needed) == even


def test_expressivity_counts_what_linear_layers_reach() -> None:
    """One path, in many channels, is one dimension; two paths are two."""
    scalars = Irreps("4x0e")
    one: Any = ClebschGordan(scalars, Irreps("0e"), Irreps("0e"))
    two: Any = ClebschGordan(scalars, Irreps("0e+1o"), Irreps("0e+1o"))
    assert measures.expressivity(one) == 1
    assert measures.expressivity(two) == 2


def cross_and_dot(x: IrrepsArray, y: IrrepsArray) -> IrrepsArray:
    """Two vectors each: 3 dot products of the first ones and 2 cross products of the second."""
    a, b = x.blocks[0], y.blocks[0]
    dot = 3 * jnp.sum(a[..., :1] * b[..., :1], -2, keepdims=True)
    cross = 2 * jnp.cross(a[..., 1:], b[..., 1:], axis=-2)
    return IrrepsArray.from_blocks(Irreps("0e+1e"), [dot, cross])


def test_blocks_of_a_known_map() -> None:
    vectors = Irreps("2x1o")
    tensor = measures.coefficients(cross_and_dot, vectors, vectors)
    found = measures.blocks(tensor)
    one, scalar, axial = Irrep(1, -1), Irrep(0, 1), Irrep(1, 1)
    assert set(found.scales) == {(one, one, scalar), (one, one, axial)}
    assert found.residual < 1e-15
    expected = np.zeros((2, 2, 1))
    expected[0, 0, 0] = 3 * np.sqrt(3) * np.sign(clebsch_gordan(1, 1, 0)[0, 0, 0])
    np.testing.assert_allclose(found.scales[one, one, scalar], expected, atol=1e-14)
    expected = np.zeros((2, 2, 1))
    expected[1, 1, 0] = 2 * np.sqrt(6) * np.sign(clebsch_gordan(1, 1, 1)[0, 1, 2])
    np.testing.assert_allclose(found.scales[one, one, axial], expected, atol=1e-14)
    for inversion in (False, True):
        error = measures.symmetry_error(cross_and_dot, vectors, vectors, inversion=inversion)
        assert error < 1e-14


def test_what_is_not_equivariant_is_seen() -> None:
    """One coefficient of a cross product changed by e, and a cross product of the wrong parity."""
    vectors, e = Irreps("1x1o"), 0.01

    def bent(x: IrrepsArray, y: IrrepsArray) -> IrrepsArray:
        extra = e * x.array[..., 0] * y.array[..., 0]
        return IrrepsArray(Irreps("1e"), jnp.cross(x.array, y.array).at[..., 0].add(extra))

    def polar(x: IrrepsArray, y: IrrepsArray) -> IrrepsArray:
        return IrrepsArray(Irreps("1o"), jnp.cross(x.array, y.array))

    found = measures.blocks(measures.coefficients(bent, vectors, vectors))
    np.testing.assert_allclose(found.residual, e / np.sqrt(6 + e**2), rtol=1e-12)
    assert measures.symmetry_error(bent, vectors, vectors) > e / 10
    rms = measures.rms_symmetry_error(bent, vectors, vectors)
    assert rms == pytest.approx(np.sqrt(2) * found.residual, rel=0.05)  # the closed form
    tensor = measures.coefficients(polar, vectors, vectors)
    assert measures.blocks(tensor).residual == 1
    assert measures.blocks(tensor, group="SO3").residual < 1e-15
    assert measures.symmetry_error(polar, vectors, vectors) < 1e-14
    assert measures.symmetry_error(polar, vectors, vectors, inversion=True) == 2
    assert measures.rms_symmetry_error(polar, vectors, vectors, group="SO3") < 1e-14
    rms = measures.rms_symmetry_error(polar, vectors, vectors)  # 2 for every second element
    assert rms == pytest.approx(np.sqrt(2), rel=0.02)


def test_tensor_of_a_map_of_directions() -> None:
    """Least squares over directions gives the tensor that basis vectors give."""
    left, right = Irreps("2x0e+2x1o"), spherical_irreps(2)
    product: Any = ClebschGordan(left, right, both_parities(2))
    function = measures.plain_form(product)
    plain = measures.coefficients(function, left, right)
    fitted = measures.coefficients_on_harmonics(function, left, right)
    np.testing.assert_allclose(fitted.values, plain.values, atol=1e-13)
    assert fitted.misfit < 1e-14

    def crooked(x: IrrepsArray, y: IrrepsArray) -> IrrepsArray:
        return IrrepsArray(x.irreps, x.array * y.array[..., 1:2] ** 3)

    assert measures.coefficients_on_harmonics(crooked, left, right).misfit > 0.1


@pytest.mark.parametrize("method", list(ClebschGordan.kernels))
def test_measures_of_a_product_and_of_its_kernels(method: str) -> None:
    product: Any = ClebschGordan(Irreps("2x0e+3x1o+1x1e"), spherical_irreps(2), both_parities(2))
    for kernel in (None, ClebschGordan.kernels[method]):
        found = measures.measure(product, kernel)
        assert found.couplings == product.declaration.couplings
        errors = (found.misfit, found.residual, found.rotation, found.inversion)
        assert max(errors) < 1e-12


def test_harmonics_are_told_from_other_irreps() -> None:
    with pytest.raises(ValueError, match="no spherical harmonics"):
        measures.harmonics_of(Irreps("2x1o"), np.eye(3))
