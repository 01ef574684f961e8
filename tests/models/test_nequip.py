"""NequIP against a program that loops over edges with e3nn-jax, and knows none of our layers."""

from __future__ import annotations

from functools import cache

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from graphs import Structure, edges_within, make_graph

from eqnet.models.nequip import NequIP, NequIPConfig
from eqnet.norms import LayerNorm

# Second moments of the activations for unit normal input; the first as e3nn estimates it.
SILU, TANH = 1.6791767923989418, 1.5925374197228321
CONFIGS = {
    "all parities": NequIPConfig(
        (1, 6, 8), r_max=3.5, num_channels=3, max_L=2, max_ell=2, num_interactions=3,
        radial_MLP=(8, 8), MLP_channels=4, avg_num_neighbors=5.3,
    ),
    "unequal, residual, norm": NequIPConfig(
        (1, 6, 8), r_max=3.5, hidden_irreps="5x0e+2x0o+3x1o+1x1e+2x2e+1x3o", max_ell=3,
        num_interactions=3, radial_MLP=(8,), MLP_channels=4, avg_num_neighbors=4.1,
        residual=True, layer_norm=True, num_cutoff_basis=4, num_radial_basis=5,
    ),
    "scalars": NequIPConfig(
        (1, 6, 8), r_max=3.5, num_channels=4, max_L=0, parity=False, max_ell=1,
        num_interactions=2, radial_MLP=(8,), MLP_channels=4, avg_num_neighbors=4.1,
    ),
}  # fmt: skip


def structures() -> list[Structure]:
    rng = np.random.default_rng(3)
    grid = np.array([[0, 0, 0], [1.4, 0, 0], [0, 1.3, 0.2], [1.2, 1.1, 0.9], [2.4, 0.3, 0.4]])
    molecule = Structure(
        np.array([6, 8, 1, 6, 1]), grid + rng.normal(scale=0.1, size=(5, 3)), np.zeros((3, 3))
    )
    cell = np.array([[2.6, 0.1, 0.0], [0.5, 2.9, 0.2], [0.0, -0.4, 3.1]])
    crystal = Structure(np.array([8, 1]), np.array([[0.1, 0.2, 0.0], [1.2, 1.5, 1.4]]), cell)
    return [molecule, crystal]


def matrix(values: nnx.Param) -> np.ndarray:
    return np.asarray(values[...], np.float64)


def linear(x: dict, weights: nnx.Dict, z: int | None = None, num_elements: int = 1) -> dict:
    """Blocks [mul, 2l+1] by irrep; one matrix per irrep."""
    out = {}
    for name in weights:
        if name in x:
            w = matrix(weights[name])
            w = w if z is None else w[z]
            out[name] = np.einsum("uw,um->wm", w, x[name]) / np.sqrt(w.shape[0] * num_elements)
    return out


def network(x: np.ndarray, weights: nnx.List) -> np.ndarray:
    for n, param in enumerate(weights):
        w = matrix(param)
        x = x @ w / np.sqrt(w.shape[0])
        if n < len(weights) - 1:
            x = SILU * x / (1 + np.exp(-x))
    return x


def radial_basis(r: float, config: NequIPConfig) -> np.ndarray:
    n = np.arange(1, config.num_radial_basis + 1)
    values = np.sqrt(2 / config.r_max) * np.sin(n * np.pi * r / config.r_max) / r
    p, u = config.num_cutoff_basis, r / config.r_max
    envelope = (
        1
        - (p + 1) * (p + 2) / 2 * u**p
        + p * (p + 2) * u ** (p + 1)
        - p * (p + 1) / 2 * u ** (p + 2)
    )
    return values * envelope


def norm(x: dict, layer: LayerNorm) -> dict:
    out = {}
    for name, block in x.items():
        if name == "0e":
            block = block - block.mean()
        block = block / np.sqrt((block**2).mean() + 1e-5)
        out[name] = block * matrix(layer.scale[name])[:, None]
        if name == "0e":
            out[name] = out[name] + matrix(layer.shift)[:, None]
    return out


@cache
def clebsch_gordan(l1: int, l2: int, l3: int) -> np.ndarray:
    return np.asarray(e3nn.clebsch_gordan(l1, l2, l3))


def message(x: dict, harmonics: list, weights: np.ndarray, layer, max_ell: int) -> dict:
    """All paths of one edge: channel u of the neighbour with the harmonics, weight by weight."""
    out: dict[str, list] = {}
    at = 0
    wanted = [ir for _, ir in layer.product.irreps_out]
    for target in wanted:  # weights are stored by output, then left, then right irrep
        for left in [ir for _, ir in layer.product.irreps_left]:
            for l2 in range(max_ell + 1):
                if target not in left * e3nn.Irrep(l2, (-1) ** l2):
                    continue
                table = np.sqrt(target.dim) * clebsch_gordan(left.l, l2, target.l)
                matrix = np.tensordot(harmonics[l2], table, (0, 1))
                for u in range(x[str(left)].shape[0]):
                    z = x[str(left)][u] @ matrix
                    out.setdefault(str(target), []).append(weights[at] * z)
                    at += 1
    assert at == len(weights)
    return {name: np.stack(rows) for name, rows in out.items()}


