"""Linear maps in the frame of an edge, against Clebsch-Gordan products, closed forms and loops."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from graphs import Structure, make_graph
from scipy.linalg import block_diag

from eqnet.graph import displacements, sum_rows
from eqnet.irreps import Irreps, IrrepsArray, spherical_irreps
from eqnet.operations import count
from eqnet.ops import blocks
from eqnet.ops import edge_network as edges_in_blocks
from eqnet.ops.edge_network import edge_embedding, edge_network
from eqnet.ops.so2 import SO2
from eqnet.ops.so2_linear import OrderRows, SO2Linear, SO2Map, gated
from eqnet.ops.so2_orders import Group
from eqnet.so3 import random_elements, spherical_harmonics, wigner_d

pytestmark = pytest.mark.usefixtures("x64")
BOTH = Irreps("1x0e+1x0o+1x1o+1x1e+1x2e").regroup()


class Toy(nnx.Module):
    """tanh(z W) times what an edge tells, and the sum of its squares for each row."""

    def __init__(self) -> None:
        self.weight = nnx.Param(jnp.asarray([[1.0, 2.0, -0.5], [0.3, -1.0, 0.7]] * 2))

    def __call__(self, z: jax.Array, edge: jax.Array) -> tuple[jax.Array, jax.Array]:
        z = jnp.tanh(z @ jnp.asarray(self.weight[...])) * edge[..., None, None]
        return z, (z**2).sum((1, 2, 3))


class Numbers(nnx.Module):
    """Numbers at m = 0 of each edge: what it tells and its square, for one channel."""

    def __call__(self, edge: jax.Array) -> jax.Array:
        return jnp.stack([edge, edge**2], axis=-1)[..., None]


def unit_vectors(number: int, seed: int = 0) -> np.ndarray:
    v = np.random.default_rng(seed).normal(size=(number, 3))
    v[:3] = [[0, 1, 0], [0, -1, 0], [1, 0, 0]]
    return v / np.linalg.norm(v, axis=1, keepdims=True)


@pytest.mark.parametrize("m_max", [None, 0, 1])
def test_harmonics_of_the_edge_have_order_zero_alone(m_max: int | None) -> None:
    rows = OrderRows(spherical_irreps(3), m_max)
    n = jnp.asarray(unit_vectors(8))
    a = jax.jit(rows.matrices)(n)
    harmonics = jnp.concatenate(spherical_harmonics(3, n), axis=-1)
    turned = np.einsum("eqk,ek->eq", a, harmonics)
    expected = np.zeros((8, rows.num_rows))
    expected[:, :4] = np.sqrt([1, 3, 5, 7])
    np.testing.assert_allclose(turned, expected, atol=1e-13)
    identity = np.broadcast_to(np.eye(rows.num_rows), (8, rows.num_rows, rows.num_rows))
    np.testing.assert_allclose(a @ a.swapaxes(1, 2), identity, atol=1e-13)
    assert rows.num_rows == {None: 16, 0: 4, 1: 10}[m_max]


@pytest.mark.parametrize("group", ["O3", "SO3"])
@pytest.mark.parametrize("m_max", [None, 1])
def test_map_is_the_clebsch_gordan_product(group: Group, m_max: int | None) -> None:
    """With the path weights of `SO2`, in its plain form."""
    irreps = BOTH if group == "O3" else spherical_irreps(2)
    out = Irreps("1x0e+1x1o+1x1e").regroup() if group == "O3" else spherical_irreps(1)
    rows_in, rows_out = OrderRows(irreps, m_max, group), OrderRows(out, m_max, group)
    linear = SO2Map(rows_in, rows_out, 4, 3)
    right = spherical_irreps(1)
    product = SO2((irreps * 4).regroup(), right, (out * 3).regroup(), m_max, group)
    rng = np.random.default_rng(0)
    matrices = [jnp.asarray(rng.normal(size=shape)) for shape in linear.shapes]
    factors = jnp.asarray(rng.normal(size=(8, linear.num_factors)))
    x, n = rng.normal(size=(8, rows_in.dim, 4)), unit_vectors(8)

    @jax.jit
    def message(x: jax.Array, n: jax.Array) -> jax.Array:
        z = jnp.einsum("eqk,ekc->eqc", rows_in.matrices(n), x)
        mixed, _ = linear(z, matrices, jnp.zeros(linear.num_biases), factors)
        return jnp.einsum("eqk,eqc->ekc", rows_out.matrices(n), mixed)

    y = jnp.concatenate([h[..., None] for h in spherical_harmonics(1, jnp.asarray(n))], axis=-2)
    # `SO2` lifts components of outputs that lose rows to m_max to unit variance on average
    scaled = []
    kept = {ir: len([1 for q in rows_out.degrees if rows_out.members[q] == ir]) for _, ir in out}
    for order, matrix in zip(linear.orders, matrices, strict=True):
        lift = [np.sqrt(rows_out.members[q].dim / kept[rows_out.members[q]]) for q in order.outputs]
        scaled.append((matrix / np.repeat(lift, 3)).ravel())
    plain = jax.jit(product)(
        IrrepsArray((irreps * 4).regroup(), x.reshape((8, -1))),
        IrrepsArray(right, y.reshape((8, -1))),
        jnp.asarray(factors),
        jnp.asarray(np.concatenate(scaled)),
    )
    np.testing.assert_allclose(message(x, n).reshape((8, -1)), plain.array, atol=1e-12)


@pytest.mark.parametrize("group", ["O3", "SO3"])
def test_rolls_and_mirrors(group: Group) -> None:
    """A network of linear maps and gates: equivariant in its group, and in SO3 only there."""
    irreps = BOTH if group == "O3" else spherical_irreps(2)
    rows = OrderRows(irreps, None, group)
    others = len(rows.members) - 1
    first = SO2Linear(rows, rows, 3, 4, extra=4 * others, rngs=nnx.Rngs(0))
    second = SO2Linear(rows, rows, 4, 3, rngs=nnx.Rngs(1))
    first.bias[...] = jnp.asarray(np.random.default_rng(3).normal(size=first.bias.shape))

    @jax.jit
    def message(x: jax.Array, n: jax.Array) -> jax.Array:
        a = rows.matrices(n)
        z, gates = first(jnp.einsum("eqk,ekc->eqc", a, x))
        return jnp.einsum("eqk,eqc->ekc", a, second(gated(rows, z, gates))[0])

    rng, n, wigner = np.random.default_rng(1), unit_vectors(8), jax.jit(partial(wigner_d, 2))
    x = rng.normal(size=(8, rows.dim, 3))
    expected = message(x, n)
    for turn in random_elements(rng, 6, "O3"):
        parity = np.linalg.det(turn)
        matrices = wigner(jnp.asarray(turn * parity))
        d = np.asarray(
            block_diag(*[matrices[ir.l] * (ir.p if parity < 0 else 1) for _, ir in irreps])
        )
        error = np.abs(message(d @ x, n @ turn.T) - d @ expected).max()
        if group == "SO3" and np.linalg.det(turn) < 0:
            assert error > 1e-2
        else:
            assert error < 1e-12


@pytest.mark.parametrize(("edges_at_a_time", "at_once"), [(4, 0), (10**6, 0), (4, 10**6)])
def test_sum_over_the_neighbours(
    edges_at_a_time: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Atoms of several rows, blocks filled up; against a loop over the edges."""
    monkeypatch.setattr(blocks, "EDGES_AT_A_TIME", {"cpu": edges_at_a_time})
    monkeypatch.setattr(edges_in_blocks, "AT_ONCE_BYTES", at_once)
    rng = np.random.default_rng(4)
    structure = Structure(np.ones(6, int), rng.normal(size=(6, 3)), np.zeros((3, 3)))
    graph = make_graph([structure], (1,), 3.0, slots=2, width=3)
    assert not graph.one_row_per_atom and graph.neighbor_mask.sum() > 12
    rows = OrderRows(spherical_irreps(2), 1)
    vectors = displacements(graph)
    distance = jnp.linalg.norm(vectors, axis=-1)
    a = jax.jit(rows.matrices)(vectors / distance[..., None])
    edge = jnp.where(graph.neighbor_mask, 1 / distance, 0.0)
    x = jnp.asarray(rng.normal(size=(6, rows.dim, 2)))
    toy = Toy()
    found, squares = jax.jit(lambda x: edge_network(toy, x, a, edge, graph))(x)
    embedded = sum_rows(edge_embedding(Numbers(), a, edge), graph)

    expected, degrees = np.zeros((6, rows.dim, 3)), np.zeros((6, rows.dim, 1))
    expected_squares = np.zeros(graph.centers.shape)
    weight = np.array(toy.weight[...])
    for r, k in np.argwhere(graph.neighbor_mask):
        i, j, frame = graph.centers[r], graph.neighbors[r, k], np.asarray(a[r, k])
        both = np.concatenate([np.asarray(x[j]), np.asarray(x[i])], axis=-1)
        z = np.tanh(frame @ both @ weight) * float(edge[r, k])
        expected[i] += frame.T @ z
        expected_squares[r] += (z**2).sum()
        # row m = 0 of l turned back is the harmonic over sqrt(2 l + 1)
        first, second = float(edge[r, k]), float(edge[r, k]) ** 2
        degrees[i, 0] += first
        degrees[i, 1:4, 0] += second * np.asarray(vectors[r, k] / distance[r, k])
    np.testing.assert_allclose(sum_rows(found, graph), expected, atol=1e-12)
    np.testing.assert_allclose(squares, expected_squares, atol=1e-12)
    np.testing.assert_allclose(embedded, degrees, atol=1e-12)


