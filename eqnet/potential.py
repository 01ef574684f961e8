"""From atomic energies to a potential: scale, repulsion, and one gradient for forces and stress.

The device computes only what is learned (plus the repulsion). The energies of isolated atoms and
the shift of each element are sums of constants: the host adds them in float64, so that float32
keeps its digits for the interaction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eqnet.data.elements import covalent_radius
from eqnet.graph import (
    AtomGraph,
    displacements,
    gather_centers,
    gather_neighbors,
    sum_rows,
    sum_structures,
)
from eqnet.last_layer import energies_and_features
from eqnet.layers import polynomial_cutoff
from eqnet.so3 import HIGHEST

COULOMB = 14.3996454784  # e^2 / (4 pi eps0) in eV angstrom
BOHR = 0.529177210903  # angstrom
# Universal screening function of Ziegler, Biersack and Littmark: coefficients and exponents.
ZBL_SCREENING = ((0.18175, 3.19980), (0.50986, 0.94229), (0.28022, 0.40290), (0.02817, 0.20162))


class Prediction(NamedTuple):
    """What a potential says of a batch, without the reference energies of the elements."""

    energy: jax.Array  # [G] eV
    node_energy: jax.Array  # [N] eV
    forces: jax.Array  # [N, 3] eV/angstrom
    stress: jax.Array | None  # [G, 3, 3] eV/angstrom^3, ASE sign; zero where the volume is zero
    features: jax.Array | None = None  # [N, D] eV, see `eqnet.last_layer`


def zbl_repulsion(graph: AtomGraph, elements: Sequence[int], cutoff: float) -> jax.Array:
    """Screened nuclear repulsion, half to each atom, [N] eV (Ziegler, Biersack, Littmark 1985).

    Each pair is switched off smoothly at the sum of the covalent radii (at most the cutoff).
    """
    vectors = displacements(graph)
    distance = jnp.linalg.norm(vectors, axis=-1)
    dtype = distance.dtype
    charges = jnp.asarray(elements, dtype)[jnp.asarray(graph.species)]
    radii = jnp.asarray([covalent_radius(z) for z in elements], dtype)[jnp.asarray(graph.species)]
    pair = [
        (gather_centers(v, graph)[:, None], gather_neighbors(v, graph)) for v in (charges, radii)
    ]
    (z_i, z_j), (r_i, r_j) = pair
    scaled = distance * (z_i**0.23 + z_j**0.23) / (0.8854 * BOHR)
    screening = sum(c * jnp.exp(-b * scaled) for c, b in ZBL_SCREENING)
    reach = jnp.minimum(r_i + r_j, cutoff)
    envelope = polynomial_cutoff(distance / reach, 1.0, 6)
    energy = 0.5 * COULOMB * z_i * z_j / distance * screening * envelope
    return sum_rows(jnp.where(jnp.asarray(graph.neighbor_mask), energy, 0.0).sum(1), graph)


class Potential(nnx.Module):
    """An interatomic potential: a model with the units and references of its training data.

    An atom without neighbours has E = E0 + shift + scale * model(alone), a constant of its element
    that is not E0: what the model says of a lone atom is learned like everything else.

    Args:
        model: AtomGraph -> [N] energies.
        elements: atomic numbers, ascending; species indices of graphs refer to them.
        cutoff: of the model, in angstrom.
        atomic_energies: energy of the isolated atom of each element, eV.
        scale: factor of the model's output for each element, eV.
        shift: added to each atom of an element, eV.
        pair_repulsion: whether to add the repulsion of bare nuclei at short distance.
    """

    def __init__(
        self,
        model: Callable[[AtomGraph], jax.Array],
        *,
        elements: Sequence[int],
        cutoff: float,
        atomic_energies: Sequence[float],
        scale: Sequence[float],
        shift: Sequence[float],
        pair_repulsion: bool = False,
    ):
        self.model = model
        self.elements = tuple(int(z) for z in elements)
        self.cutoff = float(cutoff)
        self.atomic_energies = tuple(float(e) for e in atomic_energies)
        self.scale = tuple(float(s) for s in scale)
        self.shift = tuple(float(s) for s in shift)
        self.pair_repulsion = bool(pair_repulsion)
        lengths = {len(v) for v in (elements, atomic_energies, scale, shift)}
        if len(lengths) != 1:
            raise ValueError("elements, atomic_energies, scale and shift differ in length")

    def reference_energy(self, species: np.ndarray) -> float:
        """Sum of isolated-atom energies and shifts of some atoms, float64, eV."""
        constants = np.asarray(self.atomic_energies) + np.asarray(self.shift)
        return float(constants[np.asarray(species)].sum())

    def __call__(self, graph: AtomGraph) -> jax.Array:
        """Energy of each atom without the reference energies, zero for padding, [N] eV."""
        energy = self.model(graph)
        scale = jnp.asarray(self.scale, energy.dtype)[jnp.asarray(graph.species)]
        energy = energy * scale
        if self.pair_repulsion:
            energy = energy + zbl_repulsion(graph, self.elements, self.cutoff)
        return jnp.where(jnp.asarray(graph.atom_mask), energy, 0.0)

    def predict(
        self, graph: AtomGraph, *, stress: bool = False, features: bool = False
    ) -> Prediction:
        """Energies, forces and, on demand, stress by one gradient, and features of atoms.

        The strain is symmetric and acts on positions and cell; stress = dE/dstrain / volume.
        """
        positions, cell = jnp.asarray(graph.positions), jnp.asarray(graph.cell)

        def total(positions: jax.Array, strain: jax.Array | None):
            moved = replace(graph, positions=positions)
            if strain is not None:
                strain = 0.5 * (strain + strain.swapaxes(-1, -2))
                local = strain[jnp.asarray(graph.structure)]
                shift = jnp.einsum("ni,nij->nj", positions, local, precision=HIGHEST)
                bent = cell + jnp.einsum("gai,gij->gaj", cell, strain, precision=HIGHEST)
                moved = replace(graph, positions=positions + shift, cell=bent)
            if features:
                node_energy, slopes = energies_and_features(self, moved)
            else:
                node_energy, slopes = self(moved), None
            return node_energy.sum(), (node_energy, slopes)

        # TF32 would cost three digits on GPUs; nothing here may use it by accident.
        with jax.default_matmul_precision("highest"):
            if not stress:
                gradient, (node_energy, slopes) = jax.grad(total, has_aux=True)(positions, None)
                virial = None
            else:
                zero = jnp.zeros_like(cell)
                (gradient, virial), (node_energy, slopes) = jax.grad(total, (0, 1), has_aux=True)(
                    positions, zero
                )
        energy = sum_structures(node_energy, graph)
        if virial is not None:
            volume = jnp.abs(jnp.linalg.det(cell))[:, None, None]
            virial = jnp.where(volume > 0, virial / jnp.where(volume > 0, volume, 1.0), 0.0)
        return Prediction(energy, node_energy, -gradient, virial, slopes)
