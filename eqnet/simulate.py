"""Molecular dynamics of ASE atoms on the device, with neighbours found on the host.

    simulation = Simulation(load("model.eqnet"), atoms, time_step=0.5)
    for block in simulation.run(steps=20_000, frame_interval=100):
        for frame in block.frames:
            trajectory.write(simulation.atoms_of(frame))

Blocks of steps run in one compiled loop (`eqnet.integrators`). The loop stops by itself when the
neighbours may be out of date; they are found again here and the loop goes on. Molecules, slabs and
crystals alike; atoms that an ASE `FixAtoms` constraint holds do not move. A list of structures
moves side by side in one loop, each on its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms, units
from flax import nnx

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
from eqnet.ensembles import Cell, Ensemble, ensemble_options, make_integrator
from eqnet.errors import InputError
from eqnet.graph import AtomGraph
from eqnet.integrators import (
    Motion,
    Neighborhood,
    Phase,
    Window,
    empty_records,
    run_block,
    start,
)
from eqnet.motion import State
from eqnet.potential import Potential
from eqnet.simulated_structures import Structures, joined
from eqnet.trajectory import Block, Snapshot
from eqnet.verlet_list import VerletList

T = TypeVar("T")
FRAME_BYTES = 2**26  # of frames kept on the device within one block
MAX_BLOCK = 1000  # steps
HOTTEST = 1e5  # kelvin; beyond it nothing is a simulation of atoms any more
DENSEST = 0.5  # angstrom^3 for an atom; likewise
UNIT = {  # of options, in ASE's units
    "temperature": units.kB,
    "friction": 1 / units.fs,
    "thermostat_time": units.fs,
    "barostat_time": units.fs,
    "pressure": units.GPa,
}


class Unstable(RuntimeError):
    """The simulation cannot go on; the message says at which step and why."""


class Simulation:
    """Molecular dynamics of one structure, or of several side by side.

    Args:
        potential: the model; see `eqnet.load`.
        atoms: structure with its velocities, or a list of them; they are not changed.
        ensemble: 'nve' (velocity Verlet), 'langevin' (BAOAB), 'bussi' (stochastic velocity
            rescaling), 'nose_hoover' (a chain), or 'npt' (Martyna, Tobias and Klein).
        time_step: fs.
        temperature: K; of all but 'nve'.
        friction: 1/fs, 0.01 if None; 'langevin' only.
        thermostat_time: damping time of the other thermostats, fs; 100 if None.
        chain_length: links of the chains of 'nose_hoover' and 'npt'; 3 if None.
        pressure: GPa, 0 if None; 'npt' only, as the next two.
        barostat_time: damping time of the cell, fs; 1000 if None.
        cell: 'isotropic' (as None), only the volume changes; or 'anisotropic', the shape too.
        seed: of the noise, that of structure s is seed + s; step k of a run always sees the same.
        skin: angstrom added to the cutoff when neighbours are found; results do not depend on it.
        dtype: 'float32' or 'float64' for the model; motion and energies are float64 always.
        device: None for JAX's default, or a name such as 'cpu', 'gpu', 'cuda:1'.
        cores: of a CPU that share the atoms; worth it from a hundred atoms on.

    Attributes:
        degrees_of_freedom: of the velocities; an array [S] for a list.
        compilations: compiled programs so far.
        rebuilds: neighbour searches so far.

    Raises:
        InputError: unknown element, no atoms, a constraint other than FixAtoms, an option outside
            its range or without effect, an ensemble that does not suit the structure.
    """

    def __init__(
        self,
        potential: Potential,
        atoms: Atoms | Sequence[Atoms],
        *,
        ensemble: Ensemble = "nve",
        time_step: float = 0.5,
        temperature: float | None = None,
        friction: float | None = None,
        thermostat_time: float | None = None,
        chain_length: int | None = None,
        pressure: float | None = None,
        barostat_time: float | None = None,
        cell: Cell | None = None,
        seed: int = 0,
        skin: float = 0.3,
        dtype: str = "float32",
        device: str | Device | None = None,
        cores: int = 1,
    ) -> None:
        given = {
            "temperature": temperature,
            "friction": friction,
            "thermostat_time": thermostat_time,
            "chain_length": chain_length,
            "pressure": pressure,
            "barostat_time": barostat_time,
            "cell": cell,
        }
        options = ensemble_options(ensemble, given)
        if not 0 < time_step < np.inf:
            raise InputError(f"time_step must be a positive number of fs, not {time_step}")
        if not 0 < skin < np.inf:
            raise InputError(f"skin must be a positive distance in angstrom, not {skin}")
        self.potential = potential
        self.ensemble = ensemble
        self.time_step = time_step
        self.dtype = str(find_dtype(dtype))
        self._mesh = shared_cores(cores)
        self.device = find_device(device)
        self._structures = Structures(atoms, potential, ensemble)
        self._list = VerletList(potential.elements, potential.cutoff, skin, self.dtype)
        self._compiled: list[tuple[int, ...]] = []
        self._step_seconds = 0.01
        with self._computing():
            self._list.build(*self._structures.frames)
            self._setup(options, seed)

    def _setup(self, options: Mapping[str, Any], seed: int) -> None:
        """What goes to the device once."""
        graphdef, weights = nnx.split(self.potential)
        weights = jax.tree.map(lambda x: np.asarray(x).astype(self.dtype), weights)
        self._weights = self._put(weights)
        self._num_device_atoms = size = self._list.offset.shape[0]
        self._bodies = self._put(self._structures.bodies(size))
        scaled = {name: value * UNIT.get(name, 1) for name, value in options.items()}
        keys = jnp.stack([jax.random.key(seed + s) for s in range(self.num_structures)])
        integrator, bath = make_integrator(
            self.ensemble, self.time_step * units.fs, scaled, self._structures.freedom, keys
        )
        self._integrator = self._put(integrator)
        self._strains = self.ensemble == "npt"
        self._motion = start(self._structures.state(size, bath), strains=self._strains)
        self._hood = self._neighborhood()
        compiled, strains = self._compiled, self._strains

        def force_field(
            weights: Any, graph: AtomGraph
        ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
            answer = nnx.merge(graphdef, weights).predict(graph, stress=strains)
            return answer.forces, answer.node_energy, answer.stress

        def block(*args: Any) -> Motion:
            compiled.append(args[1].graph.neighbors.shape)  # runs once per compilation
            return run_block(force_field, *args)

        self._block = program(block)

    def _put(self, tree: T) -> T:
        """Bound to the device: inputs that are bound or not by turns would compile twice."""
        return jax.device_put(tree, everywhere(self._mesh, self.device))

    def _computing(self) -> Any:
        what = partial(self._list.size_of, self._structures.frames)
        return computing(self.device, double=True, what=what)

    @property
    def num_structures(self) -> int:
        """Structures that move side by side."""
        return len(self.sizes)

    @property
    def num_atoms(self) -> int:
        """Atoms of all structures."""
        return sum(self.sizes)

    @property
    def sizes(self) -> list[int]:
        """Atoms of each structure."""
        return self._structures.sizes

    @property
    def degrees_of_freedom(self) -> Any:
        """Independent velocities: a number, or [S] for a list of structures."""
        freedom = self._structures.freedom
        return int(freedom[0]) if self._structures.single else freedom

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
        return self._structures.temperature(kinetic)

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

    def saved(self) -> dict[str, np.ndarray]:
        """All that `restore` needs to go on with the same numbers, by name."""
        neighbors = {f"list.{name}": array for name, array in self._list.memory().items()}
        return {**neighbors, **_named(jax.device_get(_moving(self._motion)))}

    def restore(self, saved: Mapping[str, np.ndarray]) -> None:
        """Go on where a simulation of the same structures and options was when it was `saved`.

        Raises:
            InputError: it was another one.
        """
        here = self.saved()
        fits = here.keys() == saved.keys() and all(
            saved[name].shape == array.shape and saved[name].dtype == array.dtype
            for name, array in here.items()
            if name != "list.shapes"
        )
        if not fits:
            raise InputError("the saved state belongs to another structure or ensemble")
        moving = _moving(self._motion)
        leaves = [saved[name] for name in _named(moving)]
        step, state, last = jax.tree.unflatten(jax.tree.structure(moving), leaves)
        self._motion = self._motion._replace(step=step, state=state, last=last)
        prefix = "list."
        self._list.recall({n.removeprefix(prefix): a for n, a in saved.items() if prefix in n})
        with self._computing():
            self._hood = self._neighborhood()

    def last(self, structure: int = 0) -> Snapshot:
        """The last complete step of a structure."""
        frames = jax.tree.map(lambda x: np.asarray(x)[None], self._motion.last)
        return self._structures.snapshot(self.step - 1, frames, 0, structure)

    def atoms_of(self, frame: Snapshot) -> Atoms:
        """ASE atoms of a snapshot with velocities, energy, forces, and stress if it is known."""
        return self._structures.atoms_of(frame)

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
            records = empty_records(self._motion.last, MAX_BLOCK, room)
            self._motion = self._put(self._motion._replace(records=records))
            window = Window(np.int64(first), np.int64(end), np.int64(frame_interval))
            while True:
                fixed = (self._bodies, self._integrator, window)
                with within(self._mesh):
                    self._motion = self._block(self._weights, self._hood, self._motion, *fixed)
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
        frames = self._structures.moved(self._motion.state)
        for frame in frames:
            if self._strains and frame.volume < DENSEST * len(frame):
                raise InputError(f"the volume of the cell fell to {frame.volume:.3g} A^3")
        self._list.build(*frames)
        self._hood = self._neighborhood()

    def _neighborhood(self) -> Neighborhood:
        neighbors = self._list
        assert neighbors.graph is not None
        origin = joined([frame.positions for frame in neighbors.frames], len(neighbors.offset))
        inverse = None
        if self._strains:
            inverse = np.linalg.inv(np.stack([frame.cell for frame in neighbors.frames]))
        span = np.float64(neighbors.cutoff + neighbors.skin)
        found = (neighbors.graph, neighbors.offset, origin, neighbors.reach, span, inverse)
        return self._put(Neighborhood(*found))

    def _collect(self, first: int, frame_interval: int, seconds: float) -> Block:
        """The records of the steps that were completed."""
        records, structures = jax.device_get(self._motion.records), self._structures
        count = self.step - first
        values = np.moveaxis(records.values[:count], -1, 0)  # [3 or 5, B, S]
        steps = np.arange(first, first + count)
        kept = [int(step) for step in steps if step % frame_interval == 0]
        others = {}
        if self._strains:
            volume, pressure = structures.one(values[3]), structures.one(values[4])
            others = {"volume": volume, "pressure": pressure / units.GPa}
        return Block(
            step=steps,
            potential=structures.one(values[0] + structures.reference),
            kinetic=structures.one(values[1]),
            heat=structures.one(values[2]),
            frames=[
                structures.snapshot(step, records.frames, i, s)
                for i, step in enumerate(kept)
                for s in range(self.num_structures)
            ],
            seconds=seconds,
            **others,
        )


def _moving(motion: Motion) -> tuple[Any, State, Phase]:
    """The part of a motion from which it goes on."""
    return motion.step, motion.state, motion.last


def _named(tree: Any) -> dict[str, np.ndarray]:
    """Arrays by the path of their leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    keystr = jax.tree_util.keystr
    return {keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}
