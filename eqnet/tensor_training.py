"""Training of tensors by the loop of `eqnet.fit`: the loss, and errors in the units of the labels.

The loss is the sum over tensors of the mean of m(e / s), e the error of a label, s the root mean
square deviation of a component from the mean label (or, `relative`, of the label itself from zero),
and m the measure of `eqnet.losses`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from eqnet import losses
from eqnet.data.batches import Targets
from eqnet.graph import AtomGraph
from eqnet.options import LossOptions, OptimizerOptions, TrainOptions
from eqnet.tensor_model import TensorModel
from eqnet.training import Weights, weights_of, with_weights


@dataclass(frozen=True)
class TensorProblem:
    """A tensor model and what to minimise, as `Fit` takes it.

    Attributes:
        model: with its first weights, in the precision of the training.
        loss: resolved; the weights of energies and forces in it are not looked at.
        optimizer: resolved.
        steps_per_epoch: batches of an epoch.
        sizes: of each tensor, the errors of the mean label, see `tensor_evaluation.spread`.
        relative: whether the error of a label counts relative to this label.
    """

    model: TensorModel
    loss: LossOptions
    optimizer: OptimizerOptions
    steps_per_epoch: int
    sizes: tuple[float, ...]
    relative: bool = False

    def weights(self) -> Weights:
        """The weights of the model."""
        return weights_of(self.model)

    def with_weights(self, weights: Weights) -> TensorModel:
        """A copy of the model with other weights."""
        return with_weights(self.model, weights)

    def term_weights(self, options: TrainOptions, *, second: bool) -> tuple[float, ...]:
        """Each tensor weighs the same, in both stages."""
        del options, second
        return (1.0,) * len(self.sizes)

    def labels(self, graph: AtomGraph, targets: Targets) -> jax.Array:
        """How many labels of each tensor a batch has."""
        del graph
        return losses.labels(
            jnp.asarray(targets.tensor_weights[name]) for name, _ in self.model.kinds
        )

    def sums(self) -> Callable[[Weights, AtomGraph, Targets], losses.Sums]:
        """The pure function from weights and a batch to the sums of its errors, by tensor."""
        graphdef, params = nnx.split(self.model)
        structure = jax.tree.structure(params)
        measure = losses.measure(self.loss.loss, self.loss.huber_delta)
        sizes = dict(zip((name for name, _ in self.model.kinds), self.sizes, strict=True))

        def sums(weights: Weights, graph: AtomGraph, targets: Targets) -> losses.Sums:
            found = nnx.merge(graphdef, jax.tree.unflatten(structure, weights))(graph)
            rows = []
            for name, size in sizes.items():
                label, weight = targets.tensors[name], targets.tensor_weights[name]
                label = jnp.asarray(label).reshape(len(label), -1)
                error = found[name].reshape(len(label), -1) - label
                error = jnp.where(weight[:, None] > 0, error, 0.0)
                own = jnp.sqrt(jnp.mean(label**2, axis=-1, keepdims=True))
                unit = jnp.where(own > 0, own, size) if self.relative else size
                loss = jnp.sum(weight * measure(error / unit))
                rows.append((loss, jnp.sum(jnp.abs(error)), jnp.sum(error**2)))
            loss, absolute, squared = (jnp.stack(column) for column in zip(*rows, strict=True))
            return losses.Sums(loss, self.labels(graph, targets), absolute, squared)

        return sums

    def errors(self, sums: losses.Sums) -> dict[str, float]:
        """MAE and RMSE over components, in the units of the labels; absent without labels."""
        found = {}
        for i, (name, kind) in enumerate(self.model.kinds):
            count = float(sums.labels[i]) * math.prod(kind.shape)
            if count:
                found[f"{name}_mae"] = float(sums.absolute[i]) / count
                found[f"{name}_rmse"] = math.sqrt(float(sums.squared[i]) / count)
        return found
