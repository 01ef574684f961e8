"""EquiformerV2 against a program that loops over edges in numpy, and its published sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from graphs import Structure, edges_within, make_graph

from eqnet.equivariance import declared_error
from eqnet.models.equiformer_v2 import (
    EquiformerV2,
    EquiformerV2Config,
    FeedForward,
    GraphAttention,
    Layer,
)
from eqnet.norms import NormedMLP
from eqnet.so3 import random_elements

# Second moments of the activations for unit normal input.
SILU, SIGMOID = 1.6791767923989418, 1.8462285453386056
SMALL = EquiformerV2Config(
    (1, 6, 8), r_max=3.5, num_channels=3, max_L=2, m_max=2, num_interactions=2, num_heads=2,
    alpha_channels=4, value_channels=3, hidden_channels=2, ffn_channels=4, edge_channels=5,
    num_radial_basis=6, avg_num_neighbors=4.3,
)  # fmt: skip
CONFIGS = {
    "gate, O3": SMALL,
    "gate, SO3, fewer orders": replace(SMALL, m_max=1, group="SO3"),
    # so fine that the grid is exact to nine digits
    "as published": replace(
        SMALL, m_max=1, group="SO3", activation="s2", attention="softmax", grid_resolution=40
    ),
}
Blocks = list[np.ndarray]  # [2 l + 1, C] of each degree


def structures() -> list[Structure]:
    rng = np.random.default_rng(3)
    grid = np.array([[0, 0, 0], [1.4, 0, 0], [0, 1.3, 0.2], [1.2, 1.1, 0.9], [9.0, 0.3, 0.4]])
    molecule = Structure(
        np.array([6, 8, 1, 6, 1]), grid + rng.normal(scale=0.1, size=(5, 3)), np.zeros((3, 3))
    )
    cell = np.array([[2.9, 0.1, 0.0], [0.5, 3.1, 0.2], [0.0, -0.4, 3.3]])
    return [
        molecule,
        Structure(np.array([8, 1]), np.array([[0.1, 0.2, 0.0], [1.2, 1.5, 1.4]]), cell),
    ]


def value(param: nnx.Param) -> np.ndarray:
    return np.asarray(param[...], np.float64)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def silu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x)


def dense(x: np.ndarray, layer: Any) -> np.ndarray:
    return x @ value(layer.weight) / np.sqrt(len(x)) + value(layer.bias)


def layer_norm(x: np.ndarray, layer: Any) -> np.ndarray:
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * value(layer.scale) + value(layer.shift)


def normed_mlp(x: np.ndarray, mlp: Any) -> np.ndarray:
    for n, layer in enumerate(mlp.layers):
        if n:
            x = silu(layer_norm(x, mlp.norms[n - 1]) if len(mlp.norms) else x)
        x = dense(x, layer)
    return x


def linear(x: Blocks, layer: Any) -> Blocks:
    weights = [value(w) for _, w in sorted(layer.weights.items())]
    out = [b @ w / np.sqrt(len(w)) for b, w in zip(x, weights, strict=True)]
    out[0] = out[0] + value(layer.bias)
    return out


def separable_norm(x: Blocks, layer: Any) -> Blocks:
    scales = [value(w) for _, w in sorted(layer.scale.items())]
    scalars = (x[0] - x[0].mean()) / np.sqrt(x[0].var() + 1e-5) * scales[0] + value(layer.shift)
    square = np.mean([np.mean(np.sum(b**2, axis=0) / len(b)) for b in x[1:]])
    rest = [b / np.sqrt(square + 1e-5) * s for b, s in zip(x[1:], scales[1:], strict=True)]
    return [scalars, *rest]


def so2(z: Blocks, layer: Any, factors: np.ndarray | None) -> tuple[Blocks, np.ndarray]:
    """By complex numbers x[+m] + i x[-m]."""
    hidden, group = layer.map.channels_out, layer.map.rows_in.group
    out = [np.zeros((len(b), hidden)) for b in z]
    extra, start = np.zeros(0), 0
    for m, param in enumerate(layer.matrices):
        high = [b for b in z if len(b) > 2 * m]
        x = np.concatenate([b[len(b) // 2 + m] + 1j * b[len(b) // 2 - m] for b in high])
        x = np.real(x) if m == 0 else x
        if factors is not None:
            x, start = x * factors[start : start + len(x)], start + len(x)
        w = value(param)
        y = x @ (w[0] + 1j * w[1] if m and group == "SO3" else w[0]) / np.sqrt(w[..., 0].size)
        if m == 0:
            y = y + value(layer.bias)
            y, extra = np.split(y, [len(y) - layer.map.extra])
        for b, part in zip(out[m:], y.reshape((-1, hidden)), strict=True):
            b[len(b) // 2 + m], b[len(b) // 2 - m] = (
                np.real(part),
                np.imag(part) if m else np.real(part),
            )
    return out, extra


@cache
def sphere(l_max: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Orthonormal harmonics at the points of a grid, and weights; not the size of the model's."""
    nodes, weights = np.polynomial.legendre.leggauss(44)
    angle = 2 * np.pi / 45 * np.arange(45)
    y, angle = np.repeat(nodes, 45), np.tile(angle, 44)
    rho = np.sqrt(1 - y**2)
    points = jnp.asarray(np.stack([rho * np.sin(angle), y, rho * np.cos(angle)], axis=1))
    degrees = [e3nn.Irreps([(1, (l, (-1) ** l))]) for l in range(l_max + 1)]
    found = [
        np.asarray(e3nn.spherical_harmonics(d, points, True, "integral").array) for d in degrees
    ]
    return found, np.repeat(weights * 2 * np.pi / 45, 45)


