"""Cartesian tensors and their products: conversions, contractions, TensorNet, methods, refusals."""

from __future__ import annotations

from math import sqrt

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from product_checks import (
    assert_kernel_is_dense,
    edges,
    equivariance_residual,
    measured_coefficients,
    random_array,
    turned,
)

from eqnet.irreps import Irreps, IrrepsArray, regrouped, spherical_irreps
from eqnet.ops import kernels
from eqnet.ops.cartesian import Cartesian
from eqnet.ops.cartesian_tensors import (
    cartesian_basis,
    contraction,
    from_irreps,
    path_factor,
    to_block,
    to_irreps,
    to_tensor,
    traceless_basis,
)
from eqnet.ops.matrix import Matrix
from eqnet.so3 import clebsch_gordan

pytestmark = pytest.mark.usefixtures("x64")
TRIPLES = [
    (a, b, c) for a in range(5) for b in range(5) for c in range(abs(a - b), min(a + b, 4) + 1)
]


def blocks(l: int, rows: int, seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(rows, 2 * l + 1, 2)))


@pytest.mark.parametrize("l", [0, 1, 2, 3, 4])
def test_degree_l_is_the_symmetric_traceless_tensor(l: int) -> None:
    """Orthonormal, symmetric, traceless; of a direction it is a multiple of the harmonics."""
    basis = traceless_basis(l)
    flat = basis.reshape(-1, 2 * l + 1)
    np.testing.assert_allclose(flat.T @ flat, np.eye(2 * l + 1), atol=1e-13)
    for axes in [(i, i + 1) for i in range(l - 1)]:
        np.testing.assert_allclose(basis, np.swapaxes(basis, *axes), atol=1e-13)
        np.testing.assert_allclose(np.trace(basis, axis1=axes[0], axis2=axes[1]), 0, atol=1e-13)
    x = blocks(l, 3, 0)
    np.testing.assert_allclose(to_block(l, to_tensor(l, x)), x, atol=1e-13)
    unit = np.array([0.48, -0.6, 0.64])
    power = np.ones(())
    for _ in range(l):
        power = np.multiply.outer(power, unit)
    projected = to_block(l, jnp.asarray(power)[None, ..., None])[0, :, 0]
    harmonics = e3nn.spherical_harmonics(Irreps(f"{l}e"), jnp.asarray(unit), True, "norm").array
    scale = float(jnp.linalg.norm(projected))
    np.testing.assert_allclose(projected, scale * harmonics, atol=1e-12)


@pytest.mark.parametrize("degrees", TRIPLES)
def test_every_path_is_a_contraction(degrees: tuple[int, int, int]) -> None:
    """A positive multiple of the Clebsch-Gordan table, for all degrees to 4."""
    x, y = blocks(degrees[0], 3, 1), blocks(degrees[1], 3, 2)
    out = contraction(degrees, to_tensor(degrees[0], x), to_tensor(degrees[1], y))
    expected = jnp.einsum("nic,njc,ijk->nkc", x, y, clebsch_gordan(*degrees))
    assert path_factor(*degrees) > 0
    np.testing.assert_allclose(out, path_factor(*degrees) * expected, atol=1e-12)


def test_contractions_written_out() -> None:
    """Dot and cross product, v.S, S:T, the traceless part of v w and of S T."""
    v, w, s, t = (
        np.asarray(blocks(l, 3, seed))[..., 0] for l, seed in ((1, 1), (1, 2), (2, 3), (2, 4))
    )
    s2, t2 = (np.einsum("abm,nm->nab", traceless_basis(2), x) for x in (s, t))

    def ours(degrees: tuple[int, int, int], x: np.ndarray, y: np.ndarray) -> np.ndarray:
        tensors = [
            to_tensor(l, jnp.asarray(u)[..., None]) for l, u in zip(degrees, (x, y), strict=False)
        ]
        out = contraction(degrees, *tensors)
        return np.asarray(to_tensor(degrees[2], out))[..., 0]

    def traceless(m: np.ndarray) -> np.ndarray:
        m = (m + m.swapaxes(1, 2)) / 2
        return m - np.eye(3) * np.trace(m, axis1=1, axis2=2)[:, None, None] / 3

    pairs = [
        (ours((1, 1, 0), v, w), (v * w).sum(1)),
        (ours((1, 1, 1), v, w), np.cross(v, w)),
        (ours((1, 1, 2), v, w), traceless(v[:, :, None] * w[:, None, :])),
        (ours((1, 2, 1), v, s), np.einsum("na,nab->nb", v, s2)),
        (ours((2, 2, 0), s, t), np.einsum("nab,nab->n", s2, t2)),
        (ours((2, 2, 2), s, t), traceless(s2 @ t2)),
    ]
    for got, expected in pairs:
        np.testing.assert_allclose(got, expected, atol=1e-13)


