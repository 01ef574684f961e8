"""Constant temperature: Langevin dynamics, stochastic velocity rescaling, Nose-Hoover chains.

Each keeps what it has put into the atoms, so that the total energy less that heat is what an exact
integrator conserves. Letters in shapes: S structures, M links of a chain; see `eqnet.motion`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eqnet.motion import Array, Bodies, Push, State, kicked, kinetic, normal

# Three parts of a time step whose errors cancel to fourth order (Yoshida, Phys. Lett. A 150, 262).
_PART = 1 / (2 - 2 ** (1 / 3))
YOSHIDA = (_PART, 1 - 2 * _PART, _PART)


class Langevin(NamedTuple):
    """BAOAB (Leimkuhler and Matthews, Appl. Math. Res. Express 2013, 34).

    Velocity Verlet with an exact Ornstein-Uhlenbeck step in the middle of the drift. The bath is
    the heat put in so far, [S] eV.
    """

    time_step: Array
    friction: Array  # 1 / time
    energy: Array  # [S] k T in eV
    keys: Array  # [S] random keys

    def begin(self, state: State, push: Push, step: Array, bodies: Bodies) -> State:
        """Half a kick; half of the drift, friction and noise, the other half."""
        half = 0.5 * self.time_step
        v = kicked(state.velocities, push.forces, half, bodies)
        keep = jnp.exp(-self.friction * self.time_step)
        spread = (1 - keep**2) * self.energy[bodies.structure] / bodies.masses
        after = keep * v + jnp.sqrt(spread)[:, None] * normal(self.keys, step, bodies)
        heat = kinetic(after, bodies) - kinetic(v, bodies)
        middle = state.positions + half * v
        return state._replace(
            positions=middle + half * after, velocities=after, bath=state.bath + heat
        )

    def finish(self, state: State, push: Push, bodies: Bodies) -> State:
        """The other half of the kick."""
        v = kicked(state.velocities, push.forces, 0.5 * self.time_step, bodies)
        return state._replace(velocities=v)

    def heat(self, state: State, bodies: Bodies) -> Array:
        """Counted as it goes in."""
        return state.bath


class Bussi(NamedTuple):
    """Stochastic velocity rescaling (Bussi, Donadio and Parrinello, J. Chem. Phys. 126, 014101).

    The kinetic energy follows the stochastic equation whose stationary distribution is canonical,
    solved exactly for each step (eq. A7 there); then a step of velocity Verlet. The bath is the
    heat put in so far, [S] eV.
    """

    time_step: Array
    damping: Array  # time in which the kinetic energy forgets
    energy: Array  # [S] k T in eV
    keys: Array  # [S] random keys

    def begin(self, state: State, push: Push, step: Array, bodies: Bodies) -> State:
        """All velocities times a random factor, half a kick, and the drift."""
        before = kinetic(state.velocities, bodies)
        after = self.rescaled(before, *self.noise(step, bodies.freedom))
        factor = jnp.sqrt(after / before)[bodies.structure][:, None]
        v = kicked(factor * state.velocities, push.forces, 0.5 * self.time_step, bodies)
        bath = state.bath + after - before
        return state._replace(
            positions=state.positions + self.time_step * v, velocities=v, bath=bath
        )

    def finish(self, state: State, push: Push, bodies: Bodies) -> State:
        """The other half of the kick."""
        v = kicked(state.velocities, push.forces, 0.5 * self.time_step, bodies)
        return state._replace(velocities=v)

    def heat(self, state: State, bodies: Bodies) -> Array:
        """Counted as it goes in."""
        return state.bath

    def noise(self, step: Array, freedom: Array) -> tuple[Array, Array]:
        """A normal number, and the squares of `freedom` - 1 others summed; [S] each."""

        def draw(key: Array, rest: Array) -> tuple[jax.Array, jax.Array]:
            one, others = jax.random.split(jax.random.fold_in(key, step))
            gamma = jax.random.gamma(others, jnp.maximum(rest / 2, 0.5), dtype=jnp.float64)
            one = jax.random.normal(one, dtype=jnp.float64)
            return one, jnp.where(rest > 0, 2 * gamma, 0.0)

        return jax.vmap(draw)(self.keys, freedom - 1)

    def rescaled(self, before: Array, one: Array, others: Array) -> Array:
        """Kinetic energy [S] a step later."""
        keep = jnp.exp(-self.time_step / self.damping)
        share = (1 - keep) * self.energy / 2  # (1 - keep) times the mean of one degree of freedom
        along = jnp.sqrt(keep * before) + one * jnp.sqrt(share)
        return along**2 + share * others


class Chain(NamedTuple):
    """Variables of Nose-Hoover chains."""

    position: Array  # [S, M] without unit
    momentum: Array  # [S, M] energy times time


def start_chain(structures: int, length: int) -> Chain:
    """Chains at rest, on the host."""
    return Chain(np.zeros((structures, length)), np.zeros((structures, length)))


class Links(NamedTuple):
    """What stays the same of Nose-Hoover chains (Martyna, Klein and Tuckerman, 1992)."""

    mass: Array  # [S, M] energy times time squared
    target: Array  # [S, M] twice the mean kinetic energy of what each link cools, eV

    def energy(self, chain: Chain) -> Array:
        """Energy of the bath, [S] eV."""
        kinetic = 0.5 * chain.momentum**2 / self.mass
        return jnp.sum(kinetic + self.target * chain.position, axis=-1)

    def turn(self, twice: Array, chain: Chain, time: Array) -> tuple[Array, Chain]:
        """The chain and what it cools for some time (Martyna et al., Mol. Phys. 87, 1117).

        Args:
            twice: twice the kinetic energy of what the first link cools, [S] eV.
            chain: at the beginning.
            time: in ASE's units.

        Returns:
            The factor of its velocities, [S], and the chain at the end.
        """
        factor = jnp.ones_like(twice)
        x, p = jnp.asarray(chain.position), jnp.asarray(chain.momentum)
        for part in YOSHIDA:
            span = part * time
            p = self._push(twice * factor**2, p, span / 2, backward=True)
            x = x + span * p / self.mass
            factor = factor * jnp.exp(-span * p[:, 0] / self.mass[:, 0])
            p = self._push(twice * factor**2, p, span / 2, backward=False)
        return factor, Chain(x, p)

    def _push(self, twice: Array, p: Array, time: Array, *, backward: bool) -> Array:
        """Momenta of the links after some time, one after the other."""
        length = p.shape[1]
        for j in reversed(range(length)) if backward else range(length):
            slow = 1.0
            if j + 1 < length:
                slow = jnp.exp(-0.5 * time * p[:, j + 1] / self.mass[:, j + 1])
            moving = twice if j == 0 else p[:, j - 1] ** 2 / self.mass[:, j - 1]
            force = moving - self.target[:, j]
            p = p.at[:, j].set((p[:, j] * slow + time * force) * slow)
        return p


def links(
    first_target: Array, first_mass: Array, energy: Array, damping: float, length: int
) -> Links:
    """Chains of `length` links, on the host.

    Args:
        first_target: twice the mean kinetic energy of what the chain cools, [S] eV.
        first_mass: of the first link, [S].
        energy: k T of each structure, [S] eV.
        damping: time in which they answer.
        length: M.
    """
    target = np.repeat(np.asarray(energy)[:, None], length, axis=1)
    mass = target * damping**2
    target[:, 0], mass[:, 0] = first_target, first_mass
    return Links(mass, target)


class NoseHoover(NamedTuple):
    """Velocity Verlet between two half steps of a Nose-Hoover chain. The bath is the `Chain`."""

    time_step: Array
    links: Links

    def begin(self, state: State, push: Push, step: Array, bodies: Bodies) -> State:
        """The chain for half a step, half a kick, and the drift."""
        v, chain = self._turn(state.velocities, state.bath, bodies)
        v = kicked(v, push.forces, 0.5 * self.time_step, bodies)
        return state._replace(
            positions=state.positions + self.time_step * v, velocities=v, bath=chain
        )

    def finish(self, state: State, push: Push, bodies: Bodies) -> State:
        """The other half of the kick, then the chain for half a step."""
        v = kicked(state.velocities, push.forces, 0.5 * self.time_step, bodies)
        v, chain = self._turn(v, state.bath, bodies)
        return state._replace(velocities=v, bath=chain)

    def heat(self, state: State, bodies: Bodies) -> Array:
        """What the chain lacks."""
        return -self.links.energy(state.bath)

    def _turn(self, velocities: Array, chain: Chain, bodies: Bodies) -> tuple[Array, Chain]:
        twice = 2 * kinetic(velocities, bodies)
        factor, chain = self.links.turn(twice, chain, 0.5 * self.time_step)
        return factor[bodies.structure][:, None] * velocities, chain