def on_sphere(z: Blocks, m_max: int, function: Callable) -> Blocks:
    harmonics, weights = sphere(len(z) - 1)
    kept = [min(2 * l + 1, 2 * m_max + 1) for l in range(len(z))]
    unit = [np.sqrt(n * len(z) / (4 * np.pi)) for n in kept]
    values = sum(y @ b / u for y, b, u in zip(harmonics, z, unit, strict=True))
    back = function(values) * weights[:, None]
    out = [y.T @ back * u for y, u in zip(harmonics, unit, strict=True)]
    for b in out:
        m = np.arange(len(b)) - len(b) // 2
        b[np.abs(m) > m_max] = 0
    return out


def perceptron(x: np.ndarray, mlp: Any) -> np.ndarray:
    for n, w in enumerate(mlp.weights):
        x = (SILU * silu(x) if n else x) @ value(w) / np.sqrt(w.shape[0])
    return x


def feed_forward(x: Blocks, layer: FeedForward, config: EquiformerV2Config) -> Blocks:
    scalars, hidden = dense(x[0][0], layer.scalars), linear(x, layer.expand)
    if config.activation == "s2":
        hidden = on_sphere(hidden, config.max_L, lambda v: perceptron(v, layer.at_points))
        hidden[0] = SILU * silu(scalars)[None]
    else:
        gates = SIGMOID * sigmoid(scalars).reshape((config.max_L, -1))
        rest = [b * g for b, g in zip(hidden[1:], gates, strict=True)]
        hidden = [SILU * silu(hidden[0]), *rest]
    return linear(hidden, layer.contract)


def radial(length: float, z: tuple[int, int], network: Any, config: EquiformerV2Config):
    centers = np.linspace(0, config.r_max, config.num_radial_basis)
    basis = np.exp(-0.5 * ((length - centers) / (centers[1] - centers[0])) ** 2)
    embedding = network.scalars
    parts = [basis, value(embedding.sent)[z[0]], value(embedding.received)[z[1]]]
    return normed_mlp(np.concatenate(parts), network.mlp)


def envelope(length: float, config: EquiformerV2Config) -> float:
    if config.attention == "softmax":
        return 1.0
    u = length / config.r_max
    return 1 - 21 * u**5 + 35 * u**6 - 15 * u**7


def message(x: Blocks, layer: Any, factors: np.ndarray, config: EquiformerV2Config):
    """Logits [heads] and values [2 l + 1, heads * channels] in the frame of an edge."""
    z, extra = so2(x, layer.first, factors)
    heads, alpha = layer.directions.shape
    a = layer_norm(extra[: heads * alpha].reshape((heads, alpha)), layer.norm)
    a = 0.6 * a + 0.4 * a * (2 * sigmoid(a) - 1)
    logits = (a * value(layer.directions)).sum(-1) / np.sqrt(alpha)
    others = extra[heads * alpha :]
    if config.activation == "s2":
        z = on_sphere(z, config.m_max, silu)
        z[0] = silu(others)[None]
    else:
        gates = sigmoid(others).reshape((config.max_L, -1))
        z = [silu(z[0]), *(b * g for b, g in zip(z[1:], gates, strict=True))]
    return logits, so2(z, layer.second, None)[0]


