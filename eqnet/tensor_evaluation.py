"""Tensors of structures by a model, and their errors beside those of the mean label."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from eqnet.data.batches import Loader
from eqnet.data.frame import Frame
from eqnet.data.items import Item, make_items
from eqnet.data.struts import strut_item
from eqnet.data.tensor_labels import TensorKind, check_structure
from eqnet.device import computing, find_device, find_dtype
from eqnet.errors import InputError
from eqnet.graph import AtomGraph
from eqnet.tensor_model import TensorModel

Answers = list[dict[str, np.ndarray]]  # of each structure by name: [3, ...], or [n, 3, ...]


def items_of(
    frames: Sequence[Frame], elements: Sequence[int], cutoff: float, *, struts: bool
) -> list[Item]:
    """Structures with their neighbours, or lattices with their struts.

    Raises:
        InputError: an unknown element, coincident atoms, a lattice where structures of atoms are
            expected, or the other way round: their units of length differ.
    """
    if struts:
        return [strut_item(frame, elements, cutoff) for frame in frames]
    for frame in frames:
        if "struts" in frame.info:
            raise InputError(
                f"{frame.name}: a lattice of struts, but the model is for atoms: train one on "
                "lattices alone"
            )
    return make_items(frames, elements, cutoff)


def predict(
    model: TensorModel,
    structures: Sequence[Frame],
    *,
    batch_size: int = 16,
    dtype: str = "float32",
    device: str | None = None,
) -> Answers:
    """The tensors of structures.

    Args:
        model: it is not changed.
        structures: molecules, crystals, or lattices of struts.
        batch_size: structures at a time.
        dtype: 'float32' or 'float64'.
        device: None for JAX's default.

    Returns:
        By name, float64: [3, ...], or [n, 3, ...] for a tensor of each atom.

    Raises:
        InputError: an unknown element, coincident atoms, or a structure that cannot have one of
            the tensors, such as a dipole where it is periodic.
    """
    for frame in structures:
        for name, kind in model.kinds:
            check_structure(kind, frame, name)
    items = items_of(structures, model.elements, model.cutoff, struts=model.struts)
    place, precision = find_device(device), find_dtype(dtype)
    loader = Loader(
        items, batch_size, reference_energy=lambda species: 0.0, shuffle=False, dtype=precision
    )
    answers: dict[int, dict[str, np.ndarray]] = {}
    with computing(place, double=dtype == "float64", what=f"{batch_size} structures at a time"):
        graphdef, params = nnx.split(model)
        params = jax.tree.map(lambda x: np.asarray(x).astype(precision), params)
        for indices, (graph, _) in zip(loader.order(0), loader.batches(0), strict=True):
            found = jax.device_get(_answer(graphdef, params, graph))
            start = 0
            for g, i in enumerate(indices):
                atoms = slice(start, start + items[i].num_atoms)
                start = atoms.stop
                answers[int(i)] = {
                    name: np.asarray(found[name][atoms if kind.per_atom else g], np.float64)
                    for name, kind in model.kinds
                }
    return [answers[i] for i in range(len(items))]


@functools.partial(jax.jit, static_argnames=("graphdef",))
def _answer(graphdef: Any, weights: Any, graph: AtomGraph) -> dict[str, jax.Array]:
    return nnx.merge(graphdef, weights)(graph)


def mean_label(
    name: str, kind: TensorKind, training: Iterable[Frame], frames: Iterable[Frame]
) -> Answers:
    """What one says who knows only the mean label: of structures, or of each element's atoms.

    Elements that no training label has get zero.
    """
    labels: dict[int, list[np.ndarray]] = {}
    for frame in training:
        label = frame.tensors.get(name)
        if label is None:
            continue
        pairs = zip(frame.numbers, label, strict=True) if kind.per_atom else [(0, label)]
        for z, tensor in pairs:
            labels.setdefault(int(z), []).append(tensor)
    means = {z: np.mean(tensors, axis=0) for z, tensors in labels.items()}
    zero = np.zeros(kind.shape)
    return [
        {
            name: np.stack([means.get(int(z), zero) for z in frame.numbers])
            if kind.per_atom
            else means.get(0, zero)
        }
        for frame in frames
    ]


def errors(name: str, frames: Sequence[Frame], answers: Answers) -> dict[str, float]:
    """MAE and RMSE over components in the unit of the label, and the mean relative error.

    The relative error of a structure is |error| / |label|, Frobenius norms over all its components.
    Structures without the label take no part.
    """
    pairs = [
        (answer[name], frame.tensors[name])
        for frame, answer in zip(frames, answers, strict=True)
        if name in frame.tensors
    ]
    gaps = np.concatenate([(found - label).ravel() for found, label in pairs])
    norms = [(np.linalg.norm(found - label), np.linalg.norm(label)) for found, label in pairs]
    return {
        "mae": float(np.abs(gaps).mean()),
        "rmse": float(np.sqrt(np.mean(gaps**2))),
        "relative": float(np.mean([gap / norm for gap, norm in norms if norm])),
    }


def spread(name: str, kind: TensorKind, frames: Sequence[Frame]) -> float:
    """Root mean square deviation of the labels from their mean, see `mean_label`."""
    return errors(name, frames, mean_label(name, kind, frames, frames))["rmse"]
