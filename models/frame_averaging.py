"""Global frames: any network of coordinates made invariant, one structure at a time.

    E = mean over frames Q of a structure of backbone(Q x)

`FrameAveraging` takes the principal axes of the positions with all signs (Puny et al., ICLR 2022,
arXiv:2110.03336), `LearnedFrames` axes from two vectors that a small equivariant network sums over
the atoms (Kaba et al., ICML 2023, arXiv:2211.06489). Both are exactly invariant and neither is a
potential: atoms far apart share a frame, so that fragments are not additive, and energies jump
where a frame is undefined (two equal principal moments; two vectors along one line), as those of
any unweighted choice of frames must (Dym, Lawrence & Siegel 2024, arXiv:2402.16077). For potentials
there is `local_frames`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

from eqnet.graph import AtomGraph, sum_structures
from eqnet.models.egennet import EGenNetConfig, Vectors
from eqnet.ops.so2_orders import check_group
from eqnet.so3 import HIGHEST

Group = Literal["O3", "SO3"]
# Principal moments closer than this, relative to the largest, count as equal in derivatives.
EQUAL = 1e-12


@jax.custom_jvp
def principal_axes(covariance: jax.Array) -> jax.Array:
    """Eigenvectors by ascending eigenvalue as rows of a proper rotation, [..., 3, 3].

    Derivatives grow as one over the difference of two eigenvalues; where they are equal the axes
    are arbitrary, and their derivative within the common eigenspace is taken as zero.
    """
    _, columns = jnp.linalg.eigh(covariance)
    sign = jnp.where(jnp.linalg.det(columns) < 0, -1.0, 1.0).astype(covariance.dtype)
    return (columns * sign[..., None, None]).swapaxes(-1, -2)


@principal_axes.defjvp
def _perturbed(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (covariance,), (change,) = primals, tangents
    axes = principal_axes(covariance)

    def between(matrix: jax.Array) -> jax.Array:
        return jnp.einsum("...ai,...ij,...bj->...ab", axes, matrix, axes, precision=HIGHEST)

    moments = jnp.diagonal(between(covariance), axis1=-2, axis2=-1)
    gaps = moments[..., :, None] - moments[..., None, :]
    apart = jnp.abs(gaps) > EQUAL * jnp.abs(moments).max(-1)[..., None, None]
    spin = jnp.where(apart, between(change) / jnp.where(apart, gaps, 1.0), 0.0)
    return axes, jnp.einsum("...ab,...bi->...ai", spin, axes, precision=HIGHEST)


def covariance_of(graph: AtomGraph) -> jax.Array:
    """Sum over the atoms of (x - mean)(x - mean)^T of each structure, [G, 3, 3]."""
    x, mask = jnp.asarray(graph.positions), jnp.asarray(graph.atom_mask)[:, None]
    number = jnp.maximum(sum_structures(mask.astype(x.dtype), graph), 1)
    mean = sum_structures(jnp.where(mask, x, 0.0), graph) / number
    y = jnp.where(mask, x - mean[graph.structure], 0.0)
    return sum_structures(y[:, :, None] * y[:, None, :], graph)


def turned(graph: AtomGraph, frames: jax.Array) -> AtomGraph:
    """Every structure in the coordinates of its frame, [G, 3, 3] with axes as rows."""
    of_atoms = frames[jnp.asarray(graph.structure)]
    positions = jnp.einsum("nai,ni->na", of_atoms, jnp.asarray(graph.positions), precision=HIGHEST)
    cell = jnp.einsum("gai,gci->gca", frames, jnp.asarray(graph.cell), precision=HIGHEST)
    strain = graph.strain
    if strain is not None:
        strain = jnp.einsum("nai,nij,nbj->nab", of_atoms, strain, of_atoms, precision=HIGHEST)
    return replace(graph, positions=positions, cell=cell, strain=strain)


def average(
    backbone: Callable[[AtomGraph], jax.Array],
    graph: AtomGraph,
    frames: jax.Array,
    signs: Sequence[Sequence[int]],
) -> jax.Array:
    """Mean of the backbone over frames whose axes have these signs, [N]."""
    choices = jnp.asarray(signs, frames.dtype)[:, :, None]
    one = jax.checkpoint(lambda sign: backbone(turned(graph, sign * frames)), prevent_cse=False)
    return jax.lax.map(one, choices).mean(0)


class FrameAveraging(nnx.Module):
    """AtomGraph -> energy of each atom [N], by principal axes: 8 frames for O(3), 4 for SO(3).

    The axes of a periodic structure would depend on where its cell begins and how large it is:
    periodic structures are refused, or are NaN where the cell is not known before the program runs.

    Args:
        backbone: AtomGraph -> [N], invariant in translations and permutations.
        group: whether mirror images are alike.
    """

    def __init__(self, backbone: Callable[[AtomGraph], jax.Array], group: Group = "O3"):
        check_group(group)
        self.backbone, self.group = backbone, group

    def __call__(self, graph: AtomGraph) -> jax.Array:
        """Energy of each atom, [N].

        Raises:
            ValueError: a structure is periodic.
        """
        if not isinstance(graph.cell, Tracer) and np.asarray(graph.cell).any():
            raise ValueError(
                "principal axes are those of molecules: a periodic structure has none that do not "
                "depend on its cell; take learned frames, or the model local_frames"
            )
        signs = list(product((1, -1), repeat=3))
        if self.group == "SO3":
            signs = [s for s in signs if np.prod(s) == 1]
        energy = average(self.backbone, graph, principal_axes(covariance_of(graph)), signs)
        periodic = jnp.asarray(graph.cell).any((1, 2))[jnp.asarray(graph.structure)]
        return jnp.where(periodic, jnp.nan, energy)


class LearnedFrames(nnx.Module):
    """AtomGraph -> energy of each atom [N], by learned axes: 2 frames for O(3), 1 for SO(3).

    The axes are those of two vectors by Gram and Schmidt, and their cross product with one sign or
    both. Where the vectors vanish or lie on one line the axes are x, y, z: the energy is then of
    one orientation, and jumps on the way there.

    Args:
        backbone: AtomGraph -> [N], invariant in translations and permutations.
        config: of the network of the vectors, with two channels.
        group: whether mirror images are alike.
        rngs: source of the initial weights.
    """

    def __init__(
        self,
        backbone: Callable[[AtomGraph], jax.Array],
        config: EGenNetConfig,
        group: Group = "O3",
        *,
        rngs: nnx.Rngs,
    ):
        check_group(group)
        if config.num_channels != 2:
            raise ValueError(
                f"a frame needs num_channels 2, two vectors, not {config.num_channels}"
            )
        self.backbone, self.group = backbone, group
        self.vectors = Vectors(config, rngs=rngs)

    def frames(self, graph: AtomGraph) -> jax.Array:
        """A proper rotation of each structure, [G, 3, 3], rows are axes."""
        each = jnp.where(jnp.asarray(graph.atom_mask)[:, None, None], self.vectors(graph), 0.0)
        p, q = jnp.moveaxis(sum_structures(each, graph), -1, 0)
        c = jnp.cross(p, q)
        lengths = (p**2).sum(-1) * (q**2).sum(-1)
        defined = ((c**2).sum(-1) > EQUAL * lengths) & (lengths > 0)
        x, _, z = np.eye(3, dtype=p.dtype)
        p, c = jnp.where(defined[:, None], p, x), jnp.where(defined[:, None], c, z)
        e1, e3 = (v / jnp.linalg.norm(v, axis=-1, keepdims=True) for v in (p, c))
        return jnp.stack([e1, jnp.cross(e3, e1), e3], axis=-2)

    def __call__(self, graph: AtomGraph) -> jax.Array:
        """Energy of each atom, [N]."""
        signs = [(1, 1, 1)] if self.group == "SO3" else [(1, 1, 1), (1, 1, -1)]
        return average(self.backbone, graph, self.frames(graph), signs)
