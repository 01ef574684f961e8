"""eSCN: its published sizes, mirror images, and what the sphere of 's2' costs in equivariance."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import jax
import numpy as np
import pytest
from flax import nnx
from graphs import Structure, make_graph

from eqnet.models.escn import ESCN, ESCNConfig
from eqnet.ops.so2_orders import Group
from eqnet.so3 import random_rotation


@pytest.mark.parametrize(
    ("channels", "hidden", "m_max", "layers", "millions"),
    [(128, 256, 2, 12, 52), (160, 384, 3, 20, 200.2)],  # OC20 2M; OC20 All+MD
)
def test_published_numbers_of_parameters(
    channels: int, hidden: int, m_max: int, layers: int, millions: float
) -> None:
    def count(layers: int) -> int:
        config = ESCNConfig(
            tuple(range(1, 91)), r_max=12.0, num_channels=channels, hidden_channels=hidden,
            max_L=6, m_max=m_max, num_interactions=layers, edge_channels=128,
            num_radial_basis=600, group="SO3", activation="s2",
        )  # fmt: skip
        weights = jax.eval_shape(lambda: nnx.split(ESCN(config, rngs=nnx.Rngs(0)))[1])
        return sum(int(np.prod(w.shape)) for w in jax.tree.leaves(weights))

    one = count(1)
    number = one + (layers - 1) * (count(2) - one)  # layers are alike
    # the layers of the paper's Figure 2, written out; 600 Gaussians, vectors of 128
    edges, block = 600 * 128 + 128 + 2 * 90 * 128 + 128 * 128 + 128, 0
    for m in range(m_max + 1):
        size, pairs = (7 - m) * channels, 2 if m else 1
        block += pairs * (2 * size * hidden + 128 * hidden + hidden)
    layer = edges + 2 * block + 4 * channels**2
    head = 2 * (channels**2 + channels) + channels + 1
    assert number == 90 * channels + layers * layer + head
    assert number / 1e6 == pytest.approx(millions, abs=0.5 if millions == 52 else 0.05)


def test_options_without_effect_are_refused() -> None:
    for changes, text in (
        ({"product": "cp"}, "only product so2 fits"),
        ({"m_max": 3}, "m_max 3 has no effect"),
        ({"grid_resolution": 20}, "no effect without activation s2"),
    ):
        with pytest.raises(ValueError, match=text):
            replace(ESCNConfig((1,)), **changes).irreps()


@pytest.mark.parametrize(
    ("group", "activation", "resolution", "error"),
    [("SO3", "gate", 0, 1e-12), ("O3", "s2", 6, 1e-2), ("O3", "s2", 18, 1e-5)],
)
def test_turned_and_mirrored(
    group: Group, activation: Literal["gate", "s2"], resolution: int, error: float
) -> None:
    """Energies of a chiral molecule: turned the same up to the error of the sphere, a coarse one
    worse; mirrored another one in SO3."""
    config = ESCNConfig(
        (1, 6, 8), r_max=4.0, num_channels=4, hidden_channels=4, edge_channels=4, group=group,
        activation=activation, grid_resolution=resolution, avg_num_neighbors=4.0,
        # the first layer makes vectors, the second pseudo ones, the third feels them
        num_interactions=3 if group == "SO3" else 1,
    )  # fmt: skip
    positions = [[0, 0, 0], [1.1, 0.1, 0], [-0.3, 1.2, 0.2], [-0.4, -0.5, 1.0], [0.2, -0.6, -1.3]]
    turn = random_rotation(np.random.default_rng(0))
    with jax.enable_x64(True):
        definition, state = nnx.split(ESCN(config, rngs=nnx.Rngs(0)))
        energies = jax.jit(lambda s, g: nnx.merge(definition, s)(g))

        def energy(matrix: np.ndarray) -> np.ndarray:
            moved = Structure(
                np.array([6, 1, 8, 1, 6]), np.array(positions) @ matrix, np.zeros((3, 3))
            )
            return np.asarray(energies(state, make_graph([moved], (1, 6, 8), 4.0)))

        here, turned, mirrored = energy(np.eye(3)), energy(turn), energy(-np.eye(3))
    found = np.abs(turned - here).max() / np.abs(here).max()
    assert found < error
    if resolution == 6:
        assert found > 1e-5
    if group == "SO3":
        assert np.abs(mirrored - here).max() > 1e-4 * np.abs(here).max()
