"""A Morse potential as a registered model: smooth, binding and quick to compile."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eqnet.graph import AtomGraph, displacements, gather_centers, gather_neighbors, sum_rows
from eqnet.potential import Potential


@dataclass(frozen=True)
class MorseConfig:
    """Plain values like those of any model."""

    elements: tuple[int, ...]
    r_max: float = 4.0
    steepness: float = 1.3
    powers: tuple[int, ...] = (1, 2)
    avg_num_neighbors: float = 1.0


class Morse(nnx.Module):
    """E = 1/2 sum_ij D (x^2 - 2 x) f(r), x = exp(-a (r - r0)); f has two continuous derivatives."""

    def __init__(self, config: MorseConfig, *, rngs: nnx.Rngs, method: str = "default") -> None:
        self.config = config
        number = len(config.elements)
        self.depth = nnx.Param(0.4 + 0.1 * jax.random.uniform(rngs.params(), (number,)))
        self.radius = nnx.Param(jnp.linspace(0.6, 0.8, number))
        self.nested = nnx.List([nnx.Param(jnp.asarray(config.steepness))])

    def __call__(self, graph: AtomGraph) -> jax.Array:
        r = jnp.linalg.norm(displacements(graph), axis=-1)
        depth, radius = (p[...][jnp.asarray(graph.species)] for p in (self.depth, self.radius))
        d = gather_centers(depth, graph)[:, None] * gather_neighbors(depth, graph)
        r0 = gather_centers(radius, graph)[:, None] + gather_neighbors(radius, graph)
        x = jnp.exp(-self.nested[0][...] * (r - r0))
        u = r / self.config.r_max
        envelope = jnp.where(u < 1, (1 - jnp.where(u < 1, u, 0.0) ** 2) ** 3, 0.0)
        pairs = jnp.where(graph.neighbor_mask, d * (x**2 - 2 * x) * envelope, 0.0)
        return 0.5 * sum_rows(pairs.sum(1), graph)


MODELS = {"morse": (MorseConfig, Morse)}


def morse_potential(
    elements: tuple[int, ...] = (1, 6, 8),
    dtype: str = "float64",
    r_max: float = 4.0,
    steepness: float = 1.3,
) -> Potential:
    """A potential with large reference energies; weights in `dtype`."""
    with jax.enable_x64(dtype == "float64"):
        model = Morse(MorseConfig(elements, r_max, steepness), rngs=nnx.Rngs(0))
        number = len(elements)
        potential = Potential(
            model,
            elements=elements,
            cutoff=r_max,
            atomic_energies=[-1000.0 * z for z in elements],
            scale=[1.0 + 0.1 * i for i in range(number)],
            shift=[0.25 * i for i in range(number)],
        )
        graphdef, state = nnx.split(potential)
        return nnx.merge(graphdef, jax.tree.map(lambda x: x.astype(dtype), state))


def model_of(potential: Potential) -> Morse:
    """The model inside."""
    assert isinstance(potential.model, Morse)
    return potential.model


def by_hand(numbers, positions, cell, pbc, potential: Potential, images: int = 3) -> float:
    """Energy in eV by loops over pairs and images, float64."""
    model = model_of(potential)
    depth, radius = (np.asarray(p[...], float) for p in (model.depth, model.radius))
    steepness, cutoff = float(model.nested[0][...]), model.config.r_max
    species = [potential.elements.index(z) for z in numbers]
    ranges = [range(-images, images + 1) if axis else range(1) for axis in pbc]
    energy = sum(potential.atomic_energies[s] + potential.shift[s] for s in species)
    for i, j in itertools.product(range(len(numbers)), repeat=2):
        for image in itertools.product(*ranges):
            r = float(
                np.linalg.norm(positions[j] + np.array(image) @ np.array(cell) - positions[i])
            )
            if (i == j and not any(image)) or r >= cutoff:
                continue
            a, b = species[i], species[j]
            x = np.exp(-steepness * (r - radius[a] - radius[b]))
            pair = depth[a] * depth[b] * (x**2 - 2 * x) * (1 - (r / cutoff) ** 2) ** 3
            energy += 0.5 * potential.scale[a] * pair
    return energy
