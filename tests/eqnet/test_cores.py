"""Several cores give the numbers of one."""

from __future__ import annotations

import subprocess
import sys

import jax
import pytest
from morse import morse_potential

from eqnet import EqnetCalculator
from eqnet.errors import InputError

CODE = """
from eqnet.device import shared_cores
shared_cores(2)
import copy
import jax
import numpy as np
from ase import units
from ase.build import bulk
from ase.md.verlet import VelocityVerlet
from flax import nnx
from eqnet import EqnetCalculator
from eqnet.models import MODELS
from eqnet.models.mace import MACE, MACEConfig
from eqnet.potential import Potential
from eqnet.simulate import Simulation

config = MACEConfig((6,), r_max=4.0, num_channels=2, max_L=1, max_ell=1, correlation=1)
with jax.enable_x64():
    model = MACE(config, rngs=nnx.Rngs(0))
values = {"elements": (6,), "cutoff": 4.0, "scale": [1.0], "shift": [0.0]}
potential = Potential(model, atomic_energies=[0.0], **values)
atoms = bulk("C", "diamond", 3.6, cubic=True).repeat((3, 2, 2))
atoms.rattle(0.1, seed=0)
found = []
for cores in (1, 2):
    atoms.calc = copy.deepcopy(EqnetCalculator(potential, dtype="float64", cores=cores))
    found.append((atoms.get_potential_energies(), atoms.get_forces(), atoms.get_stress()))
    shardings = jax.tree.leaves(atoms.calc._answers._graph)[0].sharding
    assert len(shardings.device_set) == cores, shardings
for one, two in zip(*found):
    np.testing.assert_allclose(two, one, rtol=1e-11, atol=1e-12)
assert np.abs(found[0][1]).max() > 0.01


# messages of rows that are summed later, and of several arrays of the neighbours
for name, small in (("tdn", {"num_heads": 2}), ("egennet", {})):
    config_class, model_class = MODELS[name]
    with jax.enable_x64():
        few = config_class((6,), r_max=4.0, num_channels=2, num_interactions=1, **small)
        model = model_class(few, rngs=nnx.Rngs(0))
    other = Potential(model, atomic_energies=[0.0], **values)
    pair = []
    for cores in (1, 2):
        atoms.calc = EqnetCalculator(other, dtype="float64", cores=cores)
        pair.append(atoms.get_forces())
    np.testing.assert_allclose(pair[1], pair[0], rtol=1e-10, atol=1e-11)
    assert np.abs(pair[0]).max() > 1e-6, name
atoms.calc = EqnetCalculator(potential, dtype="float64", cores=2)

simulation = Simulation(potential, atoms, time_step=1.0, dtype="float64", cores=2)
*_, last = simulation.run(20)
assert len(simulation._motion.state.positions.sharding.device_set) == 2
start, moving = atoms.positions.copy(), atoms
VelocityVerlet(moving, 1.0 * units.fs).run(20)
assert np.abs(moving.positions - start).max() > 1e-3
np.testing.assert_allclose(simulation.last().positions, moving.positions, rtol=0, atol=1e-11)
"""


def test_shared_atoms_give_the_same_numbers() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(len(jax.devices("cpu")) > 1, reason="JAX has several CPU devices here")
def test_cores_that_cannot_be_had() -> None:
    with pytest.raises(InputError, match="cores = 2: JAX has started with 1 CPU device"):
        EqnetCalculator(morse_potential(), cores=2)
    with pytest.raises(InputError, match="cores must be 1 or more, not 0"):
        EqnetCalculator(morse_potential(), cores=0)
