"""The model file `name.eqnet`: weights, description and a few structures with their answers.

An archive (`eqnet.archive`) of these members:

    config.json           format number, model, its config, elements, cutoff, E0s, units, training
    weights.safetensors   one array per parameter, named by its path ("model.layers.0.kernel")
    examples.json         a few structures with their answers in float64, replayed on opening
    uncertainty.safetensors   how sure it is of an answer, see `eqnet.uncertainty`; not in all files
    manifest.json         SHA-256 of each of the other members

The format cannot express code: model classes come from the closed table `eqnet.models.MODELS`,
weights are plain arrays whose names, shapes and values are checked against a model built from the
config.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy
from flax import nnx

from eqnet import archive
from eqnet.errors import InputError
from eqnet.files import digest
from eqnet.last_layer import num_features
from eqnet.model_parts import (
    FORMAT,
    KINDS,
    built,
    check_weights,
    finite_weights,
    model_of,
    open_file,
    origin,
    to_json,
    weights_from,
)
from eqnet.potential import Potential
from eqnet.replay import TOLERANCE, Example, replay
from eqnet.replay import from_json as examples_from_json
from eqnet.replay import to_json as examples_to_json
from eqnet.uncertainty import Uncertainty

if TYPE_CHECKING:
    from eqnet.data.read import Frame
    from eqnet.evaluation import Answer

_SETTINGS = ("elements", "cutoff", "atomic_energies", "scale", "shift", "pair_repulsion")
UNITS = {
    "energy": "eV",
    "length": "angstrom",
    "forces": "eV/angstrom",
    "stress": "eV/angstrom^3",
}


def save(
    path: str | os.PathLike[str],
    potential: Potential,
    *,
    model_name: str,
    config: Any,
    training: Mapping[str, Any],
    examples: Sequence[tuple[Frame, Answer]],
    uncertainty: Uncertainty | None = None,
) -> None:
    """Write a model file atomically: `path` holds the old file or the new one, never a part.

    Args:
        path: where; folders are made when absent.
        potential: the trained potential; weights are kept in the precision they have.
        model_name: its key in `eqnet.models.MODELS`.
        config: the frozen dataclass the model was built from.
        training: plain values: errors, fingerprint of the data, settings worth keeping.
        examples: structures with answers computed in float64, replayed by `load`.
        uncertainty: of the potential, see `eqnet.uncertainty.calibrate`.

    Raises:
        ValueError: a weight is not finite.
    """
    weights = finite_weights(potential)
    description = {
        "format": FORMAT,
        "eqnet": version("eqnet"),
        "model": model_name,
        "config": dataclasses.asdict(config),
        "potential": {name: getattr(potential, name) for name in _SETTINGS},
        "units": UNITS,
        "training": training,
        **origin(weights),
    }
    answered = [
        Example(frame, a.energy, a.forces, a.node_energy, a.stress) for frame, a in examples
    ]
    members = {
        "config.json": to_json(description),
        "weights.safetensors": safetensors.numpy.save(weights),
        "examples.json": examples_to_json(answered),
    }
    if uncertainty is not None:
        members["uncertainty.safetensors"] = safetensors.numpy.save(uncertainty.arrays())
    archive.write(Path(path), members)


def load(
    path: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    method: str = "default",
    verify: bool = True,
) -> Potential:
    """Open a model file.

    Args:
        path: the file.
        dtype: 'float32' or 'float64', the precision of weights and messages.
        method: which algorithm computes the model's products, any reads any file: 'default', 'auto'
            for the fastest on this device (timed once, which takes some seconds), or a name.
        verify: replay the examples in the file and refuse the model when it disagrees.

    Raises:
        InputError: no such file, another format version, a damaged or foreign file, weights that do
            not fit the model, or replayed answers that differ (see `TOLERANCE`).
    """
    opened = open_model(path, dtype=dtype, method=method, examples=verify)
    if verify:
        replay(opened.potential, opened.examples, dtype=dtype, path=Path(path))
    return opened.potential


class Opened(NamedTuple):
    """What is in a model file."""

    potential: Potential
    examples: Sequence[Example]
    uncertainty: Uncertainty | None


def open_model(path: str | os.PathLike[str], *, dtype: str, method: str, examples: bool) -> Opened:
    """Open a model file without a replay; errors as of `load`. Examples are read where wanted."""
    if dtype not in TOLERANCE:
        raise InputError(f"dtype {dtype!r}: choose from {', '.join(TOLERANCE)}")
    path = Path(path)
    members, description = open_file(path, {"potential": dict})
    weights = weights_from(path, members["weights.safetensors"])
    with jax.enable_x64(dtype == "float64"):
        potential = _build(path, description, weights, dtype, method)
    return Opened(
        potential,
        _examples(path, members) if examples else (),
        _uncertainty(path, members, potential),
    )


def read_info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What is in a model file, without building the model: config.json and sizes.

    Adds `file`, `bytes`, `sha256` (of the whole file), `weights` (name -> shape) and
    `num_examples` (number of structures with answers) and `uncertainty` (whether it is there).
    """
    path = Path(path)
    members, description = open_file(path, {})
    if not any(isinstance(description.get(kind), dict) for kind in KINDS):
        raise InputError(f"{path}: config.json has neither a potential nor tensors")
    weights = weights_from(path, members["weights.safetensors"])
    examples = archive.from_json(path, "examples.json", members["examples.json"])
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "sha256": digest(path),
        **description,
        "weights": {name: list(array.shape) for name, array in weights.items()},
        "num_examples": len(examples),
        "uncertainty": "uncertainty.safetensors" in members,
    }