@pytest.mark.parametrize(
    ("symmetry", "irreps"),
    [
        ("i", "1o"),
        ("ij", "0e+1e+2e"),
        ("ij=ji", "0e+2e"),
        ("ij=-ji", "1e"),
        ("ijk=jik", "2x1o+1x2o+1x3o"),
        ("ijkl=jikl=ijlk=klij", "2x0e+2x2e+1x4e"),
        ("ijkl", "3x0e+6x1e+6x2e+3x3e+4e"),
    ],
)
def test_tensors_with_index_symmetries(symmetry: str, irreps: str) -> None:
    """There and back, and turned as a tensor: one matrix for each index."""
    found, basis = cartesian_basis(symmetry)
    assert found.regroup() == Irreps(irreps).regroup() or symmetry == "ijk=jik"
    x = random_array(found, (3,), 1)
    tensor = from_irreps(symmetry, x)
    assert tensor.shape == (3, *[3] * (basis.ndim - 1))
    np.testing.assert_allclose(to_irreps(symmetry, tensor).array, x.array, atol=1e-12)
    np.testing.assert_allclose((tensor**2).sum(), (x.array**2).sum())
    rotation = np.asarray(turned(IrrepsArray(Irreps("1o"), jnp.eye(3)), True).array).T
    moved = np.asarray(tensor)
    for axis in range(1, moved.ndim):
        moved = np.moveaxis(np.tensordot(moved, rotation, (axis, 1)), -1, axis)
    np.testing.assert_allclose(from_irreps(symmetry, turned(x, True)), moved, atol=1e-12)
    first = symmetry.split("=")[0]
    for term in symmetry.split("=")[1:]:
        sign = -1 if term.startswith("-") else 1
        order = [first.index(letter) for letter in term.lstrip("-")]
        swapped = np.transpose(np.asarray(tensor), [0, *[1 + i for i in order]])
        np.testing.assert_allclose(tensor, sign * swapped, atol=1e-12)


def test_conversion_under_jit_and_refusals() -> None:
    cartesian_basis.cache_clear()  # the basis is made during tracing
    tensor = jax.jit(lambda a: from_irreps("ij=ji", IrrepsArray(Irreps("0e+2e"), a)))(jnp.ones(6))
    np.testing.assert_allclose(tensor, tensor.T)
    with pytest.raises(ValueError, match="'ijklm' has 5 indices; up to 4"):
        cartesian_basis("ijklm")
    with pytest.raises(ValueError, match="tensors 'ij=ji' have irreps 1x0e.1x2e, not 1x1o"):
        from_irreps("ij=ji", IrrepsArray(Irreps("1o"), jnp.ones(3)))


def matrices(x: IrrepsArray) -> np.ndarray:
    """TensorNet's matrices s / sqrt(3) + eps v / sqrt(2) + S, written out, [N, 3, 3]."""
    scalar, vector, tensor = (np.asarray(block)[..., 0] for block in x.blocks)
    epsilon = np.cross(np.eye(3)[:, None], np.eye(3)[None])  # [a, b, c]
    return (
        np.eye(3) * scalar[:, :, None] / sqrt(3)
        + np.einsum("abc,nc->nab", epsilon, vector) / sqrt(2)
        + np.einsum("abm,nm->nab", traceless_basis(2), tensor)
    )


@pytest.mark.parametrize("group", ["O3", "SO3"])
def test_degrees_to_two_are_the_products_of_tensornet(group: str) -> None:
    """(X Y + Y X) / 2, and without parity X Y, part by part up to the norms of the outputs."""
    assert group in ("O3", "SO3")
    irreps = spherical_irreps(2)
    product = Cartesian(irreps, irreps, irreps, group=group)
    assert len(product.declaration.couplings) == (11 if group == "O3" else 15)
    assert product.declaration.group == group
    x, y = random_array(irreps, (4,), 1), random_array(irreps, (4,), 2)
    z = matrices(x) @ matrices(y)
    if group == "O3":
        z = (z + matrices(y) @ matrices(x)) / 2
    epsilon = np.cross(np.eye(3)[:, None], np.eye(3)[None])
    parts = [
        np.trace(z, axis1=1, axis2=2)[:, None] / sqrt(3),
        np.einsum("nab,abc->nc", z, epsilon) / sqrt(2),
        np.einsum("nab,abm->nm", z, traceless_basis(2)),
    ]
    for method in ("dense", *product.cores):
        out = product.multiply(x, y, jnp.ones(product.num_weights), method)
        for block, part, norm in zip(out.blocks, parts, product.norms, strict=True):
            np.testing.assert_allclose(block[..., 0], norm * part, atol=1e-12)