def gate(z: dict, targets: list[str], multiplicities: dict[str, int]) -> dict:
    gates = z["0e"][multiplicities["0e"] :, 0]
    gates = SILU * gates / (1 + np.exp(-gates))
    out, used = {}, 0
    for name in targets:
        mul = multiplicities[name]
        if name == "0e":
            s = z["0e"][:mul]
            out[name] = SILU * s / (1 + np.exp(-s))
        elif name == "0o":
            out[name] = TANH * np.tanh(z[name])
        else:
            out[name] = z[name] * gates[used : used + mul, None]
            used += mul
    assert used == len(gates)
    return out


def harmonics_of(vectors: np.ndarray) -> list[np.ndarray]:
    degrees = [e3nn.Irreps([(1, (l, (-1) ** l))]) for l in range(4)]
    r = jnp.asarray(vectors)
    return [np.asarray(e3nn.spherical_harmonics(y, r, True, "component").array) for y in degrees]


def brute_force(model: NequIP, structure: Structure) -> np.ndarray:
    """Energy of each atom, one edge after the other."""
    config = model.config
    species = [config.elements.index(int(z)) for z in structure.numbers]
    xs = [{"0e": matrix(model.embedding)[z][:, None]} for z in species]
    edges = edges_within(structure, config.r_max)
    i, j = np.array([e[:2] for e in edges]).T
    vectors = structure.positions[j] - structure.positions[i]
    vectors = vectors + np.array([e[2] for e in edges]) @ structure.cell
    distances = np.linalg.norm(vectors, axis=1)
    harmonics = harmonics_of(vectors)
    for layer in model.layers:
        inputs = [norm(x, layer.norm) for x in xs] if config.layer_norm else xs
        ups = [linear(x, layer.up.weights) for x in inputs]
        sums: list[dict] = [{} for _ in xs]
        for e, (i, j, _) in enumerate(edges):
            weights = network(radial_basis(distances[e], config), layer.radial.weights)
            y = [h[e] for h in harmonics]
            for name, m in message(ups[j], y, weights, layer, config.max_ell).items():
                sums[i][name] = sums[i].get(name, 0) + m / np.sqrt(config.avg_num_neighbors)
        targets = [str(ir) for _, ir in layer.gate.irreps_out]
        muls = {str(ir): mul for mul, ir in layer.gate.irreps_out}
        new = []
        for x, inner, total, z in zip(xs, inputs, sums, species, strict=True):
            value = linear(total, layer.down.weights)
            sc = linear(inner, layer.self_connection.weights, z, len(config.elements))
            value = {name: v + sc.get(name, 0) for name, v in value.items()}
            out = gate(value, targets, muls)
            if config.residual:
                for name in out:
                    if name in x and x[name].shape == out[name].shape:
                        out[name] = out[name] + x[name]
            new.append(out)
        xs = new
    first, second = (matrix(w) for w in model.readout.weights)
    scale = np.sqrt(first.shape[0] * second.shape[0])
    return np.stack([(x["0e"][:, 0] @ first @ second)[0] / scale for x in xs])


@pytest.mark.parametrize("name", list(CONFIGS))
def test_agrees_with_a_loop_over_edges(name: str, x64: None) -> None:
    config = CONFIGS[name]
    model = NequIP(config, rngs=nnx.Rngs(0))
    molecule, crystal = structures()
    graph = make_graph([molecule, crystal], config.elements, config.r_max, extra_atoms=1)
    ours = np.asarray(jax.jit(model)(graph))
    theirs = np.concatenate([brute_force(model, s) for s in (molecule, crystal)])
    assert np.abs(ours[:-1] - theirs).max() <= 1e-10 * np.abs(theirs).max()
    print(name, np.abs(ours[:-1] - theirs).max() / np.abs(theirs).max(), theirs)


def test_irreps_of_the_hidden_features() -> None:
    assert str(NequIPConfig((1,), num_channels=2, max_L=1).irreps()) == "2x0e+2x0o+2x1o+2x1e"
    assert str(NequIPConfig((1,), num_channels=2, parity=False).irreps()) == "2x0e+2x1o+2x2e"
    with pytest.raises(ValueError, match="even scalars"):
        NequIPConfig((1,), hidden_irreps="4x1o").irreps()
