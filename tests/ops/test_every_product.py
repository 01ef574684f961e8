"""One table of products; each row inherits every test, and each of its kernels the second half.

A product that joins gets a row in `ROWS`; a kernel needs nothing, it is found in its product.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graphs import Structure, make_graph

from eqnet.irreps import IrrepsArray, regrouped, spherical_irreps
from eqnet.ops import PRODUCTS, blocks, convolution, measures
from eqnet.ops.cartesian import Cartesian
from eqnet.ops.clebsch_gordan import ClebschGordan
from eqnet.ops.convolution import Convolution
from eqnet.ops.cp import CP
from eqnet.ops.gaunt import Gaunt
from eqnet.ops.gaunt_bracket import GauntBracket
from eqnet.ops.matrix import Matrix
from eqnet.ops.product import Kernel, Radial, dense
from eqnet.ops.so2 import SO2
from eqnet.ops.vector_gaunt import VectorGaunt
from eqnet.so3 import spherical_harmonics

pytestmark = pytest.mark.usefixtures("x64", "own_cache")

MIXED = regrouped("2x0e+2x0o+2x1o+2x1e+2x2e")  # both parities, two channels
UNEQUAL = regrouped("3x0e+2x0o+2x1o+1x1e+1x2e")
NATURAL = spherical_irreps(2) * 2
HARMONICS = spherical_irreps(2)
EVERY = regrouped("0e+0o+1e+1o+2e+2o+3o")

# By name; products of two features, which no convolution has, are further below.
ROWS: dict[str, Callable[[], Any]] = {
    "clebsch_gordan": lambda: ClebschGordan(UNEQUAL, HARMONICS, EVERY),
    "gaunt": lambda: Gaunt(MIXED, HARMONICS, EVERY),
    "gaunt_bracket": lambda: GauntBracket(MIXED, HARMONICS, EVERY),
    "vector_gaunt": lambda: VectorGaunt(MIXED, HARMONICS, EVERY),
    "matrix": lambda: Matrix(MIXED, HARMONICS, EVERY),
    "cartesian": lambda: Cartesian(MIXED, HARMONICS, spherical_irreps(2)),
    "cartesian, irreducible": lambda: Cartesian(MIXED, HARMONICS, EVERY),
    "cartesian, SO3": lambda: Cartesian(NATURAL, HARMONICS, HARMONICS, group="SO3"),
    "so2": lambda: SO2(UNEQUAL, HARMONICS, MIXED),
    "so2, SO3": lambda: SO2(NATURAL, HARMONICS, NATURAL, group="SO3"),
    "so2, m_max": lambda: SO2(NATURAL, HARMONICS, NATURAL, m_max=1),
    "cp": lambda: CP(NATURAL, HARMONICS, HARMONICS),
    "cp, SO3": lambda: CP(MIXED, spherical_irreps(1), HARMONICS, group="SO3"),
    "cp, rank 15": lambda: CP(NATURAL, HARMONICS, HARMONICS, rank=15),
}
OF_TWO_FEATURES: dict[str, Callable[[], Any]] = {
    "clebsch_gordan uvu": lambda: ClebschGordan(UNEQUAL, regrouped("2x0e+3x1o"), EVERY),
    "clebsch_gordan uuu": lambda: ClebschGordan(MIXED, NATURAL, EVERY, "uuu"),
    "clebsch_gordan uvw": lambda: ClebschGordan(UNEQUAL, NATURAL, UNEQUAL, "uvw"),
    "gaunt": lambda: Gaunt(MIXED, NATURAL, EVERY, "all"),
    "gaunt_bracket": lambda: GauntBracket(NATURAL, MIXED, EVERY, "all"),
    "vector_gaunt": lambda: VectorGaunt(NATURAL, MIXED, EVERY, "all"),
    "matrix": lambda: Matrix(NATURAL, MIXED, EVERY, "all"),
    "cartesian": lambda: Cartesian(NATURAL, MIXED, HARMONICS, "all"),
    "cp": lambda: CP(NATURAL, NATURAL, HARMONICS),
}


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def own_cache(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits of CP products go to a folder of these tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_folder))


def test_every_product_has_a_row() -> None:
    assert {name.partition(",")[0] for name in ROWS} == set(PRODUCTS)


@pytest.mark.parametrize(
    "make",
    [*ROWS.values(), *OF_TWO_FEATURES.values()],
    ids=[*ROWS, *map("two: {}".format, OF_TWO_FEATURES)],
)
def test_measured_as_declared(make: Callable[[], Any]) -> None:
    """Couplings, equivariance under rotations and inversion, and the error of approximations."""
    product = make()
    declaration = product.declaration
    # of y this product takes the direction alone, and is linear in harmonics of higher degree
    harmonics = spherical_irreps(4) if declaration.name == "so2" else None
    found = measures.measure(product, explained_by=harmonics)
    if declaration.error == 0:
        assert by_degree(found.couplings) == by_degree(declaration.couplings)
        assert max(found.misfit, found.residual, found.rotation) < 1e-11
        if declaration.group == "O3":
            assert found.inversion < 1e-11
        else:
            assert found.inversion > 0.01  # SO(3) only: told, and true
    else:
        assert declaration.couplings <= found.couplings
        # root mean square of both sides of the comparison: sqrt(2) of what is outside the blocks
        np.testing.assert_allclose(np.sqrt(2) * found.residual, declaration.error, rtol=1e-6)


def by_degree(couplings: frozenset[measures.Triple]) -> set[tuple]:
    """With harmonics by their degree: without parity, an SO(3) product may name them either way."""
    return {(left, right.l, out) for left, right, out in couplings}


@pytest.mark.parametrize("name", ROWS)
def test_rows_one_by_one_or_together(name: str) -> None:
    """jit and vmap change nothing; weights of each row or common to all."""
    product = ROWS[name]()
    rng = np.random.default_rng(0)
    x, y = (
        IrrepsArray(irreps, jnp.asarray(rng.normal(size=(2, 3, irreps.dim))))
        for irreps in (product.irreps_left, product.irreps_right)
    )
    shared = jnp.asarray(rng.normal(size=product.num_shared)) if product.num_shared else None
    weights = jnp.asarray(rng.normal(size=(2, 3, product.num_weights)))
    together = jax.jit(product.__call__)(x, y, weights, shared)
    assert together.irreps == product.irreps_out
    one_by_one = jax.jit(jax.vmap(jax.vmap(lambda *v: product(*v, shared))))(x, y, weights)
    np.testing.assert_allclose(together.array, one_by_one.array, atol=1e-12)
    common = jax.jit(product.__call__)(x, y, weights[1, 2], shared)
    np.testing.assert_allclose(common.array[1, 2], together.array[1, 2], atol=1e-12)


# ------------------------------------------------------------------------------------ kernels

KERNELS = [(name, kernel) for name in PRODUCTS for kernel in PRODUCTS[name].kernels]
# Derivatives of higher order take long to compile: the default of each product, the rest is slow.
DERIVATIVES = [
    pytest.param(
        name, kernel, marks=[] if kernel == next(iter(PRODUCTS[name].kernels)) else pytest.mark.slow
    )
    for name, kernel in KERNELS
]


def small(name: str) -> Any:
    """A product with few paths."""
    make: Any = PRODUCTS[name]
    return make(regrouped("2x0e+2x1o"), HARMONICS, regrouped("0e+1o+1e+2e"))


class Problem:
    """Atoms with neighbours in several rows and padding, some of them along the axes."""

    def __init__(self, product: Any):
        rng = np.random.default_rng(0)
        structure = Structure(np.ones(9, int), rng.uniform(0, 4, (9, 3)), np.zeros((3, 3)))
        graph = make_graph([structure], (1,), 3.0, slots=4, extra_atoms=1)
        shape, mask = graph.neighbors.shape, graph.neighbor_mask
        assert not mask.all()
        assert graph.rows.shape[1] > 1
        vectors = rng.normal(size=(*shape, 3))
        axes = np.concatenate([np.eye(3), -np.eye(3), np.eye(3) + 1e-6])
        vectors[mask] = np.concatenate([axes, vectors[mask][len(axes) :]])
        vectors[~mask] = [0.0, 1.0, 0.0]
        hidden = rng.normal(size=(*shape, 3)) * mask[..., None]
        matrix = rng.normal(size=(3, product.num_weights))
        shared = rng.normal(size=product.num_shared) if product.num_shared else None
        x = rng.normal(size=(graph.num_atoms, product.irreps_left.dim))
        arrays = (x, vectors, Radial(hidden, (matrix,), shared))  # pyright: ignore
        self.product, self.graph = product, jax.tree.map(jnp.asarray, graph)
        self.arrays = jax.tree.map(jnp.asarray, arrays)

    def value(self, kernel: Kernel, arrays: Any) -> jax.Array:
        """Summed messages; harmonics are those of the directions of the vectors."""
        x, vectors, radial = arrays
        unit = vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)
        values = spherical_harmonics(2, unit)
        irreps = self.product.irreps_right
        y = IrrepsArray.from_blocks(irreps, [values[ir.l][..., None] for _, ir in irreps])
        left = IrrepsArray(self.product.irreps_left, x)
        return Convolution(kernel)(self.product, left, y, radial, self.graph).array

    def derivatives(self, kernel: Kernel) -> list[jax.Array]:
        """Value, gradient of a function of it, and gradient of a function of the gradient."""

        def energy(arrays: Any) -> tuple[jax.Array, jax.Array]:
            value = self.value(kernel, arrays)
            return jnp.sin(value).sum(), value

        def squares(arrays: Any) -> tuple[jax.Array, Any]:
            gradient, value = jax.grad(energy, has_aux=True)(arrays)
            terms = [jnp.sum(g**2) for g in jax.tree.leaves(gradient)]
            return jnp.stack(terms).sum(), (value, gradient)

        return jax.tree.leaves(jax.jit(jax.grad(squares, has_aux=True))(self.arrays))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The convolution works on several blocks of edges, the last one filled up."""
    monkeypatch.setattr(blocks, "EDGES_AT_A_TIME", {"cpu": 24})
    monkeypatch.setattr(convolution, "KEPT_BYTES", 0)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("name", "method"), KERNELS)
