"""The Clebsch-Gordan product and its convolution against e3nn-jax, and products of few terms."""

from __future__ import annotations

from typing import Any

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graphs import Structure, make_graph

from eqnet.graph import displacements
from eqnet.irreps import Irreps, IrrepsArray, regrouped, spherical_irreps
from eqnet.ops import choose_convolution, edge_product
from eqnet.ops.clebsch_gordan import ClebschGordan
from eqnet.ops.product import Radial
from eqnet.ops.sparse import Sparse, sparse_product
from eqnet.so3 import spherical_harmonics

pytestmark = pytest.mark.usefixtures("x64")
LEFT = "3x0e+2x0o+4x1o+1x1e+2x2e"


def random_array(irreps: str | Irreps, rows: tuple[int, ...], seed: int) -> IrrepsArray:
    irreps = regrouped(irreps)
    array = np.random.default_rng(seed).normal(size=(*rows, irreps.dim))
    return IrrepsArray(irreps, jnp.asarray(array))


def products() -> dict[str, ClebschGordan]:
    every = Irreps("0e+0o+1e+1o+2e+2o+3e+3o")
    left, right = regrouped(LEFT), spherical_irreps(3)
    return {
        "uvu": ClebschGordan(left, right, every),
        "uvu, two channels on the right": ClebschGordan(left, regrouped("2x0e+2x1o"), every),
        "uuu": ClebschGordan(regrouped("3x0e+3x1o"), regrouped("3x1o+3x2e"), every, "uuu"),
        "uvw": ClebschGordan(left, regrouped("2x0e+1x1o"), Irreps("2x0e+3x1o+1x1e+2x2e"), "uvw"),
    }


@pytest.mark.parametrize("name", products())
def test_value_against_e3nn(name: str) -> None:
    """Path by path with e3nn-jax's tables and arrays, in its own order of storage."""
    product = products()[name]
    x = random_array(product.irreps_left, (5,), 1)
    y = random_array(product.irreps_right, (5,), 2)
    weights = np.random.default_rng(3).normal(size=(5, product.num_weights))
    out = product(x, y, jnp.asarray(weights)).to_e3nn()
    xs, ys = x.to_e3nn(), y.to_e3nn()
    left_irreps, right_irreps = list(product.irreps_left), list(product.irreps_right)
    expected: dict = {}
    start = 0
    for path in product.paths:
        path_right = right_irreps[path.right].ir
        shape = product.weight_shape(path)
        size = int(np.prod(shape))
        w = weights[:, start : start + size].reshape(5, *shape)
        start += size
        left, right = np.asarray(xs.chunks[path.left]), np.asarray(ys.chunks[path.right])
        table = e3nn.clebsch_gordan(left_irreps[path.left].ir.l, path_right.l, path.out.l)
        formula = {
            "uvu": "nuv,nui,nvj,ijk->nuk",
            "uuu": "nu,nui,nuj,ijk->nuk",
            "uvw": "nuvw,nui,nvj,ijk->nwk",
        }[product.mode]
        term = np.einsum(formula, w, left, right, table) * product.normalisation(path)
        expected.setdefault(path.out, []).append(term)
    for (_, ir), block in zip(out.irreps, out.chunks, strict=True):
        terms = expected[ir]
        joined = sum(terms) if product.mode == "uvw" else np.concatenate(terms, axis=1)
        np.testing.assert_allclose(np.asarray(block), joined, atol=1e-12)


@pytest.mark.parametrize("name", products())
def test_component_normalisation(name: str) -> None:
    """Unit-variance inputs and weights give unit variance per component."""
    product = products()[name]
    rows = 20000
    x = random_array(product.irreps_left, (rows,), 1)
    y = random_array(product.irreps_right, (rows,), 2)
    weights = jnp.asarray(np.random.default_rng(3).normal(size=(rows, product.num_weights)))
    for block in product(x, y, weights).blocks:
        np.testing.assert_allclose((block**2).mean(), 1.0, rtol=0.1)


def test_impossible_products_are_refused() -> None:
    with pytest.raises(ValueError, match="no path"):
        ClebschGordan(Irreps("2x0e"), Irreps("1o"), Irreps("2x2e"))
    with pytest.raises(ValueError, match="equal multiplicities"):
        ClebschGordan(Irreps("2x0e"), Irreps("3x1o"), Irreps("1o"), "uuu")
    with pytest.raises(ValueError, match="no product 'gant'; there is: clebsch_gordan, gaunt"):
        edge_product("gant", Irreps("2x0e"), Irreps("1o"), Irreps("1o"), needed=Irreps("1o"))
    first = Irreps("2x0e"), spherical_irreps(2), Irreps("0e+1o+2e")
    with pytest.raises(ValueError, match="to 0e, which this model needs .its vector sig") as why:
        edge_product("vector_gaunt", *first, needed=first[2])
    named = str(why.value).rpartition("products that have: ")[2].split(", ")
    assert {"clebsch_gordan", "gaunt", "cp"} < set(named)
    assert not {"vector_gaunt", "gaunt_bracket"} & set(named)  # it would be gaunt
    for name in named:
        edge_product(name, *first, needed=first[2])
    product: Any = ClebschGordan(Irreps("2x0e"), Irreps("1o"), Irreps("1o"))
    with pytest.raises(
        ValueError, match="has no method 'quick'; it has: default, auto, rows, .*dense"
    ):
        choose_convolution(product, "quick")


