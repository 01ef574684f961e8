"""Second derivatives of the energy: one product with the forces' derivative per coordinate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from eqnet.graph import AtomGraph


def hessian(graphdefs: Sequence[Any], weights: Sequence[Any], graph: AtomGraph) -> jax.Array:
    """d2E/dx dx of one structure, the mean over potentials, [N, 3, N, 3] eV/angstrom^2.

    The forces are linearised once; rows are computed one after the other, so that memory stays that
    of a gradient beside the answer's 9 N^2 numbers. Exactly symmetric.
    """
    positions = jnp.asarray(graph.positions)

    def gradient(positions: jax.Array) -> jax.Array:
        moved = replace(graph, positions=positions)
        forces = [
            nnx.merge(graphdef, state).predict(moved).forces
            for graphdef, state in zip(graphdefs, weights, strict=True)
        ]
        return -jnp.mean(jnp.stack(forces), axis=0)

    _, pull = jax.vjp(gradient, positions)

    def row(index: jax.Array) -> jax.Array:
        return pull(jnp.zeros(positions.size).at[index].set(1).reshape(positions.shape))[0]

    rows = jax.lax.map(row, jnp.arange(positions.size)).reshape(positions.size, -1)
    rows = 0.5 * (rows + rows.T)
    return rows.reshape(positions.shape + positions.shape)