def test_kernel_values(name: str, method: str) -> None:
    """The plain form to rounding, in both precisions, on features of both parities."""
    problem = Problem(ROWS[name]())
    kernel = problem.product.kernels[method]
    plain = plain_value(name)
    scale = float(jnp.abs(plain).max())
    found = jax.jit(lambda arrays: problem.value(kernel, arrays))(problem.arrays)
    np.testing.assert_allclose(found, plain, rtol=0, atol=1e-11 * scale)
    arrays = jax.tree.map(lambda v: v.astype(jnp.float32), problem.arrays)
    single = jax.jit(lambda arrays: problem.value(kernel, arrays))(arrays)
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, plain, rtol=0, atol=1e-5 * scale)


@cache
def plain_value(name: str) -> jax.Array:
    problem = Problem(ROWS[name]())
    return jax.jit(lambda arrays: problem.value(dense, arrays))(problem.arrays)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("name", "method"), DERIVATIVES)
def test_kernel_derivatives(name: str, method: str) -> None:
    """Value, gradient, and gradient of a function of the gradient, as those of the plain form."""
    problem = Problem(small(name))
    found = problem.derivatives(problem.product.kernels[method])
    for ours, plain in zip(found, plain_derivatives(name), strict=True):
        scale = max(1.0, float(jnp.abs(plain).max()))
        np.testing.assert_allclose(ours, plain, rtol=0, atol=1e-11 * scale)


