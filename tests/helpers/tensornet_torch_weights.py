"""Parameters of a torchmd-net TensorNet as parameters of ours.

torch stores a linear layer as [out, in] and divides by nothing; ours is [in, out] and divides by
sqrt(in).
"""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from eqnet.layers import Dense
from eqnet.models.tensornet import Mix, TensorNet
from eqnet.norms import NumberNorm

Weights = Mapping[str, np.ndarray]


def matrix(weights: Weights, name: str) -> np.ndarray:
    """W sqrt(in), [in, out]."""
    value = np.asarray(weights[name + ".weight"], np.float64).T
    return value * np.sqrt(len(value))


def vector(weights: Weights, name: str) -> np.ndarray:
    return np.asarray(weights[name], np.float64)


def dense(weights: Weights, names: list[str], layer: Dense) -> None:
    """Layers of one input side by side."""
    value = np.concatenate([matrix(weights, name) for name in names], axis=1)
    bias = np.concatenate([vector(weights, name + ".bias") for name in names])
    assert value.shape == layer.weight[...].shape and bias.shape == layer.bias[...].shape
    layer.weight[...], layer.bias[...] = jnp.asarray(value), jnp.asarray(bias)


def norm(weights: Weights, name: str, layer: NumberNorm) -> None:
    layer.scale[...] = jnp.asarray(vector(weights, name + ".weight"))
    layer.shift[...] = jnp.asarray(vector(weights, name + ".bias"))


def mix(weights: Weights, name: str, first: int, layer: Mix) -> None:
    for l, (_, ir) in enumerate(layer.linear.irreps_in):
        value = matrix(weights, f"{name}.linears_tensor.{first + l}")
        layer.linear.weights[str(ir)][...] = jnp.asarray(value)


def convert(weights: Weights, model: TensorNet) -> None:
    """Overwrite all parameters of `model` (float64 under x64)."""
    name, embedding = "representation_model.tensor_embedding", model.embedding
    elements = vector(weights, name + ".emb.weight")[list(model.config.elements)]
    embedding.elements[...] = jnp.asarray(elements)
    dense(weights, [name + ".emb2"], embedding.of_elements)
    dense(weights, [f"{name}.distance_proj{n}" for n in (1, 2, 3)], embedding.radial)
    norm(weights, name + ".init_norm", embedding.norm)
    for n, layer in enumerate(embedding.gates.layers):
        dense(weights, [f"{name}.linears_scalar.{n}"], layer)
    mix(weights, name, 0, embedding.mix)
    for n, layer in enumerate(model.layers):
        name = f"representation_model.layers.{n}"
        for m, part in enumerate(layer.radial.layers):
            dense(weights, [f"{name}.linears_scalar.{m}"], part)
        mix(weights, name, 0, layer.before)
        mix(weights, name, 3, layer.after)
    norm(weights, "representation_model.out_norm", model.norm)
    names = ["representation_model.linear", "output_model.output_network.layers.0"]
    names.append("output_model.output_network.layers.2")
    for name, layer in zip(names, model.readout.layers, strict=True):
        dense(weights, [name], layer)