def convolution_problem(atoms: int, slots: int | None) -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    structure = Structure(np.ones(atoms, int), rng.uniform(0, 4, (atoms, 3)), np.zeros((3, 3)))
    graph = make_graph([structure], (1,), 3.0, slots=slots, extra_atoms=1)
    graph = jax.tree.map(jnp.asarray, graph)
    product = ClebschGordan(regrouped(LEFT), spherical_irreps(2), regrouped(LEFT))
    vectors = displacements(graph)
    unit = vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    y = IrrepsArray.from_blocks(
        spherical_irreps(2), [h[..., None] for h in spherical_harmonics(2, unit)]
    )
    x = random_array(LEFT, (graph.num_atoms,), 1)
    hidden = (
        rng.normal(size=(*graph.neighbors.shape, 5)) * np.asarray(graph.neighbor_mask)[..., None]
    )
    matrix = rng.normal(size=(5, product.num_weights))
    return product, x, y, Radial(jnp.asarray(hidden), (jnp.asarray(matrix),)), graph


@pytest.mark.parametrize("slots", [None, 4])
def test_convolution_against_a_loop_over_edges(slots: int | None) -> None:
    """Edge by edge with the tables of e3nn-jax."""
    product, x, y, (hidden, (matrix,), _), graph = convolution_problem(7, slots)
    convolve = choose_convolution(product, "dense")
    out = convolve(product, x, y, Radial(hidden, (matrix,)), graph).to_e3nn()
    expected = [np.zeros(np.shape(np.asarray(block))) for block in out.chunks]
    order = {ir: n for n, (_, ir) in enumerate(out.irreps)}
    xs = [np.asarray(chunk) for chunk in x.to_e3nn().chunks]
    ys = [np.asarray(chunk) for chunk in y.to_e3nn().chunks]
    left_irreps = list(product.irreps_left)
    for r, k in np.argwhere(np.asarray(graph.neighbor_mask)):
        i, j = int(graph.centers[r]), int(graph.neighbors[r, k])
        weights = np.asarray(hidden[r, k] @ matrix)
        filled = [0] * len(expected)
        start = 0
        for path in product.paths:
            mul, left = left_irreps[path.left]
            w = weights[start : start + mul]
            start += mul
            table = e3nn.clebsch_gordan(left.l, path.right, path.out.l) * np.sqrt(path.out.dim)
            term = np.einsum("u,ui,j,ijk->uk", w, xs[path.left][j], ys[path.right][r, k, 0], table)
            n = order[path.out]
            expected[n][i, filled[n] : filled[n] + mul] += term
            filled[n] += mul
    for block, value in zip(out.chunks, expected, strict=True):
        np.testing.assert_allclose(np.asarray(block), value, atol=1e-11)


def test_sparse_product_and_its_derivatives() -> None:
    """Against a dense contraction, forward, backward, and under vmap."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(3, 4, 5)) * (rng.uniform(size=(3, 4, 5)) < 0.3)
    sparse = Sparse.from_dense(table)
    x, y = jnp.asarray(rng.normal(size=(2, 3, 6))), jnp.asarray(rng.normal(size=(2, 4, 6)))

    def dense(x, y):
        return jnp.einsum("nic,njc,ijk->nkc", x, y, table)

    def ours(x, y):
        return sparse_product(sparse, x, y)

    def second(f):
        def once(x, y):
            return sum((g**3).sum() for g in jax.grad(lambda *v: (f(*v) ** 2).sum(), (0, 1))(x, y))

        return jax.grad(once, (0, 1))(x, y)

    np.testing.assert_allclose(ours(x, y), dense(x, y), atol=1e-12)
    for a, b in zip(second(ours), second(dense), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
    tangents = (y[:, :3], x[:, [0, 1, 2, 0]])
    a, b = (jax.jvp(f, (x, y), tangents)[1] for f in (ours, dense))
    np.testing.assert_allclose(a, b, atol=1e-12)
    many = jax.vmap(ours, in_axes=(0, None))(jnp.stack([x, 2 * x]), y)
    np.testing.assert_allclose(many[1], 2 * dense(x, y), atol=1e-12)
