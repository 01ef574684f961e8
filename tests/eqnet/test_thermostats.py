"""Thermostats against ASE's, step for step, and against the canonical ensemble."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import fcc111
from ase.constraints import FixAtoms
from ase.md.bussi import Bussi as AseBussi
from ase.md.nose_hoover_chain import NoseHooverChainNVT
from dynamics import crystal, ethanol, hot, joined
from morse import morse_potential

from eqnet import EqnetCalculator
from eqnet.errors import InputError
from eqnet.simulate import Simulation
from eqnet.thermostats import Bussi
from eqnet.trajectory import drift

POTENTIAL = morse_potential()
CALCULATOR = EqnetCalculator(POTENTIAL, dtype="float64")


def moving(atoms: Atoms, temperature: float = 500) -> Atoms:
    """With a momentum, so that all 3 N velocities are free, as ASE's thermostats take them."""
    atoms = hot(atoms, temperature)
    atoms.set_velocities(atoms.get_velocities() + [0.001, -0.002, 0.003])
    return atoms


@pytest.mark.parametrize(("make", "length"), [(ethanol, 3), (crystal, 1)])
def test_nose_hoover_is_that_of_ase(make, length: int) -> None:
    start = moving(make())
    reference, conserved = start.copy(), []
    reference.calc = CALCULATOR
    dynamics = NoseHooverChainNVT(
        reference, 0.5 * units.fs, temperature_K=300, tdamp=20 * units.fs, tchain=length
    )
    dynamics.attach(lambda: conserved.append(dynamics.get_conserved_energy()))
    dynamics.run(60)
    options: dict[str, Any] = {"temperature": 300, "thermostat_time": 20, "chain_length": length}
    simulation = Simulation(
        POTENTIAL, start, ensemble="nose_hoover", dtype="float64", skin=0.1, **options
    )
    block = joined(simulation, 60, 60)
    assert simulation.degrees_of_freedom == 3 * len(start)
    last = block.frames[-1]
    np.testing.assert_allclose(last.positions, reference.positions, atol=1e-9, rtol=0)
    np.testing.assert_allclose(last.velocities, reference.get_velocities(), atol=1e-10, rtol=0)
    np.testing.assert_allclose(block.conserved, conserved, atol=1e-8, rtol=0)
    assert np.ptp(block.heat) > 0.05


class Repeated:
    """A generator that gives ASE the random numbers of our steps."""

    def __init__(self, bussi: Bussi, freedom: int) -> None:
        self.bussi, self.freedom, self.step = bussi, freedom, -1

    def standard_normal(self) -> float:
        self.step += 1
        with jax.enable_x64(True):
            one, others = self.bussi.noise(np.int64(self.step), np.array([self.freedom]))
        self.squares = float(others[0])
        return float(one[0])

    def standard_gamma(self, shape: float) -> float:
        assert shape == (self.freedom - 1) / 2
        return self.squares / 2


def test_bussi_is_that_of_ase_with_the_same_noise() -> None:
    start = moving(ethanol())
    options: dict[str, Any] = {"temperature": 300, "thermostat_time": 20, "seed": 4}
    simulation = Simulation(POTENTIAL, start, ensemble="bussi", dtype="float64", **options)
    reference, conserved = start.copy(), []
    reference.calc = CALCULATOR
    bussi = simulation._integrator
    assert isinstance(bussi, Bussi)
    dynamics = AseBussi(
        reference, 0.5 * units.fs, 300, 20 * units.fs, rng=Repeated(bussi, 3 * len(start))
    )

    def note() -> None:
        conserved.append(reference.get_total_energy() - dynamics.transferred_energy)

    dynamics.attach(note)
    dynamics.run(60)
    block = joined(simulation, 60, 60)
    last = block.frames[-1]
    np.testing.assert_allclose(last.positions, reference.positions, atol=1e-9, rtol=0)
    np.testing.assert_allclose(last.velocities, reference.get_velocities(), atol=1e-10, rtol=0)
    np.testing.assert_allclose(block.conserved, conserved, atol=1e-8, rtol=0)
    assert np.ptp(block.heat) > 0.05


