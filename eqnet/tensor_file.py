"""The file of a trained tensor model: like `eqnet.model_file`, tensors instead of energies.

    model = eqnet.load_tensors("dipole.eqnet")
    eqnet.tensor_evaluation.predict(model, frames)

Opening it computes some structures with known answers again and refuses the model when they differ.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from flax import nnx

from eqnet import archive
from eqnet.data.check import check_cell
from eqnet.data.frame import Frame
from eqnet.data.tensor_labels import TensorKind
from eqnet.errors import InputError, reason
from eqnet.model_parts import (
    FORMAT,
    built,
    config_from,
    finite_weights,
    model_of,
    open_file,
    origin,
    to_json,
    weights_from,
)
from eqnet.replay import TOLERANCE
from eqnet.tensor_evaluation import predict
from eqnet.tensor_model import Nested, TensorModel, needed_irreps

#: What a lattice of struts has besides atoms, see `eqnet.data.struts`.
LATTICE = ("struts", "strut_radius")


def save(
    path: str | os.PathLike[str],
    model: TensorModel,
    *,
    model_name: str,
    config: Any,
    training: Mapping[str, Any],
    examples: Sequence[Frame],
) -> None:
    """Write the file atomically.

    Args:
        path: where; folders are made when absent.
        model: the trained one.
        model_name: key of its backbone in `eqnet.models.MODELS`.
        config: of the backbone.
        training: plain values worth keeping: errors, settings.
        examples: structures whose answers are computed in float64 and replayed by `load`.

    Raises:
        ValueError: a weight is not finite.
    """
    weights = finite_weights(model)
    tensors = {
        name: {**dataclasses.asdict(kind), "scale": scale, "shift": shift}
        for (name, kind), scale, shift in zip(model.kinds, model.scale, model.shift, strict=True)
    }
    description = {
        "format": FORMAT,
        "eqnet": version("eqnet"),
        "model": model_name,
        "config": dataclasses.asdict(config),
        "tensors": tensors,
        "channels": model.channels,
        "struts": model.struts,
        "training": training,
        **origin(weights),
    }
    answers = predict(model, examples, dtype="float64")
    entries = [
        {
            "numbers": frame.numbers,
            "positions": frame.positions,
            "cell": frame.cell,
            "pbc": [bool(axis) for axis in frame.pbc],
            "info": {key: frame.info[key] for key in LATTICE if key in frame.info},
            "tensors": answer,
        }
        for frame, answer in zip(examples, answers, strict=True)
    ]
    members = {
        "config.json": to_json(description),
        "weights.safetensors": safetensors.numpy.save(weights),
        "examples.json": to_json(entries),
    }
    archive.write(Path(path), members)


def load(
    path: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    method: str = "default",
    verify: bool = True,
) -> TensorModel:
    """Open the file of a tensor model.

    Args:
        path: the file.
        dtype: 'float32' or 'float64', the precision of the weights.
        method: how the products of the backbone are computed, as for `eqnet.load`.
        verify: compute the examples in the file again and refuse the model when they differ.

    Raises:
        InputError: no such file, another format version, a damaged or foreign file, one of a
            potential, or replayed answers that differ by more than `eqnet.replay.TOLERANCE` of
            their size.
    """
    if dtype not in TOLERANCE:
        raise InputError(f"dtype {dtype!r}: choose from {', '.join(TOLERANCE)}")
    path = Path(path)
    members, description = open_file(path, {"tensors": dict, "channels": int, "struts": bool})
    weights = weights_from(path, members["weights.safetensors"])
    name, model_class, config = model_of(path, description, weights)
    kinds, scale, shift = _tensors(path, description["tensors"], len(config.elements))

    def construct(method: str) -> TensorModel:
        rngs = nnx.Rngs(0)
        return TensorModel(
            model_class(config, rngs=rngs, method=method, needed=needed_irreps(kinds)),
            kinds,
            elements=config.elements,
            cutoff=config.r_max,
            scale=scale,
            shift=shift,
            channels=description["channels"],
            struts=description["struts"],
            rngs=rngs,
        )

    with jax.enable_x64(dtype == "float64"):
        model = built(path, f"tensor {name}", construct, weights, dtype, method)
    if verify:
        _replay(model, path, members["examples.json"], dtype)
    return model


def _tensors(
    path: Path, entries: Mapping[str, Any], num_elements: int
) -> tuple[dict[str, TensorKind], dict[str, float], dict[str, Nested]]:
    """Kinds, scales and shifts by name."""
    kinds, scales, shifts = {}, {}, {}
    for name, entry in entries.items():
        if not isinstance(entry, dict) or not {"scale", "shift"} <= set(entry):
            raise InputError(f"{path}: config.json, tensors: {name} lacks its scale or shift")
        values = {key: value for key, value in entry.items() if key not in ("scale", "shift")}
        kind = kinds[name] = config_from(path, TensorKind, values)
        try:
            scale = float(entry["scale"])
            shift = np.zeros(0) if kind.positive else np.array(entry["shift"], np.float64)
        except (TypeError, ValueError):
            raise InputError(f"{path}: config.json, tensors: {name} has no numbers") from None
        wrong = not kind.positive and shift.shape != (num_elements, *kind.shape)
        if wrong or not np.isfinite([scale, *shift.ravel()]).all():
            raise InputError(
                f"{path}: config.json, tensors: the shift of {name} must be finite and of shape "
                f"{(num_elements, *kind.shape)}"
            )
        scales[name], shifts[name] = scale, _nested(shift.tolist())
    return kinds, scales, shifts


def _nested(values: Any) -> Any:
    return tuple(map(_nested, values)) if isinstance(values, list) else values


def _replay(model: TensorModel, path: Path, data: bytes, dtype: str) -> None:
    """Compute the examples again.

    Raises:
        InputError: they cannot be read, or differ.
    """
    try:
        entries = json.loads(data)
        frames = [
            Frame(
                np.array(entry["numbers"], int),
                np.array(entry["positions"], float).reshape(-1, 3),
                np.array(entry["cell"], float).reshape(3, 3),
                np.array(entry["pbc"], bool).reshape(3),
                file=str(path),
                index=index,
                info={key: entry["info"][key] for key in LATTICE if key in entry["info"]},
            )
            for index, entry in enumerate(entries)
        ]
        for frame in frames:
            check_cell(frame.cell, frame.pbc, f"example {frame.index}")
        wanted = [
            {name: np.array(entry["tensors"][name], float) for name, _ in model.kinds}
            for entry in entries
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: examples.json is damaged ({reason(error)})") from None
    found = predict(model, frames, dtype=dtype)
    for (name, _), scale in zip(model.kinds, model.scale, strict=True):
        # answers that symmetry makes zero are right up to the rounding of an atom's
        size = max(scale, *(np.abs(answer[name]).max() for answer in wanted))
        for index, (one, other) in enumerate(zip(found, wanted, strict=True)):
            same = one[name].shape == other[name].shape
            gap = np.abs(one[name] - other[name]).max() / size if same else np.inf
            if not gap <= TOLERANCE[dtype]:  # NaN disagrees
                raise InputError(
                    f"{path}: example {index} gives another {name} here than where the model was "
                    f"trained (relative difference {gap:.1e}, {dtype} allows "
                    f"{TOLERANCE[dtype]:.0e}); try another device, method or dtype"
                )
