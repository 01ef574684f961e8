"""The last layer of a model: energies are linear in its weights, so their slopes are features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from eqnet.graph import AtomGraph


def num_features(potential: nnx.Module) -> int:
    """D, how many weights the last maps of the readouts have; 0 where they are not known."""
    leaves = nnx.to_flat_state(nnx.state(potential))
    return sum(leaves[i][1].get_value().size for i in _last(leaves))


def energies_and_features(
    potential: Callable[[AtomGraph], jax.Array], graph: AtomGraph
) -> tuple[jax.Array, jax.Array]:
    """Energies of atoms [N] and their derivatives with respect to the last weights, [N, D]; eV."""
    graphdef, state = nnx.split(potential)
    leaves = nnx.to_flat_state(state)
    chosen = _last(leaves)

    def energies(weights: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
        changed = list(leaves)
        for i, weight in zip(chosen, weights, strict=True):
            changed[i] = (leaves[i][0], leaves[i][1].replace(weight))
        answer = nnx.merge(graphdef, nnx.from_flat_state(changed))(graph)
        return answer, answer

    # forward: what comes before the last layer does not depend on its weights, and runs once
    weights = [leaves[i][1].get_value() for i in chosen]
    slopes, answer = jax.jacfwd(energies, has_aux=True)(weights)
    return answer, jnp.concatenate([slope.reshape(len(slope), -1) for slope in slopes], axis=1)


def _last(leaves: Sequence[tuple[Any, Any]]) -> list[int]:
    """Which weights belong to the last map of a readout: those that end in one number."""
    return [
        i
        for i, (path, leaf) in enumerate(leaves)
        if any(str(part).startswith("readout") for part in path) and leaf.get_value().shape[-1] == 1
    ]
