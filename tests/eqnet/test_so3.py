"""Group theory against e3nn-jax, closed forms and finite differences, float64."""

from __future__ import annotations

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqnet import so3


def unit_vectors(number: int) -> np.ndarray:
    vectors = np.random.default_rng(0).normal(size=(number, 3))
    vectors[:6] = np.concatenate([np.eye(3), -np.eye(3)])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def random_rotation(seed: int) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def test_clebsch_gordan_are_orthonormal_and_normalised() -> None:
    for l1, l2 in ((1, 1), (1, 2), (2, 3)):
        tables = [so3.clebsch_gordan(l1, l2, l) for l in range(abs(l1 - l2), l1 + l2 + 1)]
        columns = np.concatenate(
            [t.reshape(-1, t.shape[-1]) * np.sqrt(t.shape[-1]) for t in tables], axis=1
        )
        np.testing.assert_allclose(columns.T @ columns, np.eye(columns.shape[1]), atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_harmonics_agree_with_e3nn() -> None:
    unit = jnp.asarray(unit_vectors(40))
    for l, ours in enumerate(so3.spherical_harmonics(6, unit)):
        irrep = e3nn.Irreps([(1, (l, (-1) ** l))])
        theirs = e3nn.spherical_harmonics(
            irrep, e3nn.IrrepsArray("1o", unit), normalize=False, normalization="component"
        )
        np.testing.assert_allclose(ours, theirs.array, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_harmonics_in_closed_form() -> None:
    """Y_2 with polar axis y: sqrt(15) x z, ..., normalised to |Y|^2 = 5."""
    x, y, z = unit_vectors(20).T
    second = so3.spherical_harmonics(2, jnp.asarray(unit_vectors(20)))[2]
    expected = np.sqrt(15) * np.stack(
        [x * z, x * y, (3 * y**2 - 1) / (2 * np.sqrt(3)), y * z, (z**2 - x**2) / 2], axis=1
    )
    np.testing.assert_allclose(second, expected, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_wigner_d_agrees_with_e3nn_and_turns_harmonics() -> None:
    rotation = random_rotation(1)
    unit = unit_vectors(10)
    before = so3.spherical_harmonics(5, jnp.asarray(unit))
    after = so3.spherical_harmonics(5, jnp.asarray(unit @ rotation.T))
    angles = e3nn.matrix_to_angles(jnp.asarray(rotation))
    for l, matrix in enumerate(so3.wigner_d(5, jnp.asarray(rotation))):
        theirs = e3nn.Irrep(l, 1).D_from_angles(*angles)
        np.testing.assert_allclose(matrix, theirs, atol=1e-12)
        np.testing.assert_allclose(after[l], before[l] @ matrix.T, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_edge_frames_turn_the_edge_to_the_polar_axis() -> None:
    frames = so3.edge_frame(jnp.asarray(unit_vectors(50)))
    turned = jnp.einsum("eij,ej->ei", frames, jnp.asarray(unit_vectors(50)))
    np.testing.assert_allclose(turned, np.tile([0.0, 1.0, 0.0], (50, 1)), atol=1e-12)
    identity = jnp.einsum("eij,ekj->eik", frames, frames)
    np.testing.assert_allclose(identity, np.tile(np.eye(3), (50, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(jnp.linalg.det(frames), 1.0, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_edge_frames_have_derivatives_at_the_poles() -> None:
    """What does not depend on the roll has the right derivative for edges along every axis."""

    def image(vector: jax.Array) -> jax.Array:
        rotation = so3.edge_frame(vector / jnp.linalg.norm(vector))
        # turning the polar harmonic back gives the harmonics of the edge, whatever the roll
        return so3.wigner_d(3, rotation)[3][3]

    tangent, h = np.array([0.3, -0.2, 0.5]), 1e-5
    for axis in np.concatenate([np.eye(3), -np.eye(3)]):
        _, derivative = jax.jvp(image, (jnp.asarray(axis),), (jnp.asarray(tangent),))
        difference = (image(axis + h * tangent) - image(axis - h * tangent)) / (2 * h)
        np.testing.assert_allclose(derivative, difference, atol=1e-8)


def test_random_elements_are_of_the_group() -> None:
    for group, signs in (("O3", [1, -1, 1, -1]), ("SO3", [1, 1, 1, 1])):
        elements = list(so3.random_elements(np.random.default_rng(0), 4, group))
        np.testing.assert_allclose([np.linalg.det(element) for element in elements], signs)
        for element in elements:
            np.testing.assert_allclose(element @ element.T, np.eye(3), atol=1e-14)
    first, second = (so3.random_rotation(np.random.default_rng(seed)) for seed in (0, 1))
    assert np.abs(first - second).max() > 0.1