@cache
def plain_derivatives(name: str) -> list[jax.Array]:
    return Problem(small(name)).derivatives(dense)


@pytest.mark.parametrize(("name", "method"), DERIVATIVES)
def test_derivatives_by_differences(name: str, method: str) -> None:
    """First to third, along a line, each against differences of the one before; also at poles."""
    problem = Problem(small(name))
    kernel, rng = problem.product.kernels[method], np.random.default_rng(1)
    line = jax.tree.map(lambda v: jnp.asarray(0.1 * rng.normal(size=v.shape)), problem.arrays)
    mask = problem.graph.neighbor_mask[..., None]  # what makes the weights stays zero in padding
    line = (*line[:2], line[2]._replace(basis=line[2].basis * mask))

    def energy(arrays: Any) -> jax.Array:
        return jnp.sin(problem.value(kernel, arrays)).sum()

    def slope(t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """By reverse mode, as forces are."""
        arrays = jax.tree.map(lambda v, d: v + t * d, problem.arrays, line)
        value, gradient = jax.value_and_grad(energy)(arrays)
        terms = jax.tree.leaves(jax.tree.map(lambda g, d: jnp.sum(g * d), gradient, line))
        return jnp.stack(terms).sum(), value

    def curvature(t: jax.Array) -> tuple[jax.Array, tuple]:
        first, second, value = jax.jvp(slope, (t,), (jnp.ones(()),), has_aux=True)
        return second, (value, first)

    def everything(t: jax.Array) -> tuple[jax.Array, ...]:
        second, third, rest = jax.jvp(curvature, (t,), (jnp.ones(()),), has_aux=True)
        return (*rest, second, third)

    step, function = 3e-4, jax.jit(everything)
    far, up, here, down, below = (
        np.array(function(jnp.asarray(n * step))) for n in (2, 1, 0, -1, -2)
    )
    differences = (8 * (up - down) - (far - below)) / (12 * step)  # to fourth order
    np.testing.assert_allclose(here[1:], differences[:-1], rtol=1e-7)
