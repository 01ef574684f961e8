"""Smooth local frames: a network of coordinates in weighted frames of each atom, made invariant.

Two vectors p, q of each atom, sums over its neighbours, give two frames: e_1 along p, e_2 along
c x p, e_3 along +c or -c with c = p x q. A frame turns with the structure, so coordinates in it are
invariant; with both signs, under reflections too. No choice of frames is continuous for all
structures (Dym, Lawrence & Siegel 2024, arXiv:2402.16077), so frames have weights that vanish,
with two derivatives, where they are undefined. Beside them stand e_1 alone, for surroundings with a
mirror or an axis, in which p and q are parallel, and a term without directions:

    w_f = |c|^4 / S,    w_1 = |p|^4 / S,    w_0 = 1 / S,    S = 1 + sum (|c|^4 + |p|^4)

Messages are numbers, not vectors, so that a layer does not tell how the frames of neighbours stand
to each other. Weighted ensembles of local frames are those of Pozdnyakov & Ceriotti, NeurIPS 2023,
arXiv:2305.19302, whose frames are pairs of neighbours; learned vectors are fewer, and vanish where
the surroundings of an atom have a centre of symmetry: there only distances are seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eqnet.graph import AtomGraph
from eqnet.irreps import Irreps, IrrepsArray, refuse_missing
from eqnet.models.coordinate_network import CoordinateNetwork, CoordinateNetworkConfig
from eqnet.models.egennet import EGenNetConfig, Vectors
from eqnet.ops import require_cartesian
from eqnet.ops.so2_orders import check_group

# Below this |v|^2 an axis counts as undefined; its weight would be less than the square.
UNDEFINED = 1e-12


@dataclass(frozen=True)
class LocalFramesConfig:
    """Hyper-parameters of a network in smooth local frames.

    Attributes:
        elements: atomic numbers, ascending.
        r_max: cutoff in angstrom.
        num_channels: numbers of each atom.
        num_frames: pairs of vectors of each atom.
        hidden_channels: numbers that an edge has for its weight in these vectors.
        num_interactions: number of layers.
        num_radial_basis: Bessel functions.
        num_cutoff_basis: order p of the polynomial cutoff.
        avg_num_neighbors: sums over neighbours are divided by its square root.
        group: 'O3', or 'SO3' for half as many frames and a model that tells mirror images apart.
        product: 'cartesian', numbers times vectors: there is no other.
    """

    elements: tuple[int, ...]
    r_max: float = 5.0
    num_channels: int = 64
    num_frames: int = 2
    hidden_channels: int = 32
    num_interactions: int = 3
    num_radial_basis: int = 8
    num_cutoff_basis: int = 6
    avg_num_neighbors: float = 1.0
    group: Literal["O3", "SO3"] = "O3"
    product: str = "cartesian"

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"num_channels": 32, "num_frames": 1, "num_interactions": 2},
        "medium": {"num_channels": 56, "num_frames": 2, "num_interactions": 3},
        "large": {"num_channels": 96, "num_frames": 3, "num_interactions": 4},
    }

    def irreps(self) -> Irreps:
        """Irreps of the numbers of each atom.

        Raises:
            ValueError: another product, or no such group.
        """
        check_group(self.group)
        require_cartesian("local_frames", self.product)
        return Irreps(f"{self.num_channels}x0e")


def smooth_frames(vectors: jax.Array, signs: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Frames of pairs of vectors with their weights, axes alone, and the term without directions.

    Args:
        vectors: [N, 3, 2 M], pair after pair.
        signs: of e_3: (1, -1) or (1,).

    Returns:
        Frames [N, F, 3, 3] of rows e_1, e_2, e_3 and weights [N, F], of sum one, with
        F = M (len(signs) + 1) + 1; then M of rows e_1, 0, 0, and the last frame is zero.
    """
    p, q = (jnp.moveaxis(vectors[..., n::2], 1, -1) for n in (0, 1))  # [N, M, 3]
    c = jnp.cross(p, q)
    x, y, z = np.eye(3, dtype=vectors.dtype)
    axis, axis_weight = _axis(p, x)
    normal, weight = _axis(c, z)
    defined = (weight > 0)[..., None]
    e1 = jnp.where(defined, axis, x)
    e2 = jnp.where(defined, jnp.cross(normal, e1), y)
    frames = [jnp.stack([e1, e2, s * normal], axis=-2) for s in signs]
    zero = jnp.zeros_like(axis)
    frames += [jnp.stack([axis, zero, zero], axis=-2), jnp.zeros_like(frames[0][:, :1])]
    weights = [weight / len(signs) for _ in signs]
    weights += [axis_weight, jnp.ones_like(weight[:, :1])]
    total = 1 + (weight + axis_weight).sum(-1, keepdims=True)
    return jnp.concatenate(frames, axis=1), jnp.concatenate(weights, axis=1) / total


def _axis(v: jax.Array, otherwise: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Direction [..., 3] and |v|^4 [...] of a vector; another direction where it is too short."""
    square = (v**2).sum(-1)
    defined = square > UNDEFINED
    v = jnp.where(defined[..., None], v, otherwise)
    unit = v / jnp.linalg.norm(v, axis=-1, keepdims=True)
    return unit, jnp.where(defined, square**2, 0.0)


class LocalFrames(nnx.Module):
    """AtomGraph -> energy of each atom [N], in units of the potential's scale.

    O(3)-invariant, or with group 'SO3' invariant in proper rotations only.

    Args:
        config: hyper-parameters.
        rngs: source of the initial weights.
        method: 'default' or 'auto', which are the same: there is one.
        needed: irreps that the features must have, for tensors.

    Raises:
        ValueError: it cannot give them.
    """

    def __init__(
        self,
        config: LocalFramesConfig,
        *,
        rngs: nnx.Rngs,
        method: str = "default",
        needed: Irreps | str = "",
    ):
        require_cartesian("local_frames", config.product, method)
        self.config = config
        self.irreps_out = config.irreps() + f"{2 * config.num_frames}x1o"
        refuse_missing(needed, self.irreps_out)
        common: dict[str, Any] = {
            "elements": config.elements,
            "r_max": config.r_max,
            "num_radial_basis": config.num_radial_basis,
            "num_cutoff_basis": config.num_cutoff_basis,
            "avg_num_neighbors": config.avg_num_neighbors,
        }
        of_vectors = EGenNetConfig(
            num_channels=2 * config.num_frames,
            hidden_channels=config.hidden_channels,
            num_interactions=1,
            **common,
        )
        of_network = CoordinateNetworkConfig(
            num_channels=config.num_channels, num_interactions=config.num_interactions, **common
        )
        self.vectors = Vectors(of_vectors, rngs=rngs)
        self.network = CoordinateNetwork(of_network, rngs=rngs)

    @property
    def methods(self) -> tuple[list[str]]:
        """Methods of the layers."""
        return (["default" for _ in self.network.layers],)

    def __call__(self, graph: AtomGraph) -> jax.Array:
        """Energy of each atom, [N]; padding atoms get some number to be masked."""
        return self.network.energies(self.features(graph).scalars)

    def features(self, graph: AtomGraph) -> IrrepsArray:
        """Numbers of the network, and the vectors that the frames are made of, [N, irreps_out]."""
        signs = (1, -1) if self.config.group == "O3" else (1,)
        with jax.named_scope("frames"):
            vectors = self.vectors(graph)
            frames, weights = smooth_frames(vectors, signs)
        numbers = self.network.in_frames(graph, frames, weights)
        return IrrepsArray.from_blocks(self.irreps_out, [numbers[:, None], vectors])