def _examples(path: Path, members: Mapping[str, bytes]) -> list[Example]:
    entries = archive.from_json(path, "examples.json", members["examples.json"])
    return examples_from_json(path, entries)


def _uncertainty(
    path: Path, members: Mapping[str, bytes], potential: Potential
) -> Uncertainty | None:
    name = "uncertainty.safetensors"
    if name not in members:
        return None
    arrays = weights_from(path, members[name], name)
    shapes = Uncertainty.shapes(len(potential.elements), num_features(potential))
    check_weights(path, shapes, arrays, name)
    return Uncertainty(**{key: array.astype(np.float64) for key, array in arrays.items()})


def _build(
    path: Path, description: dict[str, Any], weights: dict[str, np.ndarray], dtype: str, method: str
) -> Potential:
    """The potential from its description, shapes only, then the weights put in."""
    name, model_class, config = model_of(path, description, weights)
    settings = _settings(path, description["potential"])
    for inner, outer in (("elements", "elements"), ("r_max", "cutoff")):
        of_model, of_potential = getattr(config, inner), settings[outer]
        if of_model != of_potential:
            raise InputError(
                f"{path}: config.json contradicts itself, {inner} of the model is {of_model} but "
                f"{outer} of the potential is {of_potential}"
            )

    def construct(method: str) -> Potential:
        return Potential(model_class(config, rngs=nnx.Rngs(0), method=method), **settings)

    return built(path, name, construct, weights, dtype, method)


def _settings(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `Potential` besides the model."""

    def wrong(what: str) -> InputError:
        return InputError(f"{path}: config.json, potential: {what}")

    def number(value: Any) -> bool:
        return type(value) in (int, float)

    elements = values.get("elements")
    if not isinstance(elements, list) or not elements:
        raise wrong("elements is no list of atomic numbers")
    if not all(type(z) is int and 0 < z < 119 for z in elements) or elements != sorted(
        set(elements)
    ):
        raise wrong("elements must be ascending atomic numbers from 1 to 118")
    settings: dict[str, Any] = {"elements": tuple(elements)}
    for key in ("atomic_energies", "scale", "shift"):
        entry = values.get(key)
        if (
            not isinstance(entry, list)
            or len(entry) != len(elements)
            or not all(number(value) for value in entry)
        ):
            raise wrong(f"{key} must be {len(elements)} numbers, one per element")
        settings[key] = tuple(float(value) for value in entry)
    if not number(values.get("cutoff")) or not 0 < values["cutoff"] < 1000:
        raise wrong("cutoff must be a positive number")
    if type(values.get("pair_repulsion")) is not bool:
        raise wrong("pair_repulsion must be true or false")
    return settings | {
        "cutoff": float(values["cutoff"]),
        "pair_repulsion": values["pair_repulsion"],
    }
