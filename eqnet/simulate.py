"""Molecular dynamics of ASE atoms on the device, with neighbours found on the host.

    simulation = Simulation(load("model.eqnet"), atoms, time_step=0.5)
    for block in simulation.run(steps=20_000, frame_interval=100):
        for frame in block.frames:
            trajectory.write(simulation.atoms_of(frame))

Blocks of steps run in one compiled loop (`eqnet.integrators`). The loop stops by itself when the
neighbours may be out of date; they are found again here and the loop goes on. Molecules, slabs and
crystals alike; atoms that an ASE `FixAtoms` constraint holds do not move.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from flax import nnx

from eqnet.data.frame import from_atoms
from eqnet.device import (
    Device,
    computing,
    everywhere,
    find_device,
    find_dtype,
    program,
    shared_cores,
    within,
)
from eqnet.errors import InputError
from eqnet.graph import AtomGraph
from eqnet.integrators import (
    Dynamics,
    Motion,
    Neighborhood,
    Phase,
    Thermostat,
    Window,
    empty_records,
    run_block,
    start,
)
from eqnet.potential import Potential
from eqnet.velocities import degrees_of_freedom, fixed_atoms
from eqnet.verlet_list import VerletList

T = TypeVar("T")
FRAME_BYTES = 2**26  # of frames kept on the device within one block
MAX_BLOCK = 1000  # steps
LOUD = 10.0  # meV/atom of fluctuation about a conserved energy, a hundred times a sound run's
HOTTEST = 1e5  # kelvin; beyond it nothing is a simulation of atoms any more


class Unstable(RuntimeError):
    """The simulation cannot go on; the message says at which step and why."""


class Snapshot(NamedTuple):
    """One step in full, n atoms, float64."""

    step: int
    positions: np.ndarray  # [n, 3] angstrom, not wrapped
    velocities: np.ndarray  # [n, 3] in ASE's units
    forces: np.ndarray  # [n, 3] eV/angstrom
    energy: float  # potential energy, eV


@dataclass(frozen=True)
class Block:
    """Consecutive steps, B of them; energies in eV."""

    step: np.ndarray  # [B] int
    potential: np.ndarray  # [B]
    kinetic: np.ndarray  # [B]
    heat: np.ndarray  # [B] put in by the thermostat so far; 0 without one
    frames: list[Snapshot]
    seconds: float  # wall-clock time it took, compilation included

    @property
    def total(self) -> np.ndarray:
        """Potential and kinetic energy."""
        return self.potential + self.kinetic

    @property
    def conserved(self) -> np.ndarray:
        """What an exact integrator keeps constant: the total energy less the heat put in."""
        return self.total - self.heat


class Simulation:
    """Velocity Verlet (constant energy) or BAOAB Langevin dynamics of one structure.

    Args:
        potential: the model; see `eqnet.load`.
        atoms: structure with its velocities; it is not changed.
        ensemble: 'nve' or 'langevin'.
        time_step: fs.
        temperature: of the heat bath, K; needed by Langevin only.
        friction: 1/fs; Langevin only.
        seed: of the noise; step k of a run always sees the same noise.
        skin: angstrom added to the cutoff when neighbours are found; results do not depend on it.
        dtype: 'float32' or 'float64' for the model; motion and energies are float64 always.
        device: None for JAX's default, or a name such as 'cpu', 'gpu', 'cuda:1'.
        cores: of a CPU that share the atoms; worth it from a hundred atoms on.

    Attributes:
        compilations: compiled programs so far.
        rebuilds: neighbour searches so far.

    Raises:
        InputError: unknown element, no atoms, a constraint other than FixAtoms, an option outside
            its range.
    """

    def __init__(
        self,
        potential: Potential,
        atoms: Atoms,
        *,
        ensemble: Literal["nve", "langevin"] = "nve",
        time_step: float = 0.5,
        temperature: float | None = None,
        friction: float = 0.01,
        seed: int = 0,
        skin: float = 0.3,
        dtype: str = "float32",
        device: str | Device | None = None,
        cores: int = 1,
    ) -> None:
        _check_options(ensemble, time_step, temperature, friction, skin)
        self.potential = potential
        self.ensemble = ensemble
        self.time_step = time_step
        self.dtype = str(find_dtype(dtype))
        self._mesh = shared_cores(cores)
        self.device = find_device(device)
        self._atoms = atoms.copy()
        self._frame = from_atoms(atoms)
        self._list = VerletList(potential.elements, potential.cutoff, skin, self.dtype)
        self._compiled: list[tuple[int, ...]] = []
        self._step_seconds = 0.01
        self._list.build(self._frame)
        species = np.searchsorted(potential.elements, self._frame.numbers)
        self._reference = potential.reference_energy(species)
        self._fixed = fixed_atoms(atoms)
        self.degrees_of_freedom = degrees_of_freedom(atoms, conserving=ensemble == "nve")
        with self._computing():
            self._setup(temperature, friction, seed)

    def _setup(self, temperature: float | None, friction: float, seed: int) -> None:
        """What goes to the device once."""
        graphdef, weights = nnx.split(self.potential)
        weights = jax.tree.map(lambda x: np.asarray(x).astype(self.dtype), weights)
        self._weights = self._put(weights)
        masses = np.where(self._fixed, np.inf, self._atoms.get_masses())
        velocities = np.where(self._fixed[:, None], 0.0, self._atoms.get_velocities())
        self._num_device_atoms = size = self._list.offset.shape[0]
        thermostat = None
        if self.ensemble == "langevin":
            assert temperature is not None
            energy = np.float64(units.kB * temperature)
            thermostat = Thermostat(np.float64(friction / units.fs), energy, jax.random.key(seed))
        masses = _padded(masses, size, np.inf)
        self._dynamics = self._put(
            Dynamics(masses, np.float64(self.time_step * units.fs), thermostat)
        )
        positions = _padded(self._frame.positions, size, 0.0)
        self._motion = start(positions, _padded(velocities, size, 0.0))
        self._hood = self._neighborhood()
        compiled = self._compiled

        def force_field(weights: Any, graph: AtomGraph) -> tuple[jax.Array, jax.Array]:
            answer = nnx.merge(graphdef, weights).predict(graph)
            return answer.forces, answer.node_energy

        def block(*args: Any) -> Motion:
            compiled.append(args[1].graph.neighbors.shape)  # runs once per compilation
            return run_block(force_field, *args)

        self._block = program(block)

    def _put(self, tree: T) -> T:
        """Bound to the device: inputs that are bound or not by turns would compile twice."""
        return jax.device_put(tree, everywhere(self._mesh, self.device))

    def _computing(self) -> Any:
        return computing(self.device, double=True, what=f"{len(self._atoms)} atoms")

    @property
    def num_atoms(self) -> int:
        """Atoms of the structure."""
        return len(self._atoms)

    @property
    def compilations(self) -> int:
        """Compiled programs so far."""
        return len(self._compiled)

    @property
    def rebuilds(self) -> int:
        """Neighbour searches so far."""
        return self._list.builds

    @property
    def step(self) -> int:
        """Number of the next step to compute; 0 before the first."""
        return int(self._motion.step)

    def temperature(self, kinetic: Any) -> Any:
        """Temperature in K of a kinetic energy in eV; 0 where nothing can move."""
        return 2 * np.asarray(kinetic) / (max(self.degrees_of_freedom, 1) * units.kB)

    # ------------------------------------------------------------------------------------- running

    def run(self, steps: int, *, frame_interval: int = 10) -> Iterator[Block]:
        """Go on to step `steps` (counted from the start), in blocks of about a second.

        The first block begins with step 0, the structure as given. Every step has its energies in a
        block; steps whose number is a multiple of `frame_interval` are there in full.

        Raises:
            Unstable: energy or forces are not finite, atoms coincide, or the temperature passed all
                bounds. All steps before that have been yielded; `last` is the last good one.
        """
        if frame_interval < 1:
            raise InputError(f"frame_interval must be at least 1, not {frame_interval}")
        while self.step <= steps:
            first = self.step
            end = min(first + self._block_length(frame_interval), steps + 1)
            started, compiled = time.monotonic(), self.compilations
            trouble = self._advance(first, end, frame_interval)
            block = self._collect(first, frame_interval, time.monotonic() - started)
            if len(block.step):
                if self.compilations == compiled:
                    self._step_seconds = block.seconds / len(block.step)
                yield block
            if trouble is None and len(block.step):
                hottest = float(self.temperature(block.kinetic).max())
                if hottest > HOTTEST:
                    trouble = f"the temperature reached {hottest:.0f} K"
            if trouble is not None:
                raise Unstable(f"step {self.step}: {trouble}")

    def last(self) -> Snapshot:
        """The last complete step."""
        frames = jax.tree.map(lambda x: np.asarray(x)[None], self._motion.last)
        return self._snapshot(self.step - 1, frames, 0)

    def atoms_of(self, frame: Snapshot) -> Atoms:
        """ASE atoms of a snapshot with velocities, energy and forces."""
        atoms = self._atoms.copy()
        atoms.positions[:] = frame.positions
        atoms.arrays["momenta"] = frame.velocities * atoms.get_masses()[:, None]
        atoms.calc = SinglePointCalculator(
            atoms, energy=frame.energy, free_energy=frame.energy, forces=frame.forces
        )
        return atoms

    def _frame_room(self, frame_interval: int) -> int:
        """Frames kept on the device within one block."""
        by_memory = max(1, FRAME_BYTES // (80 * self._num_device_atoms))
        return min(by_memory, MAX_BLOCK // frame_interval) + 1

    def _block_length(self, frame_interval: int) -> int:
        """Steps that take about a second and whose frames have room."""
        by_time = int(1.0 / max(self._step_seconds, 1e-6))
        by_room = (self._frame_room(frame_interval) - 1) * frame_interval or MAX_BLOCK
        return max(1, min(by_time, MAX_BLOCK, by_room))

    def _advance(self, first: int, end: int, frame_interval: int) -> str | None:
        """Steps `first` to `end` - 1; what went wrong, or None."""
        with self._computing():
            room = self._frame_room(frame_interval)
            records = empty_records(self._num_device_atoms, MAX_BLOCK, room)
            self._motion = self._put(self._motion._replace(records=records))
            window = Window(np.int64(first), np.int64(end), np.int64(frame_interval))
            while True:
                with within(self._mesh):
                    self._motion = self._block(
                        self._weights, self._hood, self._motion, self._dynamics, window
                    )
                if not bool(self._motion.sound):
                    return self._reason()
                if self.step >= end:
                    return None
                try:
                    self._rebuild()
                except InputError as error:
                    return str(error)

    def _reason(self) -> str:
        """Why numbers are not finite at the positions whose forces come next."""
        try:
            self._rebuild()
        except InputError as error:
            return str(error)
        return "energy or forces are not finite; the structure is far from the training data"

    def _rebuild(self) -> None:
        """Neighbours at the positions whose forces come next."""
        positions = np.array(self._motion.positions)[: len(self._atoms)]
        self._list.build(replace(self._frame, positions=positions))
        self._hood = self._neighborhood()

    def _neighborhood(self) -> Neighborhood:
        assert self._list.graph is not None and self._list.frame is not None
        origin = _padded(self._list.frame.positions, self._list.offset.shape[0], 0.0)
        reach = np.float64(self._list.reach)
        return self._put(Neighborhood(self._list.graph, self._list.offset, origin, reach))

    def _collect(self, first: int, frame_interval: int, seconds: float) -> Block:
        """The records of the steps that were completed."""
        records = jax.device_get(self._motion.records)
        count = self.step - first
        energies = records.energies[:count]
        steps = np.arange(first, first + count)
        kept = [int(step) for step in steps if step % frame_interval == 0]
        return Block(
            step=steps,
            potential=energies[:, 0] + self._reference,
            kinetic=energies[:, 1],
            heat=energies[:, 2],
            frames=[self._snapshot(step, records.frames, i) for i, step in enumerate(kept)],
            seconds=seconds,
        )

    def _snapshot(self, step: int, frames: Phase, index: int) -> Snapshot:
        n = len(self._atoms)
        return Snapshot(
            step=step,
            positions=np.array(frames.positions[index, :n]),
            velocities=np.array(frames.velocities[index, :n]),
            forces=np.array(frames.forces[index, :n]),
            energy=float(frames.node_energy[index, :n].sum()) + self._reference,
        )


def _check_options(
    ensemble: str, time_step: float, temperature: float | None, friction: float, skin: float
) -> None:
    if ensemble not in ("nve", "langevin"):
        raise InputError(f"ensemble {ensemble!r} is unknown, choose nve or langevin")
    if not 0 < time_step < np.inf:
        raise InputError(f"time_step must be a positive number of fs, not {time_step}")
    if not 0 < skin < np.inf:
        raise InputError(f"skin must be a positive distance in angstrom, not {skin}")
    if ensemble == "langevin" and (temperature is None or not 0 <= temperature < np.inf):
        raise InputError(f"langevin needs a temperature of 0 K or more, not {temperature}")
    if not 0 <= friction < np.inf:
        raise InputError(f"friction must be 0 or more (1/fs), not {friction}")


def _padded(values: np.ndarray, size: int, fill: float) -> np.ndarray:
    """`values` with rows of `fill` added up to `size` rows."""
    out = np.full((size, *values.shape[1:]), fill)
    out[: len(values)] = values
    return out


def drift(time_fs: np.ndarray, energy: np.ndarray, num_atoms: int) -> tuple[float, float]:
    """Straight line through a conserved energy (eV) by least squares.

    Returns:
        The slope in meV per atom and ps, and the standard deviation from the line in meV per atom.
    """
    if len(time_fs) < 2:
        return 0.0, 0.0
    times, values = time_fs - time_fs.mean(), 1000 * (energy - energy.mean()) / num_atoms
    slope = float(times @ values / (times @ times))
    return 1000 * slope, float(np.std(values - slope * times))
