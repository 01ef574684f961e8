"""Projections against Haar averages and null spaces; broken symmetries told from held ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from graphs import Structure, make_graph
from scipy.linalg import null_space
from scipy.spatial.transform import Rotation

from eqnet.broken_symmetry import AROUND, CASES, Case, Settings, measured, train
from eqnet.irreps import Irreps
from eqnet.models.coordinate_network import CoordinateNetwork, CoordinateNetworkConfig
from eqnet.models.frame_averaging import FrameAveraging, turned
from eqnet.soft_equivariance import (
    FreeLinear,
    SoftNetwork,
    breaking,
    deviation,
    distances,
    regulariser,
    relative_distances,
    strengths,
)
from eqnet.symmetry_groups import (
    INVERSION,
    O3,
    SCALING,
    SO3,
    Features,
    Group,
    around,
    cyclic,
    equivariant_projector,
    mirror,
    rotations,
)

INTO, OUT = Features(Irreps("0e+1o+2e"), 3, (0, 1, 0)), Features(Irreps("0e+1e+1o+2e"), 2)
TILTED = (1.0, 2.0, -0.5)
GROUPS = [
    O3, SO3, INVERSION, SCALING, SO3 * SCALING, mirror(TILTED, "mirror"),
    cyclic(TILTED, 3, "C3"), rotations(TILTED, "SO(2)"), around(TILTED, "O(2)"),
    cyclic((0, 0, 1), 4, "C4") * mirror((1, 0, 0), "m"),
]  # fmt: skip
EACH_GROUP = pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)


def symmetric_basis() -> np.ndarray:
    """xz, xy, 2 y^2 - x^2 - z^2, yz, z^2 - x^2 as orthonormal matrices, [5, 3, 3]."""
    basis = np.zeros((5, 3, 3))
    for k, (i, j) in ((0, (0, 2)), (1, (0, 1)), (3, (1, 2))):
        basis[k, i, j] = basis[k, j, i] = np.sqrt(0.5)
    basis[2] = np.diag([-1, 2, -1]) / np.sqrt(6)
    basis[4] = np.diag([-1, 0, 1]) / np.sqrt(2)
    return basis


def matrices(features: Features, elements: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Representations on numbers, vectors and symmetric matrices, [n, dim, dim]."""
    sign, basis = np.linalg.det(elements), symmetric_basis()
    proper = elements * sign[:, None, None]
    tensor = np.einsum("kab,nac,nbd,jcd->nkj", basis, proper, proper, basis, optimize=True)
    made = np.zeros((len(elements), features.dim, features.dim), complex)
    for (_, ir), degree, at in zip(features.irreps, features.degrees, features.slices, strict=True):
        one = [np.ones((len(elements), 1, 1)), proper, tensor][ir.l]
        made[:, at, at] = (one.T * scales**degree * np.where(sign < 0, ir.p, 1)).T
    return made


