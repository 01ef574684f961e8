"""Homogenisation of struts against theory, and lattices as graphs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eqnet.data.struts import strut_item
from eqnet.data.tensor_labels import ELASTICITY, TENSORS, read_tensors, symmetrised
from eqnet.errors import InputError
from eqnet.scripts.make_lattices import beam, homogenise, main, net, random_lattice
from eqnet.so3 import random_rotation


def test_octet_truss() -> None:
    """C11, C12, C44 = 1/6, 1/12, 1/12 of the density for thin struts (Deshpande et al. 2001)."""
    lattice = net("octet truss", 0.003)
    c = homogenise(lattice) / lattice.density()
    found = [c[0, 0], c[0, 1], c[3, 3] / 2]
    np.testing.assert_allclose(found, [1 / 6, 1 / 12, 1 / 12], rtol=3e-4)
    np.testing.assert_allclose(c[:3, 3:], 0, atol=1e-12)


def test_cubic_frame_resists_shear_by_bending() -> None:
    """Straight beams: C11 = pi r^2, C12 = 0; a frame of clamped joints has C44 = 6 I / l^4."""
    radius = 0.02
    c = homogenise(net("simple cubic", radius))
    inertia = np.pi * radius**4 / 4
    np.testing.assert_allclose(c[0, 0], np.pi * radius**2, rtol=1e-12)
    np.testing.assert_allclose(c[3, 3] / 2, 6 * inertia, rtol=1e-9)
    np.testing.assert_allclose(c[0, 1], 0, atol=1e-15)


def test_beam_resists_no_rigid_motion() -> None:
    rng = np.random.default_rng(0)
    vector, spin, shift = rng.normal(size=(3, 3))
    motion = np.concatenate([shift, spin, shift + np.cross(spin, vector), spin])
    stiffness = beam(vector, 0.1)
    np.testing.assert_allclose(stiffness @ motion, 0, atol=1e-14)
    np.testing.assert_allclose(stiffness, stiffness.T, atol=1e-16)
    assert (np.linalg.eigvalsh(stiffness) > 1e-6).sum() == 6


def test_rotation_and_positive_energy() -> None:
    lattice = random_lattice(np.random.default_rng(3))
    turn = random_rotation(np.random.default_rng(4))
    moved = replace(
        lattice, positions=lattice.positions @ turn.T, cell=lattice.cell @ turn.T
    )  # fmt: skip
    strains = np.zeros((6, 3, 3))
    for q, (a, b) in enumerate([(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]):
        strains[q, a, b] = strains[q, b, a] = 1.0 if a == b else np.sqrt(0.5)
    q = np.einsum("aij,ik,jl,bkl->ab", strains, turn, turn, strains)
    c, d = homogenise(lattice), homogenise(moved)
    np.testing.assert_allclose(d, q @ c @ q.T, atol=1e-10 * np.abs(c).max())
    assert np.linalg.eigvalsh(c).min() > 0


def test_file_and_graph(tmp_path: Path) -> None:
    main([str(tmp_path / "l.xyz"), "--number", "3"])
    frames = read_tensors(tmp_path / "l.xyz", {"elasticity": TENSORS["elasticity"]})
    rng = np.random.default_rng(0)
    for frame in frames:
        lattice = random_lattice(rng)
        c = frame.tensors["elasticity"]
        np.testing.assert_allclose(c[0, 1, 2, 2], homogenise(lattice)[5, 2] / np.sqrt(2), rtol=1e-6)
        np.testing.assert_allclose(symmetrised(ELASTICITY, c), c, rtol=1e-12)
        item = strut_item(frame, (6,), 60.0)
        assert item.num_edges == 2 * len(lattice.struts)
        lengths = np.linalg.norm(lattice.vectors(), axis=1) / lattice.radius
        np.testing.assert_allclose(
            np.sort(item.neighbors.distances), np.sort(np.repeat(lengths, 2)), rtol=1e-6
        )
        with pytest.raises(InputError, match="raise --r_max"):
            strut_item(frame, (6,), float(lengths.max()) - 0.1)
    frames[0].info.pop("struts")
    with pytest.raises(InputError, match="needs struts"):
        strut_item(frames[0], (6,), 60.0)