def brute_force(model: EquiformerV2, structure: Structure) -> np.ndarray:
    """Energy of each atom, one edge after the other, in frames of another roll."""
    config, rng = model.config, np.random.default_rng(0)
    species = [config.elements.index(int(z)) for z in structure.numbers]
    edges = edges_within(structure, config.r_max)
    i, j = np.array([e[:2] for e in edges]).T
    vectors = structure.positions[j] - structure.positions[i]
    vectors = vectors + np.array([e[2] for e in edges]) @ structure.cell
    lengths = np.linalg.norm(vectors, axis=1)
    rotations = []
    for v in vectors / lengths[:, None]:
        other = np.cross(v, rng.normal(size=3))
        other /= np.linalg.norm(other)
        rotations.append(np.stack([other, v, np.cross(other, v)]))
    irreps = [e3nn.Irrep(l, (-1) ** l) for l in range(config.max_L + 1)]
    turns = [np.asarray(ir.D_from_matrix(jnp.asarray(np.stack(rotations)))) for ir in irreps]
    frames = [[d[e] for d in turns] for e in range(len(edges))]
    pairs = [(species[b], species[a]) for a, b in zip(i, j, strict=True)]

    xs = [[np.zeros((2 * l + 1, config.num_channels)) for l in range(len(irreps))] for _ in species]
    for x, z in zip(xs, species, strict=True):
        x[0] += value(model.embedding)[z]
    for e, frame in enumerate(frames):
        numbers = radial(lengths[e], pairs[e], model.degrees.radial, config)
        numbers = numbers.reshape((len(irreps), -1)) * envelope(lengths[e], config)
        for l, d in enumerate(frame):
            xs[i[e]][l] += np.outer(d[l], numbers[l]) / config.avg_num_neighbors
    for layer in model.layers:
        inputs, attention = [separable_norm(x, layer.norm) for x in xs], layer.attention
        total = np.full((len(xs), config.num_heads), float(config.attention == "smooth"))
        sums = [[np.zeros((2 * l + 1, config.num_heads * config.value_channels))
                 for l in range(len(irreps))] for _ in xs]  # fmt: skip
        for e, frame in enumerate(frames):
            both = [np.concatenate([d @ a, d @ b], axis=1)
                    for d, a, b in zip(frame, inputs[j[e]], inputs[i[e]], strict=True)]  # fmt: skip
            factors = radial(lengths[e], pairs[e], attention.messages.radial, config)
            logits, values = message(both, attention.messages, factors, config)
            terms = envelope(lengths[e], config) * np.exp(logits)
            total[i[e]] += terms
            for l, d in enumerate(frame):
                sums[i[e]][l] += d.T @ (values[l] * np.repeat(terms, config.value_channels))
        for n, x in enumerate(xs):
            weight = np.repeat(np.where(total[n] > 0, total[n], 1), config.value_channels)
            new = linear([b / weight for b in sums[n]], attention.project)
            x = [a + b for a, b in zip(x, new, strict=True)]
            new = feed_forward(separable_norm(x, layer.norm_again), layer.feed_forward, config)
            xs[n] = [a + b for a, b in zip(x, new, strict=True)]
    return np.stack([normed_mlp(separable_norm(x, model.norm)[0][0], model.readout)[0] for x in xs])


def randomised(model: EquiformerV2) -> EquiformerV2:
    """Also what starts at zero, one or a thousandth."""
    rng = np.random.default_rng(4)
    state = jax.tree.map(lambda p: p + 0.3 * rng.normal(size=p.shape), nnx.state(model))
    nnx.update(model, state)
    return model


@pytest.mark.parametrize("name", list(CONFIGS))
def test_agrees_with_a_loop_over_edges(name: str, x64: None) -> None:
    config = CONFIGS[name]
    model = randomised(EquiformerV2(config, rngs=nnx.Rngs(0)))
    molecule, crystal = structures()
    graph = make_graph([molecule, crystal], config.elements, config.r_max, slots=7, extra_atoms=1)
    assert not graph.one_row_per_atom
    ours = np.asarray(jax.jit(model)(graph))
    theirs = np.concatenate([brute_force(model, s) for s in (molecule, crystal)])
    tolerance = 1e-8 if config.activation == "s2" else 1e-11
    assert np.abs(ours[:-1] - theirs).max() <= tolerance * np.abs(theirs).max()


def num_parameters(make: Callable[[], nnx.Module]) -> int:
    return sum(p.size for p in jax.tree.leaves(nnx.state(nnx.eval_shape(make), nnx.Param)))


