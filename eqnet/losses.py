"""The loss of a batch, and the errors of a validation, from the same sums.

Each of energy, forces and stress contributes

    weight * sum_i w_i m(e_i) / #{i: w_i > 0}

with e_i the error of the energy per atom of a structure, of the force on an atom, or of the stress
of a structure; w_i the weight of the structure's label, 0 where the label is absent. So a missing
label weighs nothing, and does not dilute those that are there. The measures m are

    mse    mean of the squares of the components
    huber  mean over components of e^2 / 2 up to |e| = delta, then delta (|e| - delta / 2)
    l1     length of the vector (of the nine components of a stress), which does not depend on
           the orientation of the structure, unlike the sum of absolute components

mse and huber are the weighted losses of mace-torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eqnet.graph import AtomGraph
from eqnet.potential import Prediction

if TYPE_CHECKING:
    from eqnet.data.batches import Targets

Measure = Callable[[jax.Array], jax.Array]  # errors [n, components] -> [n]

TERMS = ("energy", "forces", "stress")


def squares(error: jax.Array) -> jax.Array:
    """Mean of the squared components."""
    return jnp.mean(error**2, axis=-1)


def lengths(error: jax.Array) -> jax.Array:
    """Length of the error vector; its gradient at zero is zero, but a NaN stays one."""
    squared = jnp.sum(error**2, axis=-1)
    zero = squared == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, squared)))


def huber(delta: float) -> Measure:
    """Quadratic below `delta`, linear above, by component."""

    def measure(error: jax.Array) -> jax.Array:
        size = jnp.abs(error)
        inside = jnp.minimum(size, delta)
        return jnp.mean(0.5 * inside**2 + delta * (size - inside), axis=-1)

    return measure


def measure(loss: str, huber_delta: float | None = None) -> Measure:
    """The measure of a name of the command line: mse, huber or l1."""
    if loss == "huber":
        return huber(0.01 if huber_delta is None else huber_delta)
    return {"mse": squares, "l1": lengths}[loss]


class Errors(NamedTuple):
    """Errors of a batch by term, zero where nothing is labelled."""

    energy: jax.Array  # [G, 1] eV per atom
    forces: jax.Array  # [N, 3] eV/A
    stress: jax.Array  # [G, 9] eV/A^3


class Sums(NamedTuple):
    """Sums over the labels of batches, by term (energy, forces, stress); they add up."""

    loss: jax.Array  # [3] sum of w m(e)
    labels: jax.Array  # [3] how many: structures, atoms, structures
    absolute: jax.Array  # [3] sum of |e| over components
    squared: jax.Array  # [3] sum of e^2 over components


def label_weights(graph: AtomGraph, targets: Targets, *, stress: bool) -> tuple[jax.Array, ...]:
    """Weights of the labels of a batch, [G], [N], [G]; without `stress` those of it are 0."""
    per_atom = jnp.where(graph.atom_mask, targets.forces_weight[graph.structure], 0.0)
    of_stress = targets.stress_weight if stress else jnp.zeros_like(targets.stress_weight)
    return jnp.asarray(targets.energy_weight), per_atom, jnp.asarray(of_stress)


def labels(weights: Iterable[jax.Array]) -> jax.Array:
    """How many labels there are, by term: those that weigh something."""
    return jnp.stack([jnp.sum(w > 0).astype(w.dtype) for w in weights])


def errors(
    prediction: Prediction, graph: AtomGraph, targets: Targets
) -> tuple[Errors, tuple[jax.Array, ...]]:
    """Errors of a batch and the weights of its labels ([G], [N], [G])."""
    energy = (prediction.energy - targets.energy) / jnp.maximum(targets.num_atoms, 1)
    forces = prediction.forces - targets.forces
    stress = jnp.zeros((len(energy), 9), energy.dtype)
    if prediction.stress is not None:
        stress = (prediction.stress - targets.stress).reshape(-1, 9)
    weights = label_weights(graph, targets, stress=prediction.stress is not None)
    found = (energy[:, None], forces, stress)
    # Before any square: what is not labelled may hold anything.
    masked = (jnp.where(w[:, None] > 0, e, 0.0) for w, e in zip(weights, found, strict=True))
    return Errors(*masked), weights


def sums(prediction: Prediction, graph: AtomGraph, targets: Targets, measure: Measure) -> Sums:
    """Sums of one batch."""
    found, weights = errors(prediction, graph, targets)
    return Sums(
        loss=jnp.stack([jnp.sum(w * measure(e)) for w, e in zip(weights, found, strict=True)]),
        labels=labels(weights),
        absolute=jnp.stack([jnp.sum(jnp.abs(e)) for e in found]),
        squared=jnp.stack([jnp.sum(e**2) for e in found]),
    )


def total(sums: Sums, weights: jax.Array) -> jax.Array:
    """The loss from its sums: sum over terms of weight * loss / labels; absent terms are 0."""
    return jnp.sum(weights * sums.loss / jnp.maximum(sums.labels, 1))


def total_on_host(sums: Sums, weights: np.ndarray) -> float:
    """`total` in float64 numpy, for sums over many batches."""
    counts = np.maximum(np.asarray(sums.labels), 1)
    return float(np.sum(np.asarray(weights, np.float64) * np.asarray(sums.loss) / counts))


def in_milli(sums: Sums) -> dict[str, float]:
    """MAE and RMSE of sums in meV, meV/A and meV/A^3; terms without labels are absent."""
    found = {}
    names = ("energy_per_atom", "forces", "stress")
    for i, (name, components) in enumerate(zip(names, (1, 3, 9), strict=True)):
        count = sums.labels[i] * components
        if count:
            found[f"{name}_mae"] = float(1000 * sums.absolute[i] / count)
            found[f"{name}_rmse"] = float(1000 * math.sqrt(sums.squared[i] / count))
    return found
