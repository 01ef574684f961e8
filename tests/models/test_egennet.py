"""E-GenNet against the equations of the paper, pair by pair in numpy."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx
from graphs import Structure, edges_within, make_graph

from eqnet.models.egennet import EGenNet, EGenNetConfig


def matrix(parameter) -> np.ndarray:
    return np.asarray(parameter[...])


def silu(x: np.ndarray) -> np.ndarray:
    return 1.6791767923989418 * x / (1 + np.exp(-x))


def mlp(x: np.ndarray, network, activation=silu) -> np.ndarray:
    *first, last = [matrix(w) / np.sqrt(matrix(w).shape[0]) for w in network.weights]
    for w in first:
        x = activation(x @ w)
    return x @ last


def brute_force(model: EGenNet, structure: Structure) -> np.ndarray:
    """Energy of each atom: every pair has its own numbers, which grow from block to block."""
    config, pairs = model.config, model.vectors.pairs
    species = [config.elements.index(int(z)) for z in structure.numbers]
    n, rc = len(species), config.r_max
    # (i, j, r_ij, envelope), the atom itself among its neighbours
    every: list[tuple] = [(i, i, np.zeros(3), 1.0) for i in range(n)]
    for i, j, shift in edges_within(structure, rc):
        r = structure.positions[j] + np.array(shift) @ structure.cell - structure.positions[i]
        u, p = np.linalg.norm(r) / rc, config.num_cutoff_basis
        falls = (p + 1) * (p + 2) / 2 - p * (p + 2) * u + p * (p + 1) / 2 * u**2
        every.append((i, j, r, 1 - u**p * falls))
    numbers = []
    for i, j, r, _ in every:
        k = np.arange(1, config.num_radial_basis + 1)
        # (pi k / rc) sinc(k d / rc), up to the constant of the Bessel functions
        basis = np.sqrt(2 / rc) * np.pi * k / rc * np.sinc(k * np.linalg.norm(r) / rc)
        both = matrix(pairs.received)[species[i]] * matrix(pairs.sent)[species[j]]
        p = both * mlp(basis, pairs.radial)
        numbers.append(p + mlp(p, pairs.residual))
    g = np.zeros((n, 3, config.num_channels))
    for t, block in enumerate(model.vectors.blocks):
        new = np.zeros_like(g)
        theta = matrix(block.direction)
        for e, (i, j, r, envelope) in enumerate(every):
            if t:
                lengths = np.sqrt((g[j] ** 2).sum(0) + 1) - 1
                distance = matrix(block.distance) * np.linalg.norm(r)
                numbers[e] = numbers[e] + mlp(lengths, block.lengths) + distance
            mixed = mlp(g[j], block.mix) if t else 0.0
            alpha = matrix(block.filter.weight) / np.sqrt(config.hidden_channels)
            filters = np.tanh(numbers[e] @ alpha + matrix(block.filter.bias))
            new[i] += envelope * (mixed + r[:, None] * theta) * filters
        g = new / np.sqrt(config.avg_num_neighbors + 1)
    lengths = np.sqrt((mlp(g, model.out) ** 2).sum(1) + 1) - 1
    scalars = np.tanh(mlp(lengths, model.to_scalars) + matrix(model.by_element)[species])
    return mlp(scalars, model.readout)[:, 0]


@pytest.mark.parametrize("hidden", [1, 3])
def test_agrees_with_a_loop_over_pairs(hidden: int, x64: None) -> None:
    config = EGenNetConfig(
        (1, 8), r_max=3.0, num_channels=3, hidden_channels=hidden, num_interactions=3,
        num_radial_basis=4, avg_num_neighbors=3.0,
    )  # fmt: skip
    model = EGenNet(config, rngs=nnx.Rngs(0))
    for block in model.vectors.blocks:
        block.filter.bias[...] = 0.1 * np.arange(3)  # initial biases are zero
    points = np.array([[0.0, 0.0, 0.0], [1.1, 0.2, -0.3], [-0.4, 1.2, 0.5], [2.0, 1.5, 0.1]])
    molecule = Structure(np.array([8, 1, 1, 8]), points, np.zeros((3, 3)))
    crystal = Structure(np.array([8, 1]), points[:2], 2.6 * np.eye(3) + 0.1)
    graph = make_graph([molecule, crystal], config.elements, config.r_max, extra_atoms=1)
    ours = np.asarray(jax.jit(model)(graph))[:-1]
    theirs = np.concatenate([brute_force(model, s) for s in (molecule, crystal)])
    assert np.abs(ours - theirs).max() <= 1e-12 * np.abs(theirs).max()


def test_other_products_are_refused() -> None:
    with pytest.raises(ValueError, match="only product cartesian fits, not gaunt"):
        EGenNetConfig((1,), product="gaunt").irreps()
