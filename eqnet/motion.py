"""What moves in molecular dynamics, and how it moves when nothing heats or squeezes it.

Everything global is one number (or matrix) for each structure, so that structures move side by
side. Letters in shapes: N atoms of all structures, padding included; S structures; A atoms of the
largest. Units are ASE's: eV, angstrom, amu, time in angstrom sqrt(amu / eV).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

Array = Any  # numpy on the host, jax on the device


class Bodies(NamedTuple):
    """The atoms of all structures; what stays the same during a simulation."""

    masses: Array  # [N] amu; infinite for atoms that are fixed or padding
    structure: Array  # [N] structure of each atom
    place: Array  # [N] number of each atom within its structure
    members: Array  # [S, A] atoms of each structure; N, which is none, after the last
    freedom: Array  # [S] degrees of freedom


class State(NamedTuple):
    """All that moves, float64."""

    positions: Array  # [N, 3] angstrom, never wrapped
    velocities: Array  # [N, 3]
    cell: Array  # [S, 3, 3] rows are lattice vectors
    bath: Any  # variables of thermostat and barostat, arrays [S, ...]


class Push(NamedTuple):
    """What the potential says at some positions, float64."""

    forces: Array  # [N, 3] eV/angstrom
    node_energy: Array  # [N] eV, without reference energies
    virial: Array | None  # [S, 3, 3] eV, dE/dstrain; None where the cell does not change


class Integrator(Protocol):
    """One time step in two parts, before and after the forces are computed."""

    @property
    def time_step(self) -> Array:
        """In ASE's units."""
        ...

    def begin(self, state: State, push: Push, step: Array, bodies: Bodies) -> State:
        """From a complete step to the positions of the next one; velocities half a step behind."""
        ...

    def finish(self, state: State, push: Push, bodies: Bodies) -> State:
        """The velocities of the positions, and all else that waits for the forces there."""
        ...

    def heat(self, state: State, bodies: Bodies) -> Array:
        """What the bath has lost to the atoms in a complete step, [S] eV."""
        ...


class Verlet(NamedTuple):
    """Velocity Verlet: constant energy."""

    time_step: Array

    def begin(self, state: State, push: Push, step: Array, bodies: Bodies) -> State:
        """Half a kick, then the drift."""
        v = kicked(state.velocities, push.forces, 0.5 * self.time_step, bodies)
        return state._replace(positions=state.positions + self.time_step * v, velocities=v)

    def finish(self, state: State, push: Push, bodies: Bodies) -> State:
        """The other half of the kick."""
        v = kicked(state.velocities, push.forces, 0.5 * self.time_step, bodies)
        return state._replace(velocities=v)

    def heat(self, state: State, bodies: Bodies) -> Array:
        """None."""
        return jnp.zeros(len(bodies.freedom))


def make_bodies(masses: Sequence[np.ndarray], freedom: ArrayLike, num_atoms: int) -> Bodies:
    """The atoms of structures that follow each other, on the host.

    Args:
        masses: of each structure, amu.
        freedom: degrees of freedom of each structure.
        num_atoms: N; padding has infinite mass and belongs to the last structure.
    """
    counts = [len(m) for m in masses]
    last = len(counts) - 1
    structure = np.full(num_atoms, last, np.int32)
    place = np.zeros(num_atoms, np.int32)
    members = np.full((len(counts), max(counts)), num_atoms, np.int32)
    flat = np.full(num_atoms, np.inf)
    first = 0
    for s, (count, own) in enumerate(zip(counts, masses, strict=True)):
        atoms = slice(first, first + count)
        structure[atoms], place[atoms], flat[atoms] = s, np.arange(count), own
        members[s, :count] = np.arange(first, first + count)
        first += count
    return Bodies(flat, structure, place, members, np.asarray(freedom, np.float64))


def total(values: Array, bodies: Bodies) -> Array:
    """Sum over the atoms of each structure, [N, ...] -> [S, ...]; always in the same order."""
    return jnp.take(values, bodies.members, axis=0, mode="fill", fill_value=0).sum(axis=1)


def mobile(bodies: Bodies) -> Array:
    """Masses [N, 1], 0 for atoms that cannot move."""
    return jnp.where(jnp.isfinite(bodies.masses), bodies.masses, 0.0)[:, None]


def kinetic(velocities: Array, bodies: Bodies) -> Array:
    """Kinetic energy of each structure in eV, [S]."""
    return 0.5 * total(jnp.sum(mobile(bodies) * velocities**2, axis=-1), bodies)


def kicked(velocities: Array, forces: Array, time: Array, bodies: Bodies) -> Array:
    """Velocities after the forces have acted for some time, [N, 3]."""
    return velocities + time * forces / bodies.masses[:, None]


def normal(keys: Array, step: Array, bodies: Bodies) -> jax.Array:
    """Normal random numbers [N, 3]; those of a structure depend on its key and the step only."""
    largest = bodies.members.shape[1]

    def draw(key: Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(key, step), (largest, 3), jnp.float64)

    return jax.vmap(draw)(keys)[bodies.structure, bodies.place]
