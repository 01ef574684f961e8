"""The drift of the energy, measured otherwise."""

from __future__ import annotations

import numpy as np
import pytest
import small_run
from ase import units
from ase.md.verlet import VelocityVerlet
from flax import nnx

from eqnet.calculator import EqnetCalculator
from eqnet.data.frame import to_atoms
from eqnet.energy_drift import measure, sentence
from eqnet.models import MACE, MACEConfig
from eqnet.potential import Potential
from eqnet.velocities import draw_velocities


def test_drift_of_a_simulation() -> None:
    """Against ASE's velocity Verlet with the calculator, and numpy's straight line."""
    frame = small_run.frames(1)[0]
    elements = tuple(sorted({int(z) for z in frame.numbers}))
    config = MACEConfig(
        elements,
        r_max=3.0,
        num_channels=2,
        max_L=0,
        max_ell=0,
        correlation=1,
        num_interactions=1,
        radial_MLP=(4,),
    )
    potential = Potential(
        MACE(config, rngs=nnx.Rngs(0)),
        elements=elements,
        cutoff=config.r_max,
        atomic_energies=[-1.0] * len(elements),
        scale=[0.3] * len(elements),
        shift=[0.5] * len(elements),
    )
    found = measure(potential, frame, 0.02)
    atoms = to_atoms(frame)
    draw_velocities(atoms, 300.0, 0, conserving=True)
    atoms.calc = EqnetCalculator(potential)
    energies = [atoms.get_total_energy()]
    verlet = VelocityVerlet(atoms, 0.5 * units.fs)
    for _ in range(40):
        verlet.run(1)
        energies.append(atoms.get_total_energy())
    time_ps = 0.0005 * np.arange(41)
    line = np.polyfit(time_ps, 1000 * np.array(energies) / len(atoms), 1)
    rest = 1000 * np.array(energies) / len(atoms) - np.polyval(line, time_ps)
    assert found["steps"] == 40 and found["unstable"] is None
    assert found["fluctuation_mev_per_atom"] == pytest.approx(rest.std(), rel=0.02)
    assert found["drift_mev_per_atom_ps"] == pytest.approx(line[0], rel=0.02)

    long_steps = measure(potential, frame, 20.0, time_step=50.0)
    assert long_steps["drift_mev_per_atom_ps"] is None
    assert long_steps["unstable"]
    assert sentence(long_steps).startswith("dynamics at constant energy are unstable (")
