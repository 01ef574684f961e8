"""Molecular dynamics on the device: many steps in one compiled loop.

Positions, velocities and energies are float64 whatever the model computes in, so time steps never
round away. The loop holds the state just before a force evaluation: positions at time t, velocities
half a step behind. One turn computes forces at t, completes the step (`Integrator.finish`), records
it, and goes on to the positions at t + dt (`Integrator.begin`).

It stops *before* a force evaluation for which the neighbours may be out of date; the caller finds
them again and continues, so no step ever uses a list that may lack a pair. When is that? All pairs
closer than span = cutoff + skin were found at positions x0 in a cell h0. Now the cell is h = h0 F,
and atoms are at x = x0 F + d. The vector of a pair, which is r0 = x0_j + s h0 - x0_i for some image
s, has become r = r0 F + d_j - d_i. With f the smallest singular value of F, a pair that is not in
the list has |r| >= f span - 2 max |d|, which is at least the cutoff as long as

    max |d| <= (f span - cutoff) / 2 = skin / 2 - (1 - f) span / 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eqnet.barostat import pressure, volume
from eqnet.graph import AtomGraph
from eqnet.motion import Array, Bodies, Integrator, Push, State, kinetic, total

#: (weights, graph) -> forces [N, 3], energies [N] of atoms and, where the cell changes, stress
#: [S, 3, 3] in eV/angstrom^3, else None; in the precision of the model.
ForceField = Callable[[Any, AtomGraph], tuple[jax.Array, jax.Array, jax.Array | None]]


class Window(NamedTuple):
    """The steps of one block."""

    first: Array  # number of the first step, row 0 of the records
    end: Array  # the step that is not computed any more
    frame_interval: Array  # steps whose number is a multiple of it are kept as frames


class Phase(NamedTuple):
    """A complete step: everything at the same time."""

    positions: Array  # [N, 3] angstrom, never wrapped
    velocities: Array  # [N, 3]
    cell: Array  # [S, 3, 3]
    push: Push


class Records(NamedTuple):
    """Filled on the device while a block runs. B steps, F frames."""

    values: Array  # [B, S, 3 or 5] potential (without reference energies), kinetic, heat in eV;
    # where the cell changes, volume in angstrom^3 and pressure in eV/angstrom^3
    frames: Phase  # [F, ...]


class Motion(NamedTuple):
    """State of the loop, float64."""

    step: Array  # number of the step whose forces come next
    state: State  # positions at that step, velocities half a step before (at step 0: of step 0)
    last: Phase  # the last complete step
    sound: Array  # False once energy or forces were not finite
    records: Records


class Neighborhood(NamedTuple):
    """Where the neighbours in the graph are valid."""

    graph: AtomGraph  # its positions, and its cells if they change, are replaced at every step
    offset: Array  # [N, 3] positions of the graph minus those of the motion (whole cells, centring)
    origin: Array  # [N, 3] positions at which neighbours were found
    reach: Array  # [S] angstrom an atom may move from there: half the skin
    span: Array  # angstrom, within which pairs were found
    inverse: Array | None  # [S, 3, 3] of the cells at which they were; None: they do not change


def start(state: State, *, strains: bool) -> Motion:
    """Motion before step 0, on the host, without room for records.

    Args:
        state: at step 0.
        strains: whether the cell changes.
    """
    zero = np.zeros_like(state.positions)
    virial = np.zeros_like(state.cell) if strains else None
    push = Push(zero, zero[:, 0], virial)
    last = Phase(state.positions, state.velocities, state.cell, push)
    return Motion(np.int64(0), state, last, np.bool_(True), empty_records(last, 0, 0))


def empty_records(last: Phase, num_steps: int, num_frames: int) -> Records:
    """Room for so many steps and frames like `last`."""
    values = jnp.zeros((num_steps, len(last.cell), 3 if last.push.virial is None else 5))
    return Records(values, jax.tree.map(lambda x: jnp.zeros((num_frames, *x.shape)), last))


def run_block(
    force_field: ForceField,
    weights: Any,
    hood: Neighborhood,
    motion: Motion,
    bodies: Bodies,
    integrator: Integrator,
    window: Window,
) -> Motion:
    """Steps until step `window.end` is due, neighbours are stale or numbers are not finite.

    Pure, for jit. `motion.records` must have room for the steps of the window.
    """

    def go_on(motion: Motion) -> jax.Array:
        return (motion.step < window.end) & motion.sound & _complete(hood, motion.state, bodies)

    def turn(motion: Motion) -> Motion:
        state = motion.state
        push = _push(force_field, weights, hood, state, bodies)
        at_start = motion.step == 0
        done = _choose(at_start, state, integrator.finish(state, push, bodies))
        phase = Phase(done.positions, done.velocities, done.cell, push)
        sound = jax.tree.reduce(lambda a, b: a & b, jax.tree.map(_finite, push))
        values = [total(push.node_energy, bodies), kinetic(done.velocities, bodies)]
        values.append(integrator.heat(done, bodies))
        if push.virial is not None:
            values += [volume(done.cell), pressure(done.velocities, push, done.cell, bodies)]
        values = jnp.stack(values, axis=-1)
        records = _record(motion.records, motion.step, sound, values, phase, window)
        moved = (motion.step + 1, integrator.begin(done, push, motion.step, bodies), phase)
        kept = _choose(sound, moved, (motion.step, state, motion.last))
        return Motion(*kept, sound=sound, records=records)

    return jax.lax.while_loop(go_on, turn, motion)


def _push(
    force_field: ForceField, weights: Any, hood: Neighborhood, state: State, bodies: Bodies
) -> Push:
    """Forces at the positions of a state, float64."""
    graph, offset = hood.graph, hood.offset
    dtype = graph.positions.dtype
    if hood.inverse is not None:  # offsets are lattice vectors, and a translation of the whole
        offset = _strained(offset, hood.inverse @ state.cell, bodies)
        graph = replace(graph, cell=state.cell.astype(dtype))
    graph = replace(graph, positions=(state.positions + offset).astype(dtype))
    forces, node_energy, stress = jax.tree.map(
        lambda x: x.astype(jnp.float64), force_field(weights, graph)
    )
    virial = None if stress is None else stress * volume(state.cell)[:, None, None]
    return Push(forces, node_energy, virial)


def _complete(hood: Neighborhood, state: State, bodies: Bodies) -> jax.Array:
    """Whether all pairs within the cutoff are in the list; see above."""
    origin, reach = hood.origin, hood.reach
    if hood.inverse is not None:
        strain = hood.inverse @ state.cell
        smallest = jnp.linalg.svd(strain, compute_uv=False)[:, -1]
        origin = _strained(origin, strain, bodies)
        reach = reach - (1 - smallest) * hood.span / 2
    moved = jnp.sqrt(jnp.sum((state.positions - origin) ** 2, axis=-1))
    return jnp.all(moved <= reach[bodies.structure])


def _strained(vectors: Array, strain: Array, bodies: Bodies) -> jax.Array:
    """Vectors [N, 3] strained as their structures are."""
    return jnp.einsum("ni,nij->nj", vectors, strain[bodies.structure])


def _choose(condition: Array, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def _finite(values: Array) -> jax.Array:
    return jnp.all(jnp.isfinite(values))


def _record(
    records: Records, step: Array, sound: Array, values: Array, phase: Phase, window: Window
) -> Records:
    """Write a step down; one that is not sound, or no frame, goes beyond the end and is dropped."""
    steps, frames = len(records.values), len(records.frames.positions)
    row = jnp.where(sound, step - window.first, steps)
    keeps = sound & (step % window.frame_interval == 0)
    first_frame = -(-window.first // window.frame_interval)
    slot = jnp.where(keeps, step // window.frame_interval - first_frame, frames)
    return Records(
        records.values.at[row].set(values, mode="drop"),
        jax.tree.map(lambda all, one: all.at[slot].set(one, mode="drop"), records.frames, phase),
    )