def quadrature(group: Group) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rotations, scales of modulus one and weights: exact means of degree 4 over the group.

    Scalings have no mean, but the maps that commute with s commute with exp(i t).
    """
    angles = 2 * np.pi * np.arange(7) / 7
    if len(group.axes) > 1:
        heights, weights = np.polynomial.legendre.leggauss(5)
        euler = [(a, np.arccos(z), c) for a in angles for z in heights for c in angles]
        turns = Rotation.from_euler("zyz", euler).as_matrix()
        weights = np.tile(np.repeat(weights, 7), 7)
    else:
        axis = np.array(group.axes[0] if group.axes else (0.0, 0.0, 0.0))
        turns = Rotation.from_rotvec(np.outer(angles, axis)).as_matrix()
        weights = np.ones(7)
    finite = group.finite()
    phases = np.exp(1j * angles[:3] * 7 / 3) if group.scaling else np.ones(1)
    elements = np.repeat(np.concatenate([turns @ f for f in finite]), len(phases), axis=0)
    weights = np.repeat(np.tile(weights, len(finite)), len(phases))
    return elements, np.resize(phases, len(elements)), weights / weights.sum()


@EACH_GROUP
def test_projection_is_the_mean_over_the_group(group: Group) -> None:
    elements, phases, weights = quadrature(group)
    out, into = (matrices(f, elements, phases) for f in (OUT, INTO))
    mean = np.einsum("g,gba,gdc->acbd", weights, out.conj(), into, optimize=True)
    np.testing.assert_allclose(equivariant_projector(group, OUT, INTO), mean, atol=1e-12)


@EACH_GROUP
def test_projection_is_that_on_a_null_space(group: Group) -> None:
    """The maps that commute with random elements, which make the group, and all finite ones."""
    elements, scales = group.sample(np.random.default_rng(0), 4)
    finite = group.finite()
    elements, scales = np.concatenate([elements, finite]), np.append(scales, np.ones(len(finite)))
    m, n = OUT.dim, INTO.dim
    pairs = zip(*(np.real(matrices(f, elements, scales)) for f in (OUT, INTO)), strict=True)
    rows = [np.kron(a, np.eye(n)) - np.kron(np.eye(m), b.T) for a, b in pairs]
    q = null_space(np.concatenate(rows), rcond=1e-9)
    p = equivariant_projector(group, OUT, INTO).reshape(m * n, m * n)
    np.testing.assert_allclose(p, q @ q.T, atol=1e-12)
    np.testing.assert_allclose(p, p.T, atol=1e-13)
    np.testing.assert_allclose(p, p @ p, atol=1e-13)


@EACH_GROUP
def test_representations(group: Group) -> None:
    elements, scales = group.sample(np.random.default_rng(1), 6)
    found, expected = OUT.matrices(elements, scales), matrices(OUT, elements, scales)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert (np.ptp(scales) > 0) == group.scaling


def test_representations_are_those_of_e3nn(x64: None) -> None:
    element, _ = O3.sample(np.random.default_rng(0), 1)
    irreps = Irreps("0o+1e+2o")
    expected = irreps.D_from_matrix(jnp.asarray(element[0]))
    found = Features(irreps, 1).matrices(element, np.ones(1))[0]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_sizes_of_groups() -> None:
    """C4v has 8 elements, the cube's rotations 24; characters count the maps of 1o to 1o."""
    assert len(GROUPS[-1].finite()) == 8
    cube = cyclic((0, 0, 1), 4, "C4") * cyclic((1, 1, 1), 3, "C3")
    assert len(cube.finite()) == 24
    vector, tensor = Features(Irreps("1o"), 1), Features(Irreps("2e"), 1)
    for group, vectors, tensors in ((SO3, 1, 1), (cube, 1, 2), (AROUND["z"], 2, 3)):
        for features, number in ((vector, vectors), (tensor, tensors)):
            p = equivariant_projector(group, features, features)
            assert np.einsum("abab", p) == pytest.approx(number)


@pytest.mark.parametrize("axes", [((0, 0, 2.0),), ((0, 0, 1.0), (0, 0, -1.0))])
def test_axes_that_are_none(axes: tuple) -> None:
    with pytest.raises(ValueError, match="unit vectors, no two of them parallel"):
        Group("g", axes=axes)


def test_groups_that_are_none() -> None:
    with pytest.raises(ValueError, match="turns the only axis"):
        _ = rotations((0, 0, 1), "SO(2)") * mirror((1, 0, 1), "mirror")
    with pytest.raises(ValueError, match="more than 240 matrices"):
        Group("C?", elements=cyclic((0, 0, 1), 777, "C777").elements)
    with pytest.raises(ValueError, match="an axis is three numbers"):
        rotations((0, 0, 0), "SO(2)")
    with pytest.raises(ValueError, match="channels are the copies"):
        Features(Irreps("2x0e"), 1)
    with pytest.raises(ValueError, match="need 2 degrees"):
        Features(Irreps("0e+1o"), 1, (1,))


def test_regulariser_is_zero_for_equivariant_weights_only(x64: None) -> None:
    groups = [O3, AROUND["z"], SCALING]
    free = FreeLinear(INTO, OUT, rngs=nnx.Rngs(0))
    exact = FreeLinear(INTO, OUT, group=AROUND["z"], freedom=0.0, rngs=nnx.Rngs(0))
    assert distances(free, groups).min() > 1e-3
    left = distances(exact, groups)
    assert left[1] < 1e-26 < 1e-3 < min(left[0], left[2])
    assert 0 < relative_distances(exact, groups)[0] < 1
    with pytest.raises(ValueError, match="no FreeLinear layer"):
        distances(exact.weight, groups)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="freedom is from 0 to 1"):
        FreeLinear(INTO, OUT, freedom=0.5, rngs=nnx.Rngs(0))


