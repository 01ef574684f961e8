"""A potential with a closed form, for tests of what surrounds a potential."""

import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eqnet.data.frame import Frame
from eqnet.graph import displacements, gather_centers, gather_neighbors, sum_rows
from eqnet.potential import Potential

CUTOFF = 2.5
ELEMENTS = (1, 8)
STRENGTH = 0.05
REFERENCE = {1: -13.5, 8: -2041.25}


@dataclass(frozen=True)
class PairsConfig:
    """What a model file keeps of the model."""

    elements: tuple[int, ...] = ELEMENTS
    r_max: float = CUTOFF


class Pairs(nnx.Module):
    """E = 1/2 sum_ij a (1 + s_i + s_j) (r_c^2 - r_ij^2)^2, with s the species index."""

    def __init__(self, config: PairsConfig | None = None, *, rngs=None, method="default") -> None:
        self.config = config or PairsConfig()
        self.strength = nnx.Param(jnp.asarray(STRENGTH))

    def __call__(self, graph):
        vectors = displacements(graph)
        species = jnp.asarray(graph.species)
        kinds = gather_centers(species, graph)[:, None] + gather_neighbors(species, graph)
        inside = (CUTOFF**2 - jnp.sum(vectors**2, -1)) ** 2
        pairs = self.strength[...] * (1 + kinds).astype(vectors.dtype) * inside
        return 0.5 * sum_rows(jnp.where(graph.neighbor_mask, pairs, 0).sum(1), graph)


def pair_potential() -> Potential:
    """The pair model of hydrogen and oxygen with reference energies, in float64."""
    with jax.enable_x64(True):
        return Potential(
            Pairs(),
            elements=ELEMENTS,
            cutoff=CUTOFF,
            atomic_energies=[-13.5, -2041.0],
            scale=[1.0, 1.0],
            shift=[0.0, -0.25],
        )


def by_hand(frame: Frame) -> tuple[float, np.ndarray, np.ndarray]:
    """Energy, forces and dE/dstrain of the same potential by loops over pairs and images."""
    images = [range(-3, 4) if axis else range(1) for axis in frame.pbc]
    species = [ELEMENTS.index(z) for z in frame.numbers]
    energy, forces, virial = 0.0, np.zeros((len(frame), 3)), np.zeros((3, 3))
    for i, j in itertools.product(range(len(frame)), repeat=2):
        for image in itertools.product(*images):
            r = frame.positions[j] + np.array(image, float) @ frame.cell - frame.positions[i]
            d2 = float(r @ r)
            if (i == j and image == (0, 0, 0)) or d2 >= CUTOFF**2:
                continue
            factor = STRENGTH * (1 + species[i] + species[j])
            energy += 0.5 * factor * (CUTOFF**2 - d2) ** 2
            slope = -4 * factor * (CUTOFF**2 - d2) * r  # gradient of the pair energy with r
            forces[i] += slope
            virial += 0.5 * np.outer(r, slope)
    total = energy + sum(REFERENCE[int(z)] for z in frame.numbers)
    return total, forces, virial


def random_frame(rng: np.random.Generator, n: int, pbc=(False, False, False), index=0) -> Frame:
    """Some hydrogen and oxygen atoms, in a skewed cell where periodic, without labels."""
    cell = np.diag([3.0, 3.4, 3.8]) + rng.normal(scale=0.2, size=(3, 3))
    return Frame(
        numbers=rng.choice(ELEMENTS, n),
        positions=rng.normal(scale=1.0, size=(n, 3)) + 5.0,
        cell=cell * np.array(pbc)[:, None],
        pbc=np.array(pbc),
        file="mixture.xyz",
        index=index,
    )
