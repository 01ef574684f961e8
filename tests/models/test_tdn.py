"""TDN against a program that loops over edges and paths with e3nn-jax; its products and groups."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from graphs import Structure, edges_within, make_graph

from eqnet.equivariance import declared_error
from eqnet.graph import AtomGraph
from eqnet.models.tdn import TDN, Layer, SharedLinear, TDNConfig
from eqnet.ops import blocks

pytestmark = pytest.mark.usefixtures("x64")
ELEMENTS, CUTOFF = (1, 6, 8), 3.5
# Second moments of the activations for unit normal input.
SILU, SIGMOID = 1.6791767923989418, 1.8462285453386056


def config(**values: Any) -> TDNConfig:
    small: dict[str, Any] = {
        "num_channels": 4, "max_L": 1, "num_interactions": 2, "num_heads": 2,
        "num_radial_basis": 5, "radial_MLP": (6,), "avg_num_neighbors": 4.1,
    }  # fmt: skip
    return TDNConfig(ELEMENTS, CUTOFF, **(small | values))


def model_of(config: TDNConfig, method: str = "default") -> TDN:
    """With shifts and scales that have left their first values."""
    model = TDN(config, rngs=nnx.Rngs(0), method=method)
    rng = np.random.default_rng(1)
    weights = nnx.state(model)
    moved = jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape), weights)
    nnx.update(model, moved)
    return model


def structures() -> list[Structure]:
    rng = np.random.default_rng(3)
    grid = np.array([[0, 0, 0], [1.4, 0, 0], [0, 1.3, 0.2], [1.2, 1.1, 0.9], [2.4, 0.3, 0.4]])
    molecule = Structure(
        np.array([6, 8, 1, 6, 1]), grid + rng.normal(scale=0.1, size=(5, 3)), np.zeros((3, 3))
    )
    cell = np.array([[2.6, 0.1, 0.0], [0.5, 2.9, 0.2], [0.0, -0.4, 3.1]])
    crystal = Structure(np.array([8, 1]), np.array([[0.1, 0.2, 0.0], [1.2, 1.5, 1.4]]), cell)
    return [molecule, crystal]


def energies(model: TDN, *given: Structure) -> np.ndarray:
    graph = make_graph(given, ELEMENTS, CUTOFF)
    return np.asarray(jax.jit(lambda weights: run(model, weights, graph))(nnx.state(model)))


def run(model: TDN, weights: nnx.State, graph: AtomGraph) -> jax.Array:
    return nnx.merge(nnx.graphdef(model), weights)(graph)


# ---- the network in loops: features are lists of blocks [2l+1, C] by degree


def value(parameter: nnx.Param) -> np.ndarray:
    return np.asarray(parameter[...], np.float64)


def linear(layer: SharedLinear, x: list) -> list:
    w = value(layer.weight)
    out = [block @ w / np.sqrt(len(w)) for block in x]
    out[0] = out[0] + value(layer.shift)
    return out


def silu(x: np.ndarray) -> np.ndarray:
    return SILU * x / (1 + np.exp(-x))


def gated(layer: Any, x: list) -> list:
    y = linear(layer.values, x)
    rest = []
    if layer.gates is not None:
        gate = SIGMOID / (1 + np.exp(-linear(layer.gates, x[:1])[0]))
        rest = [block * gate for block in y[1:]]
    return [silu(y[0]), *rest]


def radial(network: Any, x: np.ndarray) -> np.ndarray:
    for n, layer in enumerate(network.layers):
        if n:
            norm = network.norms[n - 1]
            x = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * value(norm.scale) + value(norm.shift)
            x = x / (1 + np.exp(-x))
        w = value(layer.weight)
        x = x @ w / np.sqrt(len(w)) + value(layer.bias)
    return x


def normalised(norm: Any, x: list) -> list:
    out = []
    for block, scale in zip(x, norm.scale.values(), strict=True):
        block = block - block.mean() if len(block) == 1 else block
        out.append(block / np.sqrt((block**2).mean() + 1e-5) * value(scale))
    return [out[0] + value(norm.shift), *out[1:]]


def paths(config: TDNConfig) -> list[tuple[int, int, int]]:
    """(l1, l2, l3), sorted by output."""
    degrees = range(config.max_L + 1)
    return [
        (l1, l2, l3) for l3 in degrees for l1 in degrees for l2 in degrees
        if abs(l1 - l2) <= l3 <= l1 + l2 and (config.group == "SO3" or (l1 + l2 + l3) % 2 == 0)
    ]  # fmt: skip


def multiply(x: list, y: list, weights: np.ndarray, config: TDNConfig) -> list:
    """One path after the other, with a weight of its own or one for all."""
    out, channels = [np.zeros_like(block) for block in x], x[0].shape[1]
    every = paths(config)
    for n, (l1, l2, l3) in enumerate(every):
        own = weights if len(weights) == channels else weights[n * channels : (n + 1) * channels]
        table = np.asarray(e3nn.clebsch_gordan(l1, l2, l3), np.float64)
        table = table / np.linalg.norm(table)
        terms = sum(path[2] == l3 for path in every)
        coupled = np.einsum("ijk,ic,j->kc", table, x[l1], y[l2])
        out[l3] += np.sqrt((2 * l3 + 1) / terms) * own * coupled
    return out


def attended(layer: Layer, x: list[list], edges: list, config: TDNConfig) -> list[list]:
    messages, heads = layer.messages, config.num_heads
    width = config.num_channels // heads
    center = value(layer.center) / np.sqrt(config.num_channels)
    out = []
    for i in range(len(x)):
        total, summed = np.ones(heads), [np.zeros_like(block) for block in x[i]]
        for j, y, basis, envelope in edges[i]:
            weights = radial(messages.radial, basis)
            pair = [a + b @ center for a, b in zip(linear(layer.neighbor, x[j]), x[i], strict=True)]
            m = multiply(pair, y, weights, config)
            q = linear(messages.logit, m[:1])[0][0].reshape(heads, width)
            q = 0.6 * q + 0.4 * q * (2 / (1 + np.exp(-q)) - 1)
            logit = (q * value(messages.direction)).sum(1) / np.sqrt(width)
            term = envelope * np.exp(logit)
            total += term
            values = multiply(gated(messages.value, m), y, weights, config)
            for block, v in zip(summed, values, strict=True):
                block += v * np.repeat(term, width)
        out.append([block / np.repeat(total, width) for block in summed])
    return out


def brute_force(model: TDN, structure: Structure) -> np.ndarray:
    config = model.config
    edges = [[] for _ in structure.numbers]
    for i, j, shift in edges_within(structure, CUTOFF):
        r = structure.positions[j] + np.array(shift) @ structure.cell - structure.positions[i]
        u = np.linalg.norm(r) / CUTOFF
        irreps = e3nn.Irreps.spherical_harmonics(config.max_L)
        harmonics = e3nn.spherical_harmonics(irreps, r, True, "component")
        y = np.split(np.asarray(harmonics.array), [l**2 for l in range(1, config.max_L + 1)])
        g = model.gaussians
        basis = np.exp(-((value(g.inverse_widths) * (u - value(g.centers))) ** 2) / 2)
        edges[i].append((j, y, basis, 1 - 21 * u**5 + 35 * u**6 - 15 * u**7))
    x = []
    for i, z in enumerate(structure.numbers):
        first = [np.zeros((2 * l + 1, config.num_channels)) for l in range(config.max_L + 1)]
        for _, y, basis, envelope in edges[i]:
            w = radial(model.degrees.radial, basis) * envelope
            first = [b + np.outer(part, w) for b, part in zip(first, y, strict=True)]
        first = linear(model.up, [b / np.sqrt(config.avg_num_neighbors) for b in first])
        first[0] = first[0] + value(model.embedding)[ELEMENTS.index(z)]
        x.append(first)
    for layer in model.layers:
        attention = attended(layer, [normalised(layer.norm, b) for b in x], edges, config)
        kept = len(layer.irreps_out)
        for i, update in enumerate(attention):
            update = linear(layer.out, update)
            b = [a + u for a, u in zip(x[i], update, strict=True)][:kept]
            more = linear(layer.contract, gated(layer.expand, normalised(layer.norm_again, b)))
            x[i] = [a + m for a, m in zip(b, more, strict=True)]
    hidden, last = [value(w) / np.sqrt(len(w[...])) for w in model.readout.weights]
    return np.array([(silu(b[0] @ hidden) @ last)[0, 0] for b in x])


@pytest.mark.parametrize(
    "values",
    [
        {"max_L": 2},
        {"group": "SO3"},
        {"product": "clebsch_gordan", "num_interactions": 1},
    ],
    ids=str,
)
def test_the_network_is_its_loop(values: dict[str, Any]) -> None:
    model = model_of(config(**values))
    ours = energies(model, *structures())
    theirs = np.concatenate([brute_force(model, each) for each in structures()])
    assert np.ptp(theirs) > 0.1
    np.testing.assert_allclose(ours, theirs, atol=1e-12 * np.abs(theirs).max())


def energy_and_gradients(
    model: TDN, weights: nnx.State, graph: AtomGraph
) -> tuple[jax.Array, tuple[nnx.State, jax.Array]]:
    """An energy that tells all atoms apart, its derivatives by the weights and the positions."""
    atoms = np.arange(1.0, graph.num_atoms + 1)

    def energy(weights: nnx.State, positions: jax.Array) -> jax.Array:
        return (atoms * run(model, weights, replace(graph, positions=positions))).sum()

    positions = jnp.asarray(graph.positions)
    return jax.jit(jax.value_and_grad(energy, (0, 1)))(weights, positions)


def tied(weights: nnx.State, config: TDNConfig) -> nnx.State:
    """Weights of the product 'cp' for one whose paths have weights of their own, all equal."""

    def copy(path: Any, leaf: jax.Array) -> jax.Array:
        last = f"['messages']['radial']['layers'][{len(config.radial_MLP)}]"
        found = last in jax.tree_util.keystr(path)
        return jnp.tile(leaf, len(paths(config))) if found else leaf

    return jax.tree.map_with_path(copy, weights)


def test_rank_one_terms_the_exact_tensor_and_clebsch_gordan_are_one_function() -> None:
    """Values, forces and the gradients of the weights, which are the same but for the copies."""
    shared = config(num_interactions=1)
    graph = make_graph(structures(), ELEMENTS, CUTOFF)
    matrix = model_of(shared)
    weights = nnx.state(matrix)
    assert matrix.methods == (["matrix"],)
    energy, (gradients, slope) = energy_and_gradients(matrix, weights, graph)
    for other, given in (
        (model_of(shared, "factors"), weights),
        (model_of(replace(shared, rank=6), "factors"), weights),
        (model_of(replace(shared, product="clebsch_gordan")), tied(weights, shared)),
    ):
        found = energy_and_gradients(other, given, graph)
        np.testing.assert_allclose(found[0], energy, rtol=1e-12)
        np.testing.assert_allclose(found[1][1], slope, atol=1e-11 * np.abs(slope).max())
        for (path, a), b in zip(
            jax.tree.leaves_with_path(found[1][0]), jax.tree.leaves(gradients), strict=True
        ):
            if a.shape != b.shape:  # the derivative by a tied weight is the sum over its copies
                a = a.reshape((*b.shape[:-1], -1, b.shape[-1])).sum(-2)
            np.testing.assert_allclose(a, b, atol=1e-11 * np.abs(b).max(), err_msg=str(path))


def turned(structure: Structure, element: np.ndarray) -> Structure:
    return structure._replace(
        positions=structure.positions @ element.T, cell=structure.cell @ element.T
    )


def test_what_each_group_and_rank_is_invariant_under() -> None:
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    rotation *= np.linalg.det(rotation)
    for values, exact_turned, exact_mirrored in (
        ({}, True, True),
        ({"group": "SO3"}, True, False),
        ({"rank": 5}, False, False),
    ):
        model = model_of(config(**values))
        given = structures()
        both = [turned(s, sign * rotation) for sign in (1, -1) for s in given]
        found = energies(model, *given, *both).reshape(3, -1)
        turn, mirror = np.abs(found[1:] - found[0]).max(1) / np.ptp(found[0])
        assert (turn < 1e-12, mirror < 1e-12) == (exact_turned, exact_mirrored), values
        assert max(turn, mirror) < 1e-12 or max(turn, mirror) > 1e-4, values
        assert declared_error(model) < 1e-12 if exact_turned else declared_error(model) > 0.1


def test_rows_in_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(config(num_interactions=1))
    graph = make_graph(structures(), ELEMENTS, CUTOFF, slots=4)
    at_once = energy_and_gradients(model, nnx.state(model), graph)
    monkeypatch.setattr(blocks, "EDGES_AT_A_TIME", {"cpu": 12})
    in_blocks = energy_and_gradients(model, nnx.state(model), graph)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-10), in_blocks, at_once)


def test_refusals() -> None:
    for values, message in (
        ({"num_heads": 3}, "num_heads 3 must divide num_channels 4"),
        ({"group": "O2"}, "group 'O2': there are O3 and SO3"),
        ({"group": "SO3", "max_L": 0}, "group SO3 has no effect: cp with max_L 0 has no path"),
        ({"group": "SO3", "product": "gaunt"}, "group SO3 has no effect: gaunt with max_L 1"),
        ({"product": "gaunt_bracket"}, "choose product gaunt"),
        (
            {"product": "so2"},
            "so2 mixes channels, .* fit: clebsch_gordan, gaunt, vector_gaunt, cp",
        ),
        ({"product": "clebsch_gordan", "rank": 6}, "rank 6 has no effect on clebsch_gordan"),
        ({"rank": 7, "group": "SO3"}, "rank 7 has only degenerate fits"),
        ({"product": "none"}, "no product 'none'; there is"),
    ):
        with pytest.raises(ValueError, match=message):
            TDN(config(**values), rngs=nnx.Rngs(0))