class Maps(nnx.Module):
    """Two linear maps with a tanh between them."""

    def __init__(self, rows: OrderRows) -> None:
        self.first = SO2Linear(rows, rows, 2, 4, rngs=nnx.Rngs(0))
        self.second = SO2Linear(rows, rows, 4, 1, rngs=nnx.Rngs(1))

    def __call__(self, z: jax.Array, edge: jax.Array) -> tuple[jax.Array, tuple[()]]:
        z = self.second(jnp.tanh(self.first(z)[0]))[0]
        return z * edge[..., None, None], ()


def test_gradient_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against finite differences, with and without what is kept for it, which saves operations."""
    monkeypatch.setattr(blocks, "EDGES_AT_A_TIME", {"cpu": 4})
    monkeypatch.setattr(edges_in_blocks, "AT_ONCE_BYTES", 0)
    rng = np.random.default_rng(4)
    structure = Structure(np.ones(6, int), rng.normal(size=(6, 3)), np.zeros((3, 3)))
    graph = make_graph([structure], (1,), 3.0, slots=2, width=3)
    rows = OrderRows(spherical_irreps(1), group="SO3")
    vectors = displacements(graph)
    a = jax.jit(rows.matrices)(vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True))
    edge = jnp.asarray(graph.neighbor_mask, float)
    x, step = jnp.asarray(rng.normal(size=(2, 6, rows.dim, 1)))
    maps = Maps(rows)

    def value(x: jax.Array) -> jax.Array:
        return (edge_network(maps, x, a, edge, graph)[0] ** 2).sum()

    small = 1e-5
    expected = (jax.jit(value)(x + small * step) - jax.jit(value)(x - small * step)) / (2 * small)
    operations = []
    for kept in (0, 10**6):
        monkeypatch.setattr(edges_in_blocks, "KEPT_BYTES", kept)
        gradient = jax.grad(lambda x: value(x))
        np.testing.assert_allclose((jax.jit(gradient)(x) * step).sum(), expected, rtol=1e-7)
        operations.append(count(gradient, x))
    assert operations[1] < 0.9 * operations[0]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="number of channels"):
        OrderRows(Irreps("2x0e+1x1o"))
    with pytest.raises(ValueError, match="m_max"):
        OrderRows(spherical_irreps(1), -1)
    with pytest.raises(ValueError, match="group"):
        OrderRows(spherical_irreps(1), 1, "SU2")  # pyright: ignore[reportArgumentType]
