"""Constant temperature and pressure: the equations of Martyna, Tobias and Klein (1994).

J. Chem. Phys. 101, 4177. The rate at which the cell is strained is a symmetric matrix, so the cell
changes its size and shape but never turns; an isotropic cell keeps the trace of what drives it
alone. Atoms are strained with the cell, and two Nose-Hoover chains keep the temperatures of atoms
and cell. The order of the parts of a step is ASE's (`ase.md.nose_hoover_chain`), second order in
the time step; the six components of the symmetric matrix count as six degrees of freedom of the
cell, where ASE's chain for it assumes nine.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eqnet.motion import Array, Bodies, Push, State, kinetic, mobile, total
from eqnet.thermostats import Chain, Links, links, start_chain

FREEDOM = {"isotropic": 1, "anisotropic": 6}  # independent components of the strain of the cell


class Bath(NamedTuple):
    """Variables of thermostat and barostat; S structures, M links."""

    atoms: Chain
    cell: Chain
    momentum: Array  # [S, 3, 3] of the strain of the cell, energy times time


class Barostat(NamedTuple):
    """Martyna-Tobias-Klein. The bath is a `Bath`; the heat includes pressure times volume."""

    time_step: Array
    atoms: Links
    cell: Links
    mass: Array  # [S] of the cell
    pressure: Array  # [S] eV/angstrom^3
    isotropic: Array  # bool

    def begin(self, state: State, push: Push, step: Array, bodies: Bodies) -> State:
        """Both chains, the kicks of cell and atoms, then the drift of atoms and cell."""
        half = 0.5 * self.time_step
        state = self._cool_atoms(self._cool_cell(state), bodies)
        state = self._kick_cell(state, push, half, bodies)
        state = self._kick(state, push, half, bodies)
        rates, axes = self._strain(state)
        grown = self.time_step * rates
        positions = _along(state.positions, axes, bodies) * jnp.exp(grown)[bodies.structure]
        velocities = _along(state.velocities, axes, bodies)
        positions += self.time_step * velocities * exprel(grown)[bodies.structure]
        cell = (state.cell @ axes) * jnp.exp(grown)[:, None, :]
        return state._replace(
            positions=_back(positions, axes, bodies), cell=cell @ axes.swapaxes(-1, -2)
        )

    def finish(self, state: State, push: Push, bodies: Bodies) -> State:
        """The parts of `begin` but the drift in reverse order."""
        half = 0.5 * self.time_step
        state = self._kick(state, push, half, bodies)
        state = self._kick_cell(state, push, half, bodies)
        return self._cool_cell(self._cool_atoms(state, bodies))

    def heat(self, state: State, bodies: Bodies) -> Array:
        """What chains and cell lack; less the work against the pressure."""
        bath: Bath = state.bath
        moving = jnp.sum(bath.momentum**2, axis=(-1, -2)) / (2 * self.mass)
        work = self.pressure * volume(state.cell)
        return -(self.atoms.energy(bath.atoms) + self.cell.energy(bath.cell) + moving + work)

    def _cool_atoms(self, state: State, bodies: Bodies) -> State:
        twice = 2 * kinetic(state.velocities, bodies)
        factor, chain = self.atoms.turn(twice, state.bath.atoms, 0.5 * self.time_step)
        velocities = factor[bodies.structure][:, None] * state.velocities
        return state._replace(velocities=velocities, bath=state.bath._replace(atoms=chain))

    def _cool_cell(self, state: State) -> State:
        bath: Bath = state.bath
        twice = jnp.sum(bath.momentum**2, axis=(-1, -2)) / self.mass
        factor, chain = self.cell.turn(twice, bath.cell, 0.5 * self.time_step)
        momentum = factor[:, None, None] * bath.momentum
        return state._replace(bath=bath._replace(cell=chain, momentum=momentum))

    def _kick_cell(self, state: State, push: Push, time: Array, bodies: Bodies) -> State:
        """The momentum of the cell after inner and outer pressure have acted for some time."""
        unit = jnp.eye(3)
        assert push.virial is not None
        inner = twice_kinetic(state.velocities, bodies) - push.virial
        share = 2 * kinetic(state.velocities, bodies) / bodies.freedom
        outer = self.pressure * volume(state.cell)
        force = inner + (share - outer)[:, None, None] * unit
        mean = jnp.trace(force, axis1=-2, axis2=-1)[:, None, None] / 3 * unit
        force = jnp.where(self.isotropic, mean, force)
        momentum = state.bath.momentum + time * force
        return state._replace(bath=state.bath._replace(momentum=momentum))

    def _kick(self, state: State, push: Push, time: Array, bodies: Bodies) -> State:
        """Velocities after forces have acted and the growing cell has slowed them for some time."""
        rates, axes = self._strain(state)
        slowed = -time * (rates + rates.sum(-1, keepdims=True) / bodies.freedom[:, None])
        change = time * _along(push.forces, axes, bodies) / bodies.masses[:, None]
        velocities = _along(state.velocities, axes, bodies) * jnp.exp(slowed)[bodies.structure]
        velocities += change * exprel(slowed)[bodies.structure]
        return state._replace(velocities=_back(velocities, axes, bodies))

    def _strain(self, state: State) -> tuple[Array, Array]:
        """Rates of strain [S, 3] and their axes, the columns of [S, 3, 3]."""
        values, axes = jnp.linalg.eigh(state.bath.momentum)
        return values / self.mass[:, None], axes


def barostat(
    time_step: float,
    energy: np.ndarray,
    freedom: np.ndarray,
    *,
    thermostat_time: float,
    barostat_time: float,
    chain_length: int,
    pressure: float,
    cell: str,
) -> tuple[Barostat, Bath]:
    """The integrator and its bath at rest, on the host.

    Args:
        time_step: in ASE's units, as all times here.
        energy: k T of each structure, [S] eV.
        freedom: degrees of freedom of the atoms, [S].
        thermostat_time: in which the atoms' chain answers.
        barostat_time: in which the cell and its chain answer.
        chain_length: links of both chains.
        pressure: eV/angstrom^3.
        cell: 'isotropic' or 'anisotropic'.
    """
    structures = len(energy)
    slow = energy * barostat_time**2
    atoms = links(
        freedom * energy,
        freedom * energy * thermostat_time**2,
        energy,
        thermostat_time,
        chain_length,
    )
    of_cell = links(FREEDOM[cell] * energy, 9 * slow, energy, barostat_time, chain_length)
    bath = Bath(
        start_chain(structures, chain_length),
        start_chain(structures, chain_length),
        np.zeros((structures, 3, 3)),
    )
    mass = (freedom + 3) / 3 * slow
    pressures = np.full(structures, float(pressure))
    isotropic = np.bool_(cell == "isotropic")
    return Barostat(np.float64(time_step), atoms, of_cell, mass, pressures, isotropic), bath


def volume(cell: Array) -> jax.Array:
    """Volumes of cells [S, 3, 3] in angstrom^3, [S]."""
    return jnp.abs(jnp.linalg.det(cell))


def twice_kinetic(velocities: Array, bodies: Bodies) -> jax.Array:
    """Sum of m v v over the atoms of each structure, [S, 3, 3] eV."""
    return total((mobile(bodies) * velocities)[:, :, None] * velocities[:, None, :], bodies)


def pressure(velocities: Array, push: Push, cell: Array, bodies: Bodies) -> jax.Array:
    """Inner pressure of each structure, that of the moving atoms included, [S] eV/angstrom^3."""
    assert push.virial is not None
    virial = jnp.trace(push.virial, axis1=-2, axis2=-1)
    return (2 * kinetic(velocities, bodies) - virial) / (3 * volume(cell))


def exprel(x: Array) -> jax.Array:
    """(exp(x) - 1) / x, 1 at 0."""
    small = jnp.abs(x) < 1e-8
    safe = jnp.where(small, 1.0, x)
    return jnp.where(small, 1 + x / 2, jnp.expm1(safe) / safe)


def _along(vectors: Array, axes: Array, bodies: Bodies) -> jax.Array:
    """Components of vectors [N, 3] along the axes of their structures."""
    return jnp.einsum("ni,nij->nj", vectors, axes[bodies.structure])


def _back(components: Array, axes: Array, bodies: Bodies) -> jax.Array:
    """Vectors [N, 3] from their components along the axes."""
    return jnp.einsum("nj,nij->ni", components, axes[bodies.structure])
