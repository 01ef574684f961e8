"""Frames make a network of coordinates invariant; where they are undefined, energies jump."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from graphs import Structure, make_graph

from eqnet.graph import AtomGraph
from eqnet.models.coordinate_network import CoordinateNetwork, CoordinateNetworkConfig
from eqnet.models.egennet import EGenNetConfig
from eqnet.models.frame_averaging import FrameAveraging, LearnedFrames, principal_axes
from eqnet.models.local_frames import LocalFrames, LocalFramesConfig
from eqnet.so3 import random_elements

ELEMENTS, CUTOFF = (1, 6, 8), 4.0


def make(name: str, group: str = "O3") -> Callable[[AtomGraph], jax.Array]:
    rngs = nnx.Rngs(0)
    config = CoordinateNetworkConfig(
        ELEMENTS, CUTOFF, num_channels=6, num_interactions=1, num_radial_basis=4
    )
    backbone = CoordinateNetwork(config, rngs=rngs)
    if name == "none":
        return backbone
    if name == "principal axes":
        return FrameAveraging(backbone, group)  # pyright: ignore[reportArgumentType]
    if name == "local frames":
        smooth = LocalFramesConfig(
            ELEMENTS, CUTOFF, num_channels=6, num_interactions=1, num_radial_basis=4
        )
        return LocalFrames(smooth, rngs=rngs)
    of_vectors = EGenNetConfig(
        ELEMENTS, CUTOFF, num_channels=2, hidden_channels=4, num_interactions=2, num_radial_basis=4
    )
    return LearnedFrames(backbone, of_vectors, group, rngs=rngs)  # pyright: ignore[reportArgumentType]


def random_structures() -> list[Structure]:
    rng = np.random.default_rng(0)
    return [
        Structure(rng.choice(ELEMENTS, n), 1.2 * rng.normal(size=(n, 3)), np.zeros((3, 3)))
        for n in (5, 7)
    ]


def energy_and_forces(model: Callable) -> Callable[[AtomGraph], tuple[jax.Array, jax.Array]]:
    def total(positions: jax.Array, graph: AtomGraph) -> jax.Array:
        energy = model(replace(graph, positions=positions))
        return jnp.where(jnp.asarray(graph.atom_mask), energy, 0.0).sum()

    return jax.jit(lambda graph: jax.value_and_grad(total)(graph.positions, graph))


@pytest.mark.parametrize("group", ["O3", "SO3"])
@pytest.mark.parametrize("name", ["principal axes", "learned"])
def test_equivariance(name: str, group: str, x64: None) -> None:
    structures = random_structures()
    answer = energy_and_forces(make(name, group))
    energy, gradient = answer(make_graph(structures, ELEMENTS, CUTOFF, extra_atoms=1))
    rng, changes = np.random.default_rng(1), []
    for element in random_elements(rng, 4):
        order = rng.permutation(5)
        moved = [s._replace(positions=(s.positions + 3.0) @ element.T) for s in structures]
        first = Structure(moved[0].numbers[order], moved[0].positions[order], moved[0].cell)
        other, turned = answer(make_graph([first, moved[1]], ELEMENTS, CUTOFF, extra_atoms=1))
        changes.append(abs(float(other - energy)))
        if group == "O3" or np.linalg.det(element) > 0:
            assert changes[-1] <= 1e-10 * abs(float(energy))
            expected = np.concatenate([gradient[:5][order], gradient[5:]]) @ element.T
            assert np.abs(turned - expected).max() <= 1e-10 * np.abs(gradient).max()
    if group == "SO3":  # the others are mirror images, which it tells apart
        assert max(changes) > 1e-4 * abs(float(energy))


def test_forces_are_the_gradient(x64: None) -> None:
    graph = make_graph(random_structures(), ELEMENTS, CUTOFF + 1)
    step = 1e-4 * np.random.default_rng(2).normal(size=graph.positions.shape)
    for name in ("principal axes", "learned"):
        answer = energy_and_forces(make(name))
        near = [
            float(answer(replace(graph, positions=graph.positions + n * step))[0])
            for n in (-2, -1, 1, 2)
        ]
        slope = (near[0] - 8 * near[1] + 8 * near[2] - near[3]) / 12
        expected = float((answer(graph)[1] * step).sum())
        assert slope == pytest.approx(expected, rel=1e-7, abs=1e-12)


def test_derivatives_of_principal_axes(x64: None) -> None:
    rng = np.random.default_rng(3)
    half = rng.normal(size=(3, 3))
    matrix, change = half @ half.T, rng.normal(size=(3, 3))
    change = change + change.T

    # projectors on the axes do not depend on signs, in contrast to the axes themselves
    def projectors(h: float) -> jax.Array:
        axes = principal_axes(jnp.asarray(matrix + h * change))
        return axes[:, :, None] * axes[:, None, :]

    found = jax.jacfwd(projectors)(0.0)
    slope = (projectors(1e-5) - projectors(-1e-5)) / 2e-5
    np.testing.assert_allclose(found, slope, rtol=1e-6, atol=1e-8)
    values, columns = np.linalg.eigh(matrix)
    np.testing.assert_allclose(np.abs(principal_axes(jnp.asarray(matrix))), np.abs(columns.T))
    assert np.isfinite(jax.jacfwd(lambda h: principal_axes(jnp.eye(3) * (1 + h)))(0.0)).all()
    assert (np.diff(values) > 0).all()


def rhombus(long: float) -> Structure:
    """Oxygen at +-long on x, hydrogen at +-1.2 on y: a square has two equal moments."""
    points = np.array([[long, 0, 0], [-long, 0, 0], [0, 1.2, 0], [0, -1.2, 0]])
    return Structure(np.array([8, 8, 1, 1]), points, np.zeros((3, 3)))


def pinwheel(angle: float, off: float) -> Structure:
    """A carbon atom off the centre, in this direction, of two rings turned against each other."""
    four = np.arange(4) * np.pi / 2
    rings = [(1.5, four), (1.9, four + 0.4)]
    around = [[r * np.cos(a), r * np.sin(a), 0.0] for r, angles in rings for a in angles]
    points = np.array([[off * np.cos(angle), off * np.sin(angle), 0.0], *around])
    return Structure(np.array([6, *4 * [1], *4 * [8]]), points, np.zeros((3, 3)))


def jump(model: Callable, one: Structure, other: Structure) -> float:
    """Difference of the energies of two structures that are nearly the same, relative."""
    answer = energy_and_forces(model)
    a, b = (float(answer(make_graph([s], ELEMENTS, CUTOFF))[0]) for s in (one, other))
    return abs(a - b) / abs(a)


def test_energies_jump_where_frames_are_undefined(x64: None) -> None:
    """And do not with weights: the change is then of the order of the step, 1e-7 A."""
    step = 1e-7
    through_the_square = rhombus(1.2 - step / 2), rhombus(1.2 + step / 2)
    about_the_centre = pinwheel(0.3, step), pinwheel(1.0, step)
    found = {
        "principal axes": jump(make("principal axes"), *through_the_square),
        "learned": jump(make("learned"), *about_the_centre),
    }
    for name, change in found.items():
        print(f"{name}: relative jump {change:.1e}")
        assert change > 1e-3
    for pair in (through_the_square, about_the_centre):
        change = jump(make("local frames"), *pair)
        print(f"local frames: relative change {change:.1e}")
        assert change < 1e-6


def test_periodic_structures_have_no_principal_axes(x64: None) -> None:
    crystal = random_structures()[0]._replace(cell=5.0 * np.eye(3))
    graph = make_graph([crystal], ELEMENTS, CUTOFF)
    model = make("principal axes")
    with pytest.raises(ValueError, match="take learned frames, or the model local_frames"):
        model(graph)
    assert np.isnan(jax.jit(model)(graph)).all()


def test_a_frame_needs_two_vectors() -> None:
    config = EGenNetConfig(ELEMENTS, num_channels=3)
    with pytest.raises(ValueError, match="a frame needs num_channels 2"):
        LearnedFrames(lambda graph: graph.positions[:, 0], config, rngs=nnx.Rngs(0))