def test_matrix_form_is_the_matrix_product_of_spin_one() -> None:
    left, target = regrouped("2x0e+2x0o+2x1o+2x1e+2x2e"), regrouped("0e+0o+1e+1o+2e+2o")
    ours, other = (cls(left, spherical_irreps(2), target) for cls in (Cartesian, Matrix))
    x, y = random_array(left, (4,), 1), random_array(spherical_irreps(2), (4,), 2)
    weights = jnp.asarray(np.random.default_rng(3).normal(size=(4, ours.num_weights)))
    for method in ours.cores:
        out = ours.multiply(x, y, weights, method)
        np.testing.assert_allclose(out.array, other(x, y, weights).array, atol=1e-12)


PRODUCTS = {
    "natural": Cartesian(spherical_irreps(2) * 2, spherical_irreps(2), spherical_irreps(2)),
    "labelled": Cartesian(
        regrouped("2x0o+2x1o+2x1e+2x2e"), spherical_irreps(1), regrouped("0e+0o+1e+1o+2e+2o")
    ),
    "SO3": Cartesian(
        spherical_irreps(2) * 2, spherical_irreps(1), spherical_irreps(2), group="SO3"
    ),
    "degree 3": Cartesian(spherical_irreps(1) * 2, spherical_irreps(2), regrouped("0e+1o+2o+3o")),
    "irreducible": Cartesian(
        spherical_irreps(1) * 2,
        spherical_irreps(1),
        spherical_irreps(2),
        form="irreducible",
        group="SO3",
    ),
}


@pytest.mark.parametrize("inversion", [False, True])
@pytest.mark.parametrize("name", PRODUCTS)
def test_equivariance(name: str, inversion: bool) -> None:
    residual = equivariance_residual(PRODUCTS[name], inversion)
    if inversion and PRODUCTS[name].group == "SO3":
        assert residual > 1e-2
    else:
        assert residual < 1e-11


@pytest.mark.parametrize(
    ("name", "method"), [("labelled", "matmul"), ("SO3", "matmul"), ("degree 3", "einsum")]
)
def test_methods_are_the_dense_form_with_three_derivatives(name: str, method: str) -> None:
    assert_kernel_is_dense(PRODUCTS[name], Cartesian.kernels[method])


@pytest.mark.parametrize("name", PRODUCTS)
def test_methods_have_the_values_of_the_dense_form(name: str) -> None:
    product = PRODUCTS[name]
    x, y, weights = edges(product)
    methods = kernels("cartesian")
    expected = methods["dense"](product, x, y, weights).array
    for method, kernel in methods.items():
        if method != "matmul" or product.resolved_form == "matrix":
            np.testing.assert_allclose(kernel(product, x, y, weights).array, expected, atol=1e-11)


def test_irreducible_products_have_the_factors_of_the_contractions() -> None:
    """Degree 4 from basis vectors, with norms from the closed form."""
    product = Cartesian(Irreps("3o+4e"), Irreps("4e"), regrouped("0e+1o+4e+2o"))

    def core(x: IrrepsArray, y: IrrepsArray) -> IrrepsArray:
        return product.multiply(x, y, jnp.ones(product.num_weights), "einsum")

    measured = measured_coefficients(product, core)
    lefts = list(zip(product.irreps_left, product.irreps_left.slices(), strict=True))
    for (_, out), k in zip(product.irreps_out, product.irreps_out.slices(), strict=True):
        paths = {ir: path_factor(ir.l, 4, out.l) for (_, ir), _ in lefts if ir.p == out.p}
        norm = sqrt(sum(kappa**2 for kappa in paths.values()) / out.dim)
        for (_, ir), i in lefts:
            expected = paths.get(ir, 0.0) / norm * clebsch_gordan(ir.l, 4, out.l)
            np.testing.assert_allclose(measured[i, :, k], expected, atol=1e-12)


def test_refusals() -> None:
    two, three, five = (spherical_irreps(l) for l in (2, 3, 5))
    with pytest.raises(ValueError, match="cartesian stops at degree 4"):
        Cartesian(five, two, two)
    with pytest.raises(ValueError, match="cartesian stops at degree 4"):
        Cartesian(three, two, five)
    assert Cartesian(two, two, five, form="matrix").irreps_out == two
    with pytest.raises(ValueError, match="a 3 x 3 matrix holds degrees up to 2, not 3"):
        Cartesian(three, two, two, form="matrix")
    product = Cartesian(three, two, two)
    assert product.resolved_form == "irreducible"
    x, y = random_array(three, (2,), 1), random_array(two, (2,), 2)
    with pytest.raises(ValueError, match="'matmul' for degrees up to 2 only"):
        product.multiply(x, y, jnp.ones(product.num_weights), "matmul")
