"""Which structures a model can tell apart, by models of random weights in float64.

The energy is an analytic function of the weights: if two structures differ for some weights, they
differ for almost all. So no training is needed, and none could show more: what random weights do
not tell apart, no weights do. The other way round is weaker: a difference of 1e-9 is real, and may
be too small to be learned. Rounding is measured beside it, as the change of the energy when the
same structure is turned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eqnet.data.frame import Frame
from eqnet.data.items import Item
from eqnet.data.neighbors import Neighbors
from eqnet.data.packing import pack
from eqnet.geometric_pairs import Edges, Pair
from eqnet.graph import AtomGraph, sum_structures
from eqnet.models import MODELS
from eqnet.so3 import random_rotation

CUTOFF, LONGEST = 5.0, 3.5  # angstrom: of the models, and the longest edge of every pair
COPIES = 4  # first, second, and both turned
FACTOR = 100.0  # times the rounding is a difference
# Small values of whatever a model has; they do not limit what these pairs ask for.
SMALL = {
    "num_channels": 8, "hidden_channels": 8, "edge_channels": 8, "ffn_channels": 8,
    "alpha_channels": 4, "value_channels": 4, "num_heads": 2, "radial_MLP": (8,),
    "num_radial_basis": 6, "avg_num_neighbors": 2.0,
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """A model and what is asked of it; a number that the model does not have is None.

    Attributes:
        model: a key of `MODELS`.
        layers: number of layers.
        degree: highest degree of features and harmonics.
        correlation: factors of the highest power.
    """

    model: str
    layers: int
    degree: int | None
    correlation: int | None

    def config(self) -> Any:
        """A small configuration."""
        made, _ = MODELS[self.model]
        degree = self.degree
        wanted = SMALL | {"num_interactions": self.layers, "correlation": self.correlation}
        wanted |= {"max_L": degree, "max_ell": degree, "m_max": degree}
        fields = {field.name for field in dataclasses.fields(made)}
        values = {name: value for name, value in wanted.items() if name in fields}
        return made(elements=(6,), r_max=CUTOFF, **values)


def variants(
    models: Sequence[str],
    layers: Sequence[int],
    degrees: Sequence[int],
    correlations: Sequence[int],
) -> Iterator[Variant]:
    """All combinations, as far as each model has these numbers."""
    for name in models:
        fields = {field.name for field in dataclasses.fields(MODELS[name][0])}
        for degree in degrees if "max_L" in fields else (None,):
            for correlation in correlations if "correlation" in fields else (None,):
                for number in layers:
                    yield Variant(name, number, degree, correlation)


def distinctions(
    make: Callable[[int], nnx.Module], pairs: Mapping[str, Pair], seeds: int = 3
) -> dict[str, float]:
    """How much the energies of each pair differ, in units of the rounding.

    Args:
        make: a seed -> a model, AtomGraph -> [N], of one element and cutoff `CUTOFF`.
        pairs: by name.
        seeds: number of random weights.

    Returns:
        By name, the root mean square over the weights of |E(first) - E(second)|, divided by that of
        the change of either under rotations; both relative to sum_i |E_i| of the first. The model
        tells them apart where this is above `FACTOR`.
    """
    with jax.enable_x64(True):
        graph = graph_of(pairs)
        graphdef, _ = nnx.split(make(0))

        @jax.jit
        def energies(state: nnx.State, graph: AtomGraph) -> jax.Array:
            each = jnp.where(graph.atom_mask, nnx.merge(graphdef, state)(graph), 0.0)
            return sum_structures(jnp.stack([each, jnp.abs(each)], axis=-1), graph)

        found = [energies(_generic(make(seed), seed), graph) for seed in range(seeds)]
    values = np.asarray(found)[:, : COPIES * len(pairs)].reshape((seeds, len(pairs), COPIES, 2))
    relative = values[..., 0] / values[:, :, :1, 1]
    first, second, *turned = relative.transpose(2, 0, 1)
    noise = np.stack([first - turned[0], second - turned[1]])
    floor = np.maximum(_rms(noise, (0, 1)), np.finfo(float).eps)
    return dict(zip(pairs, (_rms(first - second, 0) / floor).tolist(), strict=True))


def _rms(values: np.ndarray, axes: Any) -> np.ndarray:
    return np.sqrt((values**2).mean(axes))


def _generic(model: nnx.Module, seed: int) -> nnx.State:
    """The weights, moved: initial ones may be special, as biases of zero are."""
    rng = np.random.default_rng(seed)
    state = nnx.state(model)
    return jax.tree.map(lambda p: p + 0.3 * rng.normal(size=p.shape), state)


def graph_of(pairs: Mapping[str, Pair]) -> AtomGraph:
    """First, second, and both turned, pair by pair, in float64."""
    rng, items = np.random.default_rng(0), []
    for pair in pairs.values():
        same = [pair.first, pair.second]
        turned = [points @ random_rotation(rng).T for points in same]
        items += [_item(LONGEST * points, pair.edges) for points in (*same, *turned)]
    return pack(items, dtype=np.float64)


def _item(points: np.ndarray, edges: Edges) -> Item:
    """Carbon atoms with exactly these edges, whatever else is near."""
    n, cell = len(points), np.zeros((3, 3))
    both = sorted({*edges, *((j, i) for i, j in edges)})
    place = {edge: e for e, edge in enumerate(both)}
    i, j = np.array(both, np.int32).T
    neighbors = Neighbors(
        centers=i,
        neighbors=j,
        shifts=np.zeros((len(both), 3), np.int32),
        reverse=np.array([place[b, a] for a, b in both], np.int32),
        distances=np.linalg.norm(points[i] - points[j], axis=1),
        num_atoms=n,
    )
    frame = Frame(numbers=np.full(n, 6), positions=points, cell=cell, pbc=np.zeros(3, bool))
    counts, species = np.bincount(i, minlength=n).astype(np.int32), np.zeros(n, np.int32)
    return Item(frame, points, np.zeros_like(points), cell, species, neighbors, counts)


def table(
    chosen: Iterable[Variant], pairs: Mapping[str, Pair], seeds: int
) -> Iterator[dict[str, Any]]:
    """One line for each variant: its numbers, and by pair the difference in units of rounding."""
    for variant in chosen:
        config, model = variant.config(), MODELS[variant.model][1]

        def make(seed: int, config: Any = config, model: Any = model) -> nnx.Module:
            return model(config, rngs=nnx.Rngs(seed))

        yield dataclasses.asdict(variant) | distinctions(make, pairs, seeds)
