"""Effective medium theory of metals as a model on neighbour rows, equal to ASE's EMT calculator.

Jacobsen, Stoltze and Norskov, Surf. Sci. 366, 394 (1996), with the parameters of `ase`, cutoff
included: a logistic function that still is 1e-4 where pairs end.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from ase.calculators.emt import EMT as AseEMT
from ase.calculators.emt import beta, parameters
from ase.data import atomic_numbers
from ase.units import Bohr

from eqnet.graph import AtomGraph, displacements, gather_centers, gather_neighbors, sum_rows
from eqnet.potential import Potential

SYMBOLS = sorted(parameters, key=lambda symbol: atomic_numbers[symbol])
UNITS = np.array([1, Bohr, 1, 1 / Bohr, 1 / Bohr, 1 / Bohr, 1 / Bohr**3])
NAMES = ("e0", "s0", "v0", "eta", "kappa", "decay", "n0")


class EMT:
    """E_i = Ec(s_i) + 6 V0 exp(-kappa s_i) - pairs, s_i from the density of the neighbours."""

    def __init__(self) -> None:
        values = np.array([parameters[symbol][:7] for symbol in SYMBOLS]) * UNITS
        self.table: dict[str, np.ndarray] = dict(zip(NAMES, values.T, strict=True))
        self.middle, self.cutoff, self.slope = AseEMT()._calc_cutoff(_NoAtoms())
        shells = beta * self.table["s0"][:, None] * np.sqrt([1, 2, 3])
        counts = np.array([12, 6, 24]) / 12 * self._switch(shells)
        beyond = shells - shells[:, :1]
        eta, kappa = self.table["eta"][:, None], self.table["kappa"][:, None]
        self.table["gamma1"] = (counts * np.exp(-eta * beyond)).sum(1)
        self.table["gamma2"] = (counts * np.exp(-kappa / beta * beyond)).sum(1)

    def _switch(self, r):
        return 1 / (1 + jnp.exp(self.slope * (r - self.middle)))

    def __call__(self, graph: AtomGraph) -> jax.Array:
        species = jnp.asarray(graph.species)
        r = jnp.linalg.norm(displacements(graph), axis=-1)
        own = {name: jnp.asarray(v)[species] for name, v in self.table.items()}
        i = {name: gather_centers(v, graph)[:, None] for name, v in own.items()}
        j = {name: gather_neighbors(v, graph) for name, v in own.items()}
        within = jnp.asarray(graph.neighbor_mask) & (r < self.cutoff)
        weight = jnp.where(within, self._switch(r), 0.0)
        chi = j["n0"] / i["n0"]
        density = jnp.exp(-j["eta"] * (r - beta * j["s0"])) * chi * weight
        pair_i = jnp.exp(-j["kappa"] * (r / beta - j["s0"])) * chi * weight
        pair_j = jnp.exp(-i["kappa"] * (r / beta - i["s0"])) / chi * weight
        pairs = -i["v0"] / i["gamma2"] * pair_i - j["v0"] / j["gamma2"] * pair_j
        sigma = sum_rows(density.sum(1), graph)
        alone = sigma <= 0
        s = -jnp.log(jnp.where(alone, 1.0, sigma) / (12 * own["gamma1"])) / (beta * own["eta"])
        cohesive = own["e0"] * (1 + own["decay"] * s) * jnp.exp(-own["decay"] * s)
        energy = cohesive + 6 * own["v0"] * jnp.exp(-own["kappa"] * s)
        energy = energy + 0.25 * sum_rows(pairs.sum(1), graph)
        return jnp.where(alone, 0.0, energy)


class _NoAtoms:
    """ASE's cutoff depends on no atoms unless asked to."""

    def get_atomic_numbers(self) -> list[int]:
        return []


def emt_potential() -> Potential:
    """ASE's EMT; energies are counted from the crystal's, as in ASE."""
    with jax.enable_x64(True):
        model = EMT()
    number = len(SYMBOLS)
    return Potential(
        model,
        elements=[atomic_numbers[symbol] for symbol in SYMBOLS],
        cutoff=float(model.cutoff),
        atomic_energies=[-parameters[symbol][0] for symbol in SYMBOLS],
        scale=[1.0] * number,
        shift=[0.0] * number,
    )