@pytest.mark.parametrize("freedom", [1, 2, 21])
def test_noise_of_bussi_has_the_distribution_of_squares(freedom: int) -> None:
    """Mean and variance of a normal number, and of the sum of n - 1 squares: n - 1, 2 (n - 1)."""
    steps = 20_000
    with jax.enable_x64(True):
        bussi = Bussi(1.0, 1.0, np.ones(1), jax.numpy.stack([jax.random.key(7)]))
        one, others = jax.jit(jax.vmap(lambda step: bussi.noise(step, np.array([freedom]))))(
            np.arange(steps)
        )
    one, others = np.asarray(one), np.asarray(others)
    n = freedom - 1
    assert abs(one.mean()) < 5 / np.sqrt(steps)
    assert abs(one.var() - 1) < 5 * np.sqrt(2 / steps)
    assert abs(others.mean() - n) <= 5 * np.sqrt(2 * n / steps)
    assert abs(others.var() - 2 * n) <= 5 * np.sqrt((8 * n**2 + 48 * n) / steps)


def test_conserved_energy_of_a_chain_improves_with_the_square_of_the_time_step() -> None:
    start = hot(ethanol(), 500)
    spread = []
    for time_step in (0.5, 0.25):
        simulation = Simulation(
            POTENTIAL,
            start,
            ensemble="nose_hoover",
            temperature=300,
            thermostat_time=30,
            time_step=time_step,
            dtype="float64",
        )
        block = joined(simulation, round(200 / time_step))
        spread.append(np.std(block.conserved))
    assert 3.5 < spread[0] / spread[1] < 4.5


@pytest.mark.parametrize("ensemble", ["bussi", "nose_hoover"])
def test_fixed_atoms_and_momentum_stay(ensemble) -> None:
    slab = fcc111("C", (2, 2, 3), a=2.6)
    slab.set_constraint(FixAtoms(indices=range(4)))
    options: dict[str, Any] = {"ensemble": ensemble, "temperature": 500, "thermostat_time": 20}
    simulation = Simulation(POTENTIAL, hot(slab, 500), **options)
    frame = joined(simulation, 50, 50).frames[-1]
    np.testing.assert_array_equal(frame.positions[:4], slab.positions[:4])
    assert simulation.degrees_of_freedom == 24
    free = hot(ethanol(), 500)
    simulation = Simulation(POTENTIAL, free, dtype="float64", **options)
    assert simulation.degrees_of_freedom == 21
    momenta = simulation.atoms_of(joined(simulation, 50, 50).frames[-1]).get_momenta()
    assert np.abs(momenta.sum(axis=0)).max() < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("ensemble", ["bussi", "nose_hoover", "langevin"])
def test_kinetic_energy_is_canonical(ensemble) -> None:
    """Mean f/2 kT and variance f/2 (kT)^2 of f degrees of freedom, within five standard errors."""
    start = hot(crystal(), 300)
    options: dict[str, Any] = (
        {"friction": 0.05} if ensemble == "langevin" else {"thermostat_time": 30.0}
    )
    simulation = Simulation(
        POTENTIAL, start, ensemble=ensemble, temperature=300, time_step=1.0, seed=1, **options
    )
    block = joined(simulation, 400_000, 1000)
    half, energy = simulation.degrees_of_freedom / 2, units.kB * 300
    parts = block.kinetic[5000:400_000].reshape(79, -1) / energy
    for values, expected, width in (
        (parts.mean(axis=1), half, 0.03),
        (((parts - half) ** 2).mean(axis=1), half, 0.2),
    ):
        five_errors = 5 * values.std(ddof=1) / np.sqrt(len(values))
        assert abs(values.mean() - expected) < five_errors < width * half
    rate, noise = drift(block.step * 1.0, block.conserved, len(start))
    assert abs(rate) < 0.5 and noise < 5.0


def test_refusals() -> None:
    still = ethanol()
    with pytest.raises(InputError, match="all are zero: draw them"):
        Simulation(POTENTIAL, still, ensemble="bussi", temperature=300)
    still.set_constraint(FixAtoms(indices=range(9)))
    with pytest.raises(InputError, match="nothing to heat"):
        Simulation(POTENTIAL, still, ensemble="nose_hoover", temperature=300)
