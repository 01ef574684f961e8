"""Dynamics on the device against ASE's, closed forms and conservation laws."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import fcc111, molecule
from ase.calculators.calculator import Calculator
from ase.constraints import FixAtoms, FixBondLength
from ase.md.verlet import VelocityVerlet
from dynamics import crystal, ethanol, hot
from flax import nnx
from morse import Morse, model_of, morse_potential

from eqnet import EqnetCalculator
from eqnet.data.frame import from_atoms
from eqnet.data.neighbors import neighbor_list
from eqnet.errors import InputError
from eqnet.graph import AtomGraph, displacements
from eqnet.models import MODELS
from eqnet.potential import Potential, Prediction
from eqnet.simulate import Simulation, Unstable
from eqnet.trajectory import Block, Line, drift
from eqnet.velocities import degrees_of_freedom, draw_velocities
from eqnet.verlet_list import VerletList

POTENTIAL = morse_potential()
SHORT = morse_potential(r_max=2.5)


def slab() -> Atoms:
    atoms = fcc111("C", (2, 2, 3), a=2.6)
    atoms.set_constraint(FixAtoms(indices=range(4)))
    return atoms


def joined(simulation: Simulation, steps: int, interval: int = 10) -> Block:
    blocks = list(simulation.run(steps, frame_interval=interval))
    parts = {
        name: np.concatenate([getattr(block, name) for block in blocks])
        for name in ("step", "potential", "kinetic", "heat")
    }
    frames = [frame for block in blocks for frame in block.frames]
    return Block(**parts, frames=frames, seconds=0.0)


@pytest.mark.parametrize("make", [ethanol, crystal, slab])
def test_same_trajectory_as_ase(make) -> None:
    start = hot(make(), 500)
    reference = start.copy()
    reference.calc = EqnetCalculator(SHORT, dtype="float64")
    energies = []
    dynamics = VelocityVerlet(reference, 0.5 * units.fs)
    dynamics.attach(lambda: energies.append(reference.get_potential_energy()))
    dynamics.run(100)
    simulation = Simulation(SHORT, start, time_step=0.5, dtype="float64", skin=0.1)
    block = joined(simulation, 100, 50)
    last = block.frames[-1]
    assert simulation.rebuilds > 2 and simulation.compilations <= 2
    assert [frame.step for frame in block.frames] == [0, 50, 100]
    np.testing.assert_allclose(last.positions, reference.positions, atol=1e-9, rtol=0)
    np.testing.assert_allclose(last.velocities, reference.get_velocities(), atol=1e-9, rtol=0)
    np.testing.assert_allclose(last.forces[4:], reference.get_forces()[4:], atol=1e-7, rtol=0)
    np.testing.assert_allclose(block.potential, energies, atol=1e-8, rtol=0)
    assert block.kinetic[-1] == pytest.approx(reference.get_kinetic_energy(), abs=1e-9)


def test_energy_error_falls_with_the_square_of_the_time_step() -> None:
    start = hot(ethanol(), 300)
    spread = []
    for time_step in (0.5, 0.25):
        simulation = Simulation(POTENTIAL, start, time_step=time_step, dtype="float64")
        block = joined(simulation, round(200 / time_step))
        spread.append(np.std(block.total))
        assert simulation.rebuilds == 1  # all pairs are in the list of a small molecule
    assert 3.5 < spread[0] / spread[1] < 4.5


def test_time_reversal() -> None:
    start = hot(crystal(), 400)
    there = Simulation(POTENTIAL, start, dtype="float64", skin=0.3)
    turned = there.atoms_of(joined(there, 200, 200).frames[-1])
    turned.set_velocities(-turned.get_velocities())
    back = Simulation(POTENTIAL, turned, dtype="float64", skin=0.3)
    final = joined(back, 200, 200).frames[-1]
    np.testing.assert_allclose(final.positions, start.positions, atol=1e-8, rtol=0)


def test_skin_and_blocks_change_nothing() -> None:
    start = hot(crystal(), 1000)
    frames = []
    for skin in (0.05, 0.6):
        simulation = Simulation(SHORT, start, dtype="float64", skin=skin)
        simulation._step_seconds = 0.1 if skin == 0.05 else 1e-4  # blocks of 10, of all steps
        frames.append(joined(simulation, 150, 25).frames)
    assert [frame.step for frame in frames[0]] == [frame.step for frame in frames[1]]
    for one, other in zip(*frames, strict=True):
        np.testing.assert_allclose(one.positions, other.positions, atol=1e-11, rtol=0)
        assert one.energy == pytest.approx(other.energy, abs=1e-9)


def test_single_precision_keeps_the_energy() -> None:
    simulation = Simulation(POTENTIAL, hot(ethanol()), time_step=0.5, dtype="float32")
    block = joined(simulation, 4000)
    rate, noise = drift(block.step * 0.5, block.total, 9)
    assert abs(rate) < 0.1 and noise < 1.0
    momenta = (
        block.frames[-1].velocities * simulation.atoms_of(block.frames[-1]).get_masses()[:, None]
    )
    assert np.abs(momenta.sum(0)).max() < 1e-3


def test_langevin_reaches_the_temperature_and_conserves() -> None:
    """Mean kinetic energy within five standard errors of 3N/2 kT (blocks of 1 ps)."""
    atoms = hot(crystal(), 300)
    simulation = Simulation(
        POTENTIAL, atoms, ensemble="langevin", temperature=300, friction=0.05, time_step=1.0
    )
    block = joined(simulation, 11_000, 1000)
    temperatures = simulation.temperature(block.kinetic)[1000:11_000]
    means = temperatures.reshape(10, -1).mean(axis=1)
    assert simulation.degrees_of_freedom == 24
    assert abs(means.mean() - 300) < 5 * means.std(ddof=1) / np.sqrt(10)
    assert means.std() < 40
    rate, _ = drift(block.step * 1.0, block.conserved, len(atoms))
    assert abs(rate) < 0.5 and np.ptp(block.total) > 100 * abs(
        block.conserved[-1] - block.conserved[0]
    )


def test_langevin_without_friction_is_verlet_and_seeds_matter() -> None:
    start = hot(ethanol())

    def last(**options) -> np.ndarray:
        simulation = Simulation(POTENTIAL, start, dtype="float64", **options)
        return joined(simulation, 40, 40).frames[-1].positions

    bath = {"ensemble": "langevin", "temperature": 500}
    verlet = last()
    np.testing.assert_allclose(last(**bath, friction=0.0), verlet, atol=1e-12, rtol=0)
    noisy = last(**bath, friction=0.05, seed=1)
    np.testing.assert_array_equal(last(**bath, friction=0.05, seed=1), noisy)
    assert np.abs(last(**bath, friction=0.05, seed=2) - noisy).max() > 1e-3
    assert np.abs(noisy - verlet).max() > 1e-3


def test_going_on_equals_one_run() -> None:
    start = hot(ethanol())
    options = {"ensemble": "langevin", "temperature": 300, "friction": 0.02, "dtype": "float64"}
    whole = joined(Simulation(POTENTIAL, start, **options), 60, 20)
    simulation = Simulation(POTENTIAL, start, **options)
    first, second = joined(simulation, 25, 20), joined(simulation, 60, 20)
    np.testing.assert_array_equal(np.concatenate([first.step, second.step]), whole.step)
    np.testing.assert_array_equal(
        np.concatenate([first.conserved, second.conserved]), whole.conserved
    )
    frames = first.frames + second.frames
    assert [frame.step for frame in frames] == [0, 20, 40, 60]
    np.testing.assert_array_equal(frames[-1].positions, whole.frames[-1].positions)


class AllPairs(Calculator):
    """The short Morse potential of hydrogen by a loop over all pairs: no list, no capacity."""

    implemented_properties = ["energy", "forces"]

    def calculate(self, atoms=None, properties=(), system_changes=()) -> None:
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        model, positions = model_of(SHORT), self.atoms.positions
        cutoff, a = model.config.r_max, float(model.nested[0][...])
        depth, radius = float(model.depth[...][0]) ** 2, 2 * float(model.radius[...][0])
        energy, forces = 0.0, np.zeros_like(positions)
        for i, j in itertools.combinations(range(len(positions)), 2):
            arm = positions[j] - positions[i]
            r = float(np.linalg.norm(arm))
            if r < cutoff:
                x, f = np.exp(-a * (r - radius)), 1 - (r / cutoff) ** 2
                energy += depth * (x**2 - 2 * x) * f**3
                slope = -2 * a * (x**2 - x) * f**3 - 6 * r / cutoff**2 * (x**2 - 2 * x) * f**2
                forces[i] += depth * slope * arm / r
                forces[j] -= depth * slope * arm / r
        self.results = {"energy": energy, "forces": forces}


@pytest.mark.parametrize(("spacing", "speed"), [(2.9, -0.12), (1.4, 0.6)])
def test_capacity_changes_nothing(spacing: float, speed: float) -> None:
    """A cluster that gathers, with more neighbours than there was room for, and one that leaves."""
    grid = np.argwhere(np.ones((3, 3, 3))) - 1.0
    atoms = Atoms("H27", positions=spacing * grid)
    atoms.rattle(0.02, seed=0)
    atoms.set_velocities(speed * grid)
    simulation = Simulation(SHORT, atoms, dtype="float64", skin=0.2)
    block = joined(simulation, 200, 100)
    assert simulation.rebuilds > 10 and (speed > 0 or simulation.compilations > 2)
    edges = [
        len(neighbor_list(frame.positions, frame.cell, np.zeros(3, bool), 2.5).centers)
        for frame in (block.frames[0], block.frames[-1])
    ]
    assert max(edges) > 3 * min(edges)
    reference = atoms.copy()
    reference.calc = AllPairs()
    VelocityVerlet(reference, 0.5 * units.fs).run(200)
    np.testing.assert_allclose(block.frames[-1].positions, reference.positions, atol=1e-9, rtol=0)
    velocities = block.frames[-1].velocities
    np.testing.assert_allclose(velocities, reference.get_velocities(), atol=1e-9, rtol=0)


def test_single_atom_flies_straight() -> None:
    atoms = Atoms("O", positions=[[1.0, 2.0, 3.0]])
    atoms.set_velocities([[0.01, -0.02, 0.0]])
    simulation = Simulation(POTENTIAL, atoms, time_step=1.0)
    frame = joined(simulation, 100, 100).frames[-1]
    expected = atoms.positions + 100 * units.fs * atoms.get_velocities()
    np.testing.assert_allclose(frame.positions, expected, atol=1e-12)
    assert frame.energy == POTENTIAL.atomic_energies[2] + POTENTIAL.shift[2]


def test_fixed_atoms() -> None:
    start = hot(slab(), 500)
    options = {"ensemble": "langevin", "temperature": 500, "friction": 0.1, "time_step": 1.0}
    simulation = Simulation(POTENTIAL, start, **options)
    frame = joined(simulation, 50, 50).frames[-1]
    np.testing.assert_array_equal(frame.positions[:4], start.positions[:4])
    assert not frame.velocities[:4].any()
    assert np.abs(frame.positions[4:] - start.positions[4:]).max() > 1e-3
    assert simulation.degrees_of_freedom == 24


class Wall(Morse):
    """Not a number once two atoms are closer than 0.5 A."""

    def __call__(self, graph: AtomGraph) -> jax.Array:
        close = jnp.linalg.norm(displacements(graph), axis=-1) < 0.5
        return super().__call__(graph) * jnp.where(close.any(), jnp.nan, 0.0)


def test_stops_at_the_step_that_fails() -> None:
    atoms = Atoms("H2", positions=[[0, 0, 0], [0, 0, 1.4]])
    atoms.set_velocities([[0, 0, 0], [0, 0, -0.27 / units.fs]])  # 0.32 A apart at step 4
    wall = morse_potential()
    wall.model = Wall(model_of(wall).config, rngs=nnx.Rngs(0))
    simulation = Simulation(wall, atoms, time_step=1.0, dtype="float64")
    blocks = []
    with pytest.raises(Unstable, match="step 4: energy or forces are not finite"):
        for block in simulation.run(10, frame_interval=1):
            blocks.append(block)
    assert [frame.step for frame in blocks[-1].frames] == [0, 1, 2, 3]
    last = simulation.last()
    assert last.step == 3 and np.isfinite(last.positions).all() and np.isfinite(last.forces).all()
    assert last.positions[1, 2] == pytest.approx(1.4 - 3 * 0.27)


def test_stops_where_atoms_coincide() -> None:
    atoms = Atoms("H3", positions=[[0, 0, 0], [0, 0, 1.5], [0, 0, 9]])
    atoms.set_velocities([[0, 0, 0], [0, 0, -0.5 / units.fs], [0, 0, 0]])
    free = morse_potential()
    free.scale = (0.0,) * 3
    simulation = Simulation(free, atoms, time_step=1.0, dtype="float64", skin=0.2)
    with pytest.raises(Unstable, match="step 3: atoms 0 and 1 coincide"):
        list(simulation.run(10))
    assert simulation.last().step == 2


def test_stops_when_hotter_than_any_matter() -> None:
    atoms = hot(ethanol(), 500_000)
    simulation = Simulation(POTENTIAL, atoms, dtype="float64")
    with pytest.raises(Unstable, match="the temperature reached"):
        list(simulation.run(20))


def test_drawn_velocities() -> None:
    atoms = molecule("C6H6")
    samples = []
    for seed in range(200):
        draw_velocities(atoms, 400, seed)
        momenta = atoms.get_momenta()
        assert np.abs(momenta.sum(0)).max() < 1e-12
        assert np.abs(atoms.get_angular_momentum()).max() < 1e-12
        assert atoms.get_kinetic_energy() == pytest.approx(15 * units.kB * 400, rel=1e-12)
        samples.append(momenta[:, 2] ** 2 / atoms.get_masses())  # out of the plane of benzene
    # The share of each kind of atom in the energy is thermal: nine modes out of the plane.
    spread = 5 * np.sqrt(2 / 200 / 9)
    assert np.sum(np.mean(samples, axis=0)) == pytest.approx(9 * units.kB * 400, rel=spread)
    assert degrees_of_freedom(atoms, conserving=True) == 30
    assert degrees_of_freedom(atoms, conserving=False) == 36
    pair = hot(molecule("H2"))
    assert degrees_of_freedom(pair, conserving=True) == 1
    bulk_atoms = hot(crystal())
    assert degrees_of_freedom(bulk_atoms, conserving=True) == 21
    held = hot(slab())
    assert degrees_of_freedom(held, conserving=True) == 24
    assert not held.get_momenta()[:4].any()
    assert np.array_equal(
        hot(ethanol(), 300, 5).get_momenta(), hot(ethanol(), 300, 5).get_momenta()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ensemble": "nvt"}, "ensemble 'nvt' is unknown, choose nve or langevin or bussi"),
        ({"time_step": 0.0}, "time_step"),
        ({"skin": 0.0}, "skin"),
        ({"ensemble": "langevin"}, "needs a temperature"),
        ({"ensemble": "langevin", "temperature": 300, "friction": -1.0}, "friction"),
        ({"dtype": "float16"}, "float16"),
        ({"device": "abacus"}, "abacus"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Simulation(POTENTIAL, ethanol(), **options)


def test_bad_structures() -> None:
    with pytest.raises(InputError, match="no atoms"):
        Simulation(POTENTIAL, Atoms())
    with pytest.raises(InputError, match="element Ne"):
        Simulation(POTENTIAL, Atoms("Ne"))
    atoms = ethanol()
    atoms.set_constraint(FixBondLength(0, 1))
    with pytest.raises(InputError, match="FixBondLength.* only FixAtoms"):
        Simulation(POTENTIAL, atoms)


def test_drift_of_a_straight_line() -> None:
    times = np.arange(0, 1000.0, 0.5)
    rate, noise = drift(times, -5e5 + 3e-6 * times, 10)
    assert rate == pytest.approx(0.3, rel=1e-3) and noise < 1e-3
    assert drift(times[:1], times[:1], 1) == (0.0, 0.0)


def test_lines_through_values_in_blocks() -> None:
    rng = np.random.default_rng(0)
    times = np.arange(1000) * 0.5
    values = -3e4 + 1e-3 * rng.normal(size=(1000, 2)) + times[:, None] * [1e-6, -2e-6]
    line = Line()
    for start, end in ((0, 1), (1, 400), (400, 1000)):
        line.add(times[start:end], values[start:end])
    slopes, noises = line.fit()
    fits = np.polyfit(times, values - values[0], 1)
    rest = values - values[0] - np.outer(times, fits[0]) - fits[1]
    np.testing.assert_allclose(slopes, fits[0], rtol=1e-8)
    np.testing.assert_allclose(noises, rest.std(axis=0), rtol=1e-8)
    mean, spread = line.moments()
    assert mean == pytest.approx(values.mean(), rel=1e-12)
    assert spread == pytest.approx(values.std(), rel=1e-6)


@pytest.mark.parametrize("name", list(MODELS))
def test_models_compute_in_single_precision_where_64_bit_types_exist(name: str) -> None:
    """Dynamics is float64 around a float32 model: one that promotes would be slow in silence."""
    config_class, model_class = MODELS[name]
    config = config_class(elements=(1, 6, 8), num_channels=8)
    neighbors = VerletList((1, 6, 8), config.r_max, 0.3, "float32")
    graph = neighbors.build(from_atoms(ethanol()))

    def predict() -> Prediction:
        model = model_class(config, rngs=nnx.Rngs(0))
        settings = {"atomic_energies": [0.0] * 3, "scale": [1.0] * 3, "shift": [0.0] * 3}
        potential = Potential(
            model, elements=(1, 6, 8), cutoff=config.r_max, pair_repulsion=True, **settings
        )
        graphdef, state = nnx.split(potential)
        state = jax.tree.map(lambda x: x.astype(np.float32), state)
        return nnx.merge(graphdef, state).predict(graph, stress=True)

    with jax.enable_x64(True):
        answer = jax.eval_shape(predict)
    assert {leaf.dtype for leaf in jax.tree.leaves(answer)} == {np.dtype(np.float32)}
