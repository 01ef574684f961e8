"""Molecular dynamics on the device: many steps in one compiled loop.

Two integrators that are one: velocity Verlet, and BAOAB Langevin dynamics (Leimkuhler and
Matthews, Appl. Math. Res. Express 2013, 34), which is velocity Verlet with an exact
Ornstein-Uhlenbeck step in the middle of the drift. Positions, velocities and energies are float64
whatever the model computes in, so time steps never round away.

The loop holds the state just before a force evaluation: positions at time t, velocities at
t - dt/2. One turn computes forces at t, completes the velocities, records, and drifts to t + dt.
It stops *before* a force evaluation when an atom has moved more than half the skin since the
neighbours were found; the caller finds them again and continues, so no step ever uses a list that
may lack a pair.

Units are ASE's: eV, angstrom, atomic mass units, time in angstrom sqrt(amu / eV).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eqnet.graph import AtomGraph

Array = Any  # numpy on the host, jax on the device
#: (weights, graph) -> forces [N, 3] and energies [N] of atoms, in the precision of the model.
ForceField = Callable[[Any, AtomGraph], tuple[jax.Array, jax.Array]]


class Thermostat(NamedTuple):
    """Langevin parameters; float64 scalars. Friction 0 is plain velocity Verlet."""

    friction: Array  # 1 / time
    energy: Array  # k T in eV
    key: jax.Array  # random key; the noise of step n depends on (key, n) only


class Dynamics(NamedTuple):
    """What stays the same during a simulation."""

    masses: Array  # [N] amu; infinite for atoms that are fixed or padding
    time_step: Array
    thermostat: Thermostat | None  # None for constant energy


class Window(NamedTuple):
    """The steps of one block."""

    first: Array  # number of the first step, row 0 of the records
    end: Array  # the step that is not computed any more
    frame_interval: Array  # steps whose number is a multiple of it are kept as frames


class Phase(NamedTuple):
    """A complete step: everything at the same time."""

    positions: Array  # [N, 3] angstrom, never wrapped
    velocities: Array  # [N, 3]
    forces: Array  # [N, 3] eV/angstrom
    node_energy: Array  # [N] eV, without reference energies


class Records(NamedTuple):
    """Filled on the device while a block runs. B steps, F frames."""

    energies: Array  # [B, 3] potential (without reference energies), kinetic, heat; eV
    frames: Phase  # [F, N, ...]


class Motion(NamedTuple):
    """State of the loop, float64."""

    step: Array  # number of the step whose forces come next
    positions: Array  # [N, 3] at that step
    velocities: Array  # [N, 3] half a step before (at step 0: of step 0)
    heat: Array  # eV that the thermostat has put in
    last: Phase  # the last complete step
    sound: Array  # False once energy or forces were not finite
    records: Records


class Neighborhood(NamedTuple):
    """Where the neighbours in the graph are valid."""

    graph: AtomGraph  # its positions are replaced at every step
    offset: Array  # [N, 3] positions of the graph minus those of the motion (whole cells, centring)
    origin: Array  # [N, 3] positions at which neighbours were found
    reach: Array  # angstrom an atom may move from there: half the skin


def start(positions: np.ndarray, velocities: np.ndarray) -> Motion:
    """State before step 0, on the host; [N, 3] float64 each. Records are empty."""
    zero = np.zeros_like(positions)
    return Motion(
        step=np.int64(0),
        positions=positions,
        velocities=velocities,
        heat=np.float64(0),
        last=Phase(positions, velocities, zero, zero[:, 0]),
        sound=np.bool_(True),
        records=empty_records(len(positions), 0, 0),
    )


def empty_records(num_atoms: int, num_steps: int, num_frames: int) -> Records:
    """Room for so many steps and frames."""
    vectors = jnp.zeros((num_frames, num_atoms, 3))
    return Records(
        energies=jnp.zeros((num_steps, 3)),
        frames=Phase(vectors, vectors, vectors, jnp.zeros((num_frames, num_atoms))),
    )


def run_block(
    force_field: ForceField,
    weights: Any,
    hood: Neighborhood,
    motion: Motion,
    dynamics: Dynamics,
    window: Window,
) -> Motion:
    """Steps until step `window.end` is due, neighbours are stale or numbers are not finite.

    Pure, for jit. `motion.records` must have room for the steps of the window.
    """

    def go_on(motion: Motion) -> jax.Array:
        moved = jnp.sum((motion.positions - hood.origin) ** 2, axis=-1)
        return (motion.step < window.end) & motion.sound & jnp.all(moved <= hood.reach**2)

    def turn(motion: Motion) -> Motion:
        placed = (motion.positions + hood.offset).astype(hood.graph.positions.dtype)
        forces, node_energy = force_field(weights, replace(hood.graph, positions=placed))
        forces, node_energy = forces.astype(jnp.float64), node_energy.astype(jnp.float64)
        kick = jnp.where(motion.step == 0, 0.0, 0.5 * dynamics.time_step)
        velocities = motion.velocities + kick * forces / dynamics.masses[:, None]
        phase = Phase(motion.positions, velocities, forces, node_energy)
        sound = jnp.all(jnp.isfinite(forces)) & jnp.all(jnp.isfinite(node_energy))
        energies = jnp.stack([node_energy.sum(), _kinetic(velocities, dynamics), motion.heat])
        records = _record(motion.records, motion.step, sound, energies, phase, window)
        positions, half, heat = _drift(phase, motion.step, dynamics)
        moved = (motion.step + 1, positions, half, motion.heat + heat, phase)
        stay = (motion.step, motion.positions, motion.velocities, motion.heat, motion.last)
        kept = jax.tree.map(lambda a, b: jnp.where(sound, a, b), moved, stay)
        return Motion(*kept, sound=sound, records=records)

    return jax.lax.while_loop(go_on, turn, motion)


def _kinetic(velocities: Array, dynamics: Dynamics) -> Array:
    """Kinetic energy in eV; immobile atoms have none."""
    mobile = jnp.where(jnp.isfinite(dynamics.masses), dynamics.masses, 0.0)[:, None]
    return 0.5 * jnp.sum(mobile * velocities**2)


def _drift(phase: Phase, step: Array, dynamics: Dynamics) -> tuple[Array, Array, Array]:
    """Half a kick and the way to the next step: positions, half-step velocities, heat put in."""
    time_step, inverse_mass = dynamics.time_step, 1 / dynamics.masses[:, None]
    v = phase.velocities + 0.5 * time_step * phase.forces * inverse_mass
    bath = dynamics.thermostat
    if bath is None:
        return phase.positions + time_step * v, v, jnp.zeros(())
    middle = phase.positions + 0.5 * time_step * v
    keep = jnp.exp(-bath.friction * time_step)
    noise = jax.random.normal(jax.random.fold_in(bath.key, step), v.shape, v.dtype)
    after = keep * v + jnp.sqrt((1 - keep**2) * bath.energy * inverse_mass) * noise
    heat = _kinetic(after, dynamics) - _kinetic(v, dynamics)
    return middle + 0.5 * time_step * after, after, heat


def _record(
    records: Records, step: Array, sound: Array, energies: Array, phase: Phase, window: Window
) -> Records:
    """Write a step down; one that is not sound, or no frame, goes beyond the end and is dropped."""
    steps, frames = len(records.energies), len(records.frames.positions)
    row = jnp.where(sound, step - window.first, steps)
    keeps = sound & (step % window.frame_interval == 0)
    first_frame = -(-window.first // window.frame_interval)
    slot = jnp.where(keeps, step // window.frame_interval - first_frame, frames)
    return Records(
        records.energies.at[row].set(energies, mode="drop"),
        jax.tree.map(lambda all, one: all.at[slot].set(one, mode="drop"), records.frames, phase),
    )
