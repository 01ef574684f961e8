"""Stress by atom: what straining the edges that end at an atom does to the energy.

The energy depends on the vectors r_ij from each centre i to its neighbours alone, so that

    V sigma = sum_i W_i,    W_i = sum_j r_ij (dE / dr_ij)

with W_i symmetrised. Other divisions among the atoms have the same sum: here the edges along which
a centre receives messages are its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from eqnet.graph import AtomGraph


def virials(graphdefs: Sequence[Any], weights: Sequence[Any], graph: AtomGraph) -> jax.Array:
    """W_i, the mean over potentials, [N, 3, 3] eV."""

    def energy(strain: jax.Array) -> jax.Array:
        strained = replace(graph, strain=strain)
        energies = [
            nnx.merge(graphdef, state)(strained).sum()
            for graphdef, state in zip(graphdefs, weights, strict=True)
        ]
        return jnp.mean(jnp.stack(energies))

    with jax.default_matmul_precision("highest"):
        positions = jnp.asarray(graph.positions)
        found = jax.grad(energy)(jnp.zeros((graph.num_atoms, 3, 3), positions.dtype))
    return 0.5 * (found + found.swapaxes(-1, -2))