# degree, order, layers: parameters, of which the papers give 31.06, 83.16 and 153.60 million
@pytest.mark.parametrize(
    ("shape", "published"),
    [((4, 2, 8), 31_058_690), ((6, 2, 12), 83_164_802), ((6, 3, 20), 153_602_690)],
)
def test_published_numbers_of_parameters(shape: tuple[int, int, int], published: int) -> None:
    """Those of the models for OC20, which have more in their heads than the energy needs.

    Their energy is the one scalar that a feed-forward network for all degrees makes besides tensors
    that nobody uses; ours is a network of the scalars alone. Their direct forces are the vector of
    one more attention, which we do not have.
    """
    config = EquiformerV2Config(
        tuple(range(1, 91)), num_channels=128, max_L=shape[0], m_max=shape[1],
        num_interactions=shape[2], num_heads=8, alpha_channels=64, value_channels=16,
        hidden_channels=64, ffn_channels=128, edge_channels=128, num_radial_basis=600,
        group="SO3", activation="s2",
    )  # fmt: skip
    one_layer = replace(config, num_interactions=1)
    ours = num_parameters(lambda: EquiformerV2(one_layer, rngs=nnx.Rngs(0)))
    layer = num_parameters(lambda: Layer(config, rngs=nnx.Rngs(0)))
    ours += (config.num_interactions - 1) * layer
    readout = num_parameters(lambda: NormedMLP((128, 128, 1), norm=False, rngs=nnx.Rngs(0)))
    energy = num_parameters(lambda: FeedForward(config, 1, rngs=nnx.Rngs(0)))
    forces = num_parameters(lambda: GraphAttention(config, 1, rngs=nnx.Rngs(0)))
    assert readout == 128 * 128 + 128 + 128 + 1
    assert ours - readout + energy + forces == published


def test_the_published_softmax_jumps_where_a_neighbour_leaves(x64: None) -> None:
    jumps = {}
    for attention in ("smooth", "softmax"):
        model = EquiformerV2(replace(SMALL, attention=attention), rngs=nnx.Rngs(0))
        positions = np.array([[0.0, 0.0, 0.0], [SMALL.r_max - 1e-6, 0.0, 0.0], [0.9, 0.8, 0.0]])
        chain = Structure(np.array([6, 8, 1]), positions, np.zeros((3, 3)))
        graphs = [
            make_graph([chain], SMALL.elements, SMALL.r_max - less, width=2) for less in (0.0, 1e-5)
        ]
        with_edge, without = map(jax.jit(model), graphs)
        jumps[attention] = np.abs(np.asarray(with_edge - without)).max()
    assert jumps["smooth"] < 1e-10 and jumps["softmax"] > 1e-2


@pytest.mark.parametrize("attention", ["smooth", "softmax"])
def test_neighbours_beyond_the_cutoff_change_nothing(attention: Any, x64: None) -> None:
    """A list with a skin holds some."""
    model = EquiformerV2(replace(SMALL, attention=attention), rngs=nnx.Rngs(0))
    _, crystal = structures()
    graphs = [make_graph([crystal], SMALL.elements, SMALL.r_max + skin) for skin in (0.0, 0.5)]
    assert graphs[1].neighbor_mask.sum() > graphs[0].neighbor_mask.sum()
    tight, loose = (np.asarray(jax.jit(model)(graph)) for graph in graphs)
    np.testing.assert_allclose(loose, tight, rtol=1e-12)


def test_activations_on_a_sphere_declare_their_error(x64: None) -> None:
    molecule, _ = structures()
    turns = list(random_elements(np.random.default_rng(0), 2))
    turned = [molecule._replace(positions=molecule.positions @ turn.T) for turn in turns]
    config = replace(SMALL, activation="s2")
    errors, declared = [], []
    for resolution in (5, 10):
        model = EquiformerV2(replace(config, grid_resolution=resolution), rngs=nnx.Rngs(0))
        graph = make_graph([molecule, *turned], config.elements, config.r_max)
        plain, *others = np.asarray(jax.jit(model)(graph)).reshape((3, -1))
        errors.append(max(np.abs(other - plain).max() for other in others))
        declared.append(declared_error(model))
    assert 1e-9 < errors[1] < errors[0] / 10 and declared[1] < declared[0] / 10
    assert all(error < bound for error, bound in zip(errors, declared, strict=True))
    # the published 18 x 18 points
    at_18, gate = (
        nnx.eval_shape(lambda c=c: EquiformerV2(c, rngs=nnx.Rngs(0)))
        for c in (replace(config, max_L=6, m_max=2), SMALL)
    )
    assert 1e-2 < declared_error(at_18) < 0.1 and declared_error(gate) == 0.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"group": "O2"}, "the group is 'O3' or 'SO3', not"),
        ({"product": "gaunt"}, "only product so2 fits"),
        ({"m_max": 3}, "m_max 3 has no effect above max_L 2"),
        ({"grid_resolution": 20}, "grid_resolution has no effect without activation s2"),
        ({"attention": "softmax", "num_cutoff_basis": 6}, "num_cutoff_basis has no effect with"),
        ({"activation": "s2", "grid_resolution": 4}, "are not enough for degree 2"),
    ],
)
def test_choices_that_do_not_fit_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **values).irreps()