def test_regulariser_and_its_gradient(x64: None) -> None:
    """Value by the quadrature of the group; gradient lambda (W - P W) / n by hand."""
    groups, lambdas = [AROUND["z"], SCALING, SO3], np.array([0.3, 0.0, 2.0])
    layer = FreeLinear(INTO, OUT, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.asarray(np.random.default_rng(0).normal(size=(OUT.dim, OUT.channels)))
    root = np.sqrt(INTO.dim * INTO.channels)
    w, b = np.asarray(layer.weight[...]) / root, np.asarray(layer.bias[...])
    value, slope = 0.0, np.zeros_like(w)
    for group, strength in zip(groups, lambdas, strict=True):
        elements, phases, weights = quadrature(group)
        out, into = (matrices(f, elements, phases) for f in (OUT, INTO))
        mean = np.einsum("g,gba,bmdn,gdc->amcn", weights, out.conj(), w, into, optimize=True)
        bias = np.einsum("g,gba,bm->am", weights, out.conj(), b)
        value += strength / 2 * ((abs(w - mean) ** 2).sum() + (abs(b - bias) ** 2).sum())
        slope += strength * np.real(w - mean)
    state = nnx.state(layer)
    graphdef = nnx.graphdef(layer)
    found, gradient = jax.value_and_grad(
        lambda state: regulariser(nnx.merge(graphdef, state), groups, jnp.asarray(lambdas))
    )(state)
    assert float(found) == pytest.approx(value, rel=1e-12)
    assert float(distances(layer, groups) @ lambdas) == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(gradient["weight"][...], slope / root, atol=1e-13)


def test_strengths_by_hand() -> None:
    found = strengths(3.0, jnp.array([0.2, 0.1, 0.4]), power=2.0)
    np.testing.assert_allclose(found, [0.75, 3.0, 0.1875], rtol=1e-6)
    np.testing.assert_allclose(strengths(3.0, jnp.array([0.0, 0.1])), [3.0, 0.0])


def test_only_linear_maps_break_symmetries(x64: None) -> None:
    """Squares and gates are exact: with projected maps the network is, for every group."""
    group = O3 * SCALING
    into, out = Features(Irreps("0e+1o"), 3, (1, 0)), Features(Irreps("0e+1e+2e"), 1)
    hidden = Features(Irreps("0e+0e+1o+2e"), 4, (0, 1, 0, 0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(20, into.dim, into.channels)))
    for freedom, low, high in ((0.0, 0.0, 1e-13), (1.0, 0.1, np.inf)):
        model = SoftNetwork(
            into, hidden, out, 1, group=group, freedom=freedom, rngs=nnx.Rngs(0)
        )  # fmt: skip
        rng = np.random.default_rng(0)
        assert low <= breaking(nnx.jit(model), x, group, (into, out), rng) <= high


@pytest.mark.parametrize("name", list(CASES))
def test_levels_of_the_cases(name: str) -> None:
    """Closed forms against the functions themselves: by 10,000 inputs and elements."""
    case = CASES[name](0.5)
    rng = np.random.default_rng(0)
    x, y = case.draw(rng, 10_000)
    assert x.shape[1:] == (case.into.dim, case.into.channels) and y.shape[1:] == (case.out.dim, 1)
    for group, level in case.groups.items():
        function = FUNCTIONS[name.split("-")[0]]
        elements, scales = group.sample(rng, len(x))
        moved = np.einsum("nab,nbc->nac", case.into.matrices(elements, scales), x)
        there, here = function(moved, name), function(x, name)
        np.testing.assert_allclose(here[:9], y[:9], atol=1e-12)
        back = np.einsum("nba,nbc->nac", case.out.matrices(elements, np.ones(len(x))), there)
        found = np.sqrt(((back - here) ** 2).mean() / 2 / (here**2).mean())
        assert found == pytest.approx(level, rel=0.05, abs=1e-12)


def inertia_of(x: np.ndarray, name: str) -> np.ndarray:
    """The published function, one mass at a time, as 0e + 1e + 2e."""
    a = np.diag([1, 1, 1.5]) if name == "inertia-z" else np.diag([0.5, 1.5, 1])
    total = np.zeros((len(x), 3, 3))
    for i in range(x.shape[2]):
        mass, r = x[:, 0, i], x[:, 1:, i]
        tensor = (r**2).sum(1)[:, None, None] * np.eye(3) - r[:, :, None] * r[:, None]
        total += mass[:, None, None] * tensor @ a
    trace = np.trace(total, axis1=1, axis2=2)
    odd = [total[:, p, q] - total[:, q, p] for p, q in ((1, 2), (2, 0), (0, 1))]
    even = np.einsum("kab,nab->kn", symmetric_basis(), total)
    columns = [trace / np.sqrt(3), *(v / np.sqrt(2) for v in odd), *even]
    return np.stack(columns, axis=1)[..., None]


def cosine_of(x: np.ndarray, name: str) -> np.ndarray:
    scale, turn = 0.5 * (name != "cosine-z"), 0.5 * (name != "cosine-scale")
    length, unit = x[:, 0], x[:, 1:]
    pairs = [(unit[:, :, i] * unit[:, :, (i + 1) % 3]).sum(1) for i in range(3)]
    y = sum(pairs) / 3 - scale * length.mean(1) + turn * (unit[:, 2] ** 2).mean(1)
    return y[:, None, None]


FUNCTIONS = {"inertia": inertia_of, "cosine": cosine_of}


def test_a_broken_symmetry_is_found() -> None:
    """Rotations about x break cos - z^2 and those about z do not; so the strengths say too."""
    case: Case = CASES["cosine-z"](0.5)
    groups = {g: level for g, level in case.groups.items() if g in (AROUND["x"], AROUND["z"])}
    case = case._replace(groups=groups, hidden=("0e+1o+2e", (0, 0, 0)))
    settings = Settings(channels=4, layers=1, steps=400, learning_rate=0.03, samples=500)
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(v, jnp.float32) for v in case.draw(rng, settings.samples))
    new, truth = (jnp.asarray(v, jnp.float32) for v in case.draw(rng, 1000))
    model, strength = train(case, (x, y), settings, "soft", seed=0)
    function = nnx.jit(model)
    assert ((function(new) - truth) ** 2).mean() < 0.02 * (truth**2).mean()
    levels = [breaking(function, new, g, (case.into, case.out), rng) for g in groups]
    assert levels[0] == pytest.approx(groups[AROUND["x"]], rel=0.1)
    assert levels[1] < 0.2 * levels[0]
    assert strength[0] < 0.2 * strength[1] == pytest.approx(0.2)
    left = measured(relative_distances, model, list(groups))
    assert left[1] < 0.5 * left[0]


def test_deviation_of_a_network_of_coordinates(x64: None) -> None:
    """A regulariser for any function: descent of it makes plain coordinates more invariant."""
    rng = np.random.default_rng(0)
    molecule = Structure(np.full(4, 6), 1.2 * rng.normal(size=(4, 3)), np.zeros((3, 3)))
    graph = make_graph([molecule], (6,), 4.0)
    config = CoordinateNetworkConfig((6,), 4.0, num_channels=4, num_interactions=1)
    model = CoordinateNetwork(config, rngs=nnx.Rngs(0))
    moved = turned(graph, jnp.asarray(O3.sample(rng, 1)[0]))
    assert deviation(FrameAveraging(model), graph, moved) < 1e-20
    graphdef, state = nnx.split(model)
    cost = jax.jit(
        jax.value_and_grad(lambda state: deviation(nnx.merge(graphdef, state), graph, moved))
    )
    first, gradient = cost(state)
    step = 0.01 * first / sum((g**2).sum() for g in jax.tree.leaves(gradient))
    second, _ = cost(jax.tree.map(lambda p, g: p - step * g, state, gradient))
    assert float(second) == pytest.approx(0.99 * float(first), rel=2e-3)
