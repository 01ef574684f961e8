"""Weights and axes of the smooth frames, and where they see no directions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from graphs import Structure, make_graph

from eqnet.models.coordinate_network import CoordinateNetwork, CoordinateNetworkConfig
from eqnet.models.local_frames import LocalFrames, LocalFramesConfig, smooth_frames
from eqnet.so3 import random_rotation


def test_frames_are_rotations_that_turn_with_the_vectors(x64: None) -> None:
    rng = np.random.default_rng(0)
    vectors, turn = rng.normal(size=(4, 3, 4)), random_rotation(rng)
    frames, weights = map(np.asarray, smooth_frames(jnp.asarray(vectors), (1, -1)))
    assert frames.shape == (4, 7, 3, 3) and not frames[:, -1].any()
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-12)
    gram = frames[:, :4] @ frames[:, :4].swapaxes(-1, -2)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(3), gram.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(frames[:, :2]), 1)  # proper with the first sign
    np.testing.assert_allclose(frames[:, 4:6, 0], frames[:, :2, 0])  # the axes alone
    assert not frames[:, 4:, 1:].any()
    turned, same = smooth_frames(jnp.asarray(turn @ vectors), (1, -1))
    np.testing.assert_allclose(turned, frames @ turn.T, atol=1e-12)
    np.testing.assert_allclose(same, weights, rtol=1e-12)


def test_weights_vanish_with_the_fourth_power_of_the_angle(x64: None) -> None:
    def weight(angle: float) -> float:
        vectors = np.array([[[1.0, np.cos(angle)], [0.0, np.sin(angle)], [0.0, 0.0]]])
        return float(smooth_frames(jnp.asarray(vectors), (1,))[1][0, 0])

    assert weight(2e-3) / weight(1e-3) == pytest.approx(16, rel=1e-4)
    assert weight(0.0) == 0


def test_one_frame_is_the_network_of_coordinates(x64: None) -> None:
    """In frames x, y, z of weight one nothing is left of frames, and the energy turns."""
    config = CoordinateNetworkConfig((1, 8), 3.0, num_channels=4, num_radial_basis=4)
    network = CoordinateNetwork(config, rngs=nnx.Rngs(0))
    points = np.array([[0.0, 0.0, 0.0], [1.0, 0.1, 0.0], [0.2, 0.9, 0.5]])
    turn = random_rotation(np.random.default_rng(1))
    molecule = Structure(np.array([8, 1, 1]), points, np.zeros((3, 3)))
    graph, turned = (
        make_graph([molecule._replace(positions=p)], config.elements, 3.0)
        for p in (points, points @ turn.T)
    )
    energy = jax.jit(network)(graph)
    assert np.abs(jax.jit(network)(turned) - energy).max() > 1e-3 * np.abs(energy).max()
    frames = np.broadcast_to(turn.T, (3, 1, 3, 3))  # of the turned molecule: its old coordinates
    numbers = jax.jit(network.in_frames)(turned, frames, np.ones((3, 1)))
    np.testing.assert_allclose(network.energies(numbers), energy, rtol=1e-12)


def test_group_is_what_it_says(x64: None) -> None:
    points = np.array([[0.0, 0.0, 0.0], [1.0, 0.1, 0.0], [0.2, 0.9, 0.5], [-0.4, 0.3, 1.1]])
    hand = Structure(np.array([6, 1, 8, 1]), points, np.zeros((3, 3)))
    graphs = [make_graph([hand._replace(positions=p)], (1, 6, 8), 3.0) for p in (points, -points)]
    for group, same in (("O3", True), ("SO3", False)):
        config = LocalFramesConfig((1, 6, 8), 3.0, num_channels=4, group=group)  # pyright: ignore[reportArgumentType]
        model = jax.jit(LocalFrames(config, rngs=nnx.Rngs(0)))
        one, other = (np.asarray(model(graph)) for graph in graphs)
        assert (np.abs(one - other).max() < 1e-10 * np.abs(one).max()) == same


def test_other_products_are_refused() -> None:
    with pytest.raises(ValueError, match="only product cartesian fits, not so2"):
        LocalFramesConfig((1,), product="so2").irreps()
