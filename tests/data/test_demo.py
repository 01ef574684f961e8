"""The shipped example is what its provenance says."""

from __future__ import annotations

import numpy as np

from eqnet.data.demo import demo_path
from eqnet.data.read import read


def test_the_example_holds_ethanol_and_its_atoms():
    dataset = read(demo_path())
    assert len(dataset.frames) == 600 and dataset.elements == (1, 6, 8)
    assert sorted(dataset.isolated) == [1, 6, 8]
    assert [(r.label, r.key, r.count) for r in dataset.report.rows] == [
        ("energy", "REF_energy", 600),
        ("forces", "REF_forces", 600),
    ]
    assert demo_path().stat().st_size < 1_000_000
    assert "GFN2-xTB" in demo_path().with_name("README.md").read_text()


def test_frames_are_at_500_kelvin_and_free_of_net_force():
    frames = read(demo_path()).frames
    energies = np.array([f.energy for f in frames])
    # Equipartition of a nearly harmonic molecule: variance of the potential energy 21/2 (k T)^2.
    expected = np.sqrt(21 / 2) * 8.617333e-5 * 500
    assert 0.8 < energies.std() / expected < 1.2
    for f in frames:
        assert f.forces is not None
        assert np.abs(f.forces.sum(0)).max() < 1e-6
        assert np.abs(np.cross(f.positions, f.forces).sum(0)).max() < 1e-4  # no net torque
