"""The model file `name.eqnet`: weights, description and a few structures with their answers.

An archive (`eqnet.archive`) of four members:

    config.json           format number, model, its config, elements, cutoff, E0s, units, training
    weights.safetensors   one array per parameter, named by its path ("model.layers.0.kernel")
    examples.json         a few structures with their answers in float64, replayed on opening
    manifest.json         SHA-256 of each of the other members

The format cannot express code: model classes come from the closed table `eqnet.models.MODELS`,
weights are plain arrays whose names, shapes and values are checked against a model built from the
config.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from eqnet import archive
from eqnet.errors import InputError
from eqnet.files import digest
from eqnet.potential import Potential
from eqnet.replay import TOLERANCE, Example, replay
from eqnet.replay import from_json as examples_from_json
from eqnet.replay import to_json as examples_to_json

if TYPE_CHECKING:
    from eqnet.data.read import Frame
    from eqnet.evaluation import Answer

FORMAT = 1
MEGABYTE = 2**20
#: Members of the archive and the largest size in bytes that is read.
MEMBERS = {
    "config.json": 16 * MEGABYTE,
    "weights.safetensors": 16384 * MEGABYTE,
    "examples.json": 256 * MEGABYTE,
}
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
) -> None:
    """Write a model file atomically: `path` holds the old file or the new one, never a part.

    Args:
        path: where; folders are made when absent.
        potential: the trained potential; weights are kept in the precision they have.
        model_name: its key in `eqnet.models.MODELS`.
        config: the frozen dataclass the model was built from.
        training: plain values: errors, fingerprint of the data, settings worth keeping.
        examples: structures with answers computed in float64, replayed by `load`.

    Raises:
        ValueError: a weight is not finite.
    """
    weights = weights_of(potential)
    for name, array in weights.items():
        if not np.isfinite(array).all():
            raise ValueError(f"weight {name} is not finite: the model is not saved")
    description = {
        "format": FORMAT,
        "eqnet": version("eqnet"),
        "model": model_name,
        "config": dataclasses.asdict(config),
        "potential": {name: getattr(potential, name) for name in _SETTINGS},
        "units": UNITS,
        "dtype": str(np.result_type(np.float32, *weights.values())),
        "num_parameters": sum(array.size for array in weights.values()),
        "training": training,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("jax", "flax", "numpy", "e3nn-jax")},
        },
    }
    answered = [
        Example(frame, a.energy, a.forces, a.node_energy, a.stress) for frame, a in examples
    ]
    members = {
        "config.json": _to_json(description),
        "weights.safetensors": safetensors.numpy.save(weights),
        "examples.json": examples_to_json(answered),
    }
    archive.write(Path(path), members)


def weights_of(potential: Potential) -> dict[str, np.ndarray]:
    """Weights by name, the path in the model joined by dots."""
    arrays = {}
    for path, leaf in nnx.to_flat_state(nnx.state(potential)):
        if not isinstance(leaf, nnx.Param):
            raise TypeError(f"{_name(path)} is no nnx.Param: a model file would lose it")
        arrays[_name(path)] = np.array(leaf[...], order="C")
    return arrays


def _name(path: Sequence[Any]) -> str:
    return ".".join(str(part) for part in path)


def _plain(value: Any) -> Any:
    """What JSON can hold: numpy becomes lists and numbers, a number that is not finite null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)


def _to_json(value: Any) -> bytes:
    return (json.dumps(_plain(value), indent=1, allow_nan=False) + "\n").encode()


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
    potential, examples = load_with_examples(path, dtype=dtype, method=method, wanted=verify)
    if verify:
        replay(potential, examples, dtype=dtype, path=Path(path))
    return potential


def load_with_examples(
    path: str | os.PathLike[str], *, dtype: str, method: str, wanted: bool
) -> tuple[Potential, list[Example]]:
    """Open a model file without a replay; errors as of `load`. Examples are read where wanted."""
    if dtype not in TOLERANCE:
        raise InputError(f"dtype {dtype!r}: choose from {', '.join(TOLERANCE)}")
    path = Path(path)
    members, description = _open(path)
    with jax.enable_x64(dtype == "float64"):
        potential = _build(path, description, _weights(path, members), dtype, method)
    return potential, _examples(path, members) if wanted else []


def read_info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What is in a model file, without building the model: config.json and sizes.

    Adds `file`, `bytes`, `sha256` (of the whole file), `weights` (name -> shape) and
    `num_examples` (number of structures with answers).
    """
    path = Path(path)
    members, description = _open(path)
    weights = _weights(path, members)
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "sha256": digest(path),
        **description,
        "weights": {name: list(array.shape) for name, array in weights.items()},
        "num_examples": len(_examples(path, members)),
    }


def _open(path: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The members, and config.json with its main parts known to be there."""

    def check_format(data: bytes) -> None:
        description = archive.from_json(path, "config.json", data)
        found = description.get("format") if isinstance(description, dict) else None
        if type(found) is not int:
            raise InputError(f"{path}: not an eqnet model file, config.json has no format number")
        if found != FORMAT:
            raise InputError(
                f"{path}: format {found} of a model file, written by eqnet "
                f"{str(description.get('eqnet', '(unknown)'))[:40]}, but this is eqnet "
                f"{version('eqnet')} which reads format {FORMAT}; use that version or train again"
            )

    members = archive.read(path, MEMBERS, first=("config.json", check_format))
    description = archive.from_json(path, "config.json", members["config.json"])
    for key, kind in (("model", str), ("config", dict), ("potential", dict), ("training", dict)):
        if not isinstance(description.get(key), kind):
            raise InputError(f"{path}: config.json has no valid {key!r}")
    return members, description


def _examples(path: Path, members: Mapping[str, bytes]) -> list[Example]:
    entries = archive.from_json(path, "examples.json", members["examples.json"])
    return examples_from_json(path, entries)


def _weights(path: Path, members: Mapping[str, bytes]) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load(members["weights.safetensors"])
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path}: weights.safetensors is damaged ({error})") from None


def _build(
    path: Path, description: dict[str, Any], weights: dict[str, np.ndarray], dtype: str, method: str
) -> Potential:
    """The potential from its description, shapes only, then the weights put in."""
    from eqnet.models import MODELS

    name = description["model"]
    if name not in MODELS:
        raise InputError(f"{path}: model {name!r} is unknown, this eqnet has {', '.join(MODELS)}")
    config_class, model_class = MODELS[name]
    config = _config(path, config_class, description["config"])
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

    try:
        shapes = nnx.eval_shape(lambda: construct("default"))
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, ArithmeticError, MemoryError) as error:
        raise InputError(
            f"{path}: config.json does not describe a {name} model ({error})"
        ) from None
    if method != "default":
        try:
            shapes = nnx.eval_shape(lambda: construct(method))
        except ValueError as error:
            raise InputError(f"{path}: {error}") from None
    graphdef, state = nnx.split(shapes)
    leaves = nnx.to_flat_state(state)
    expected = {_name(where): tuple(leaf.get_value().shape) for where, leaf in leaves}
    _check_weights(path, expected, weights)
    filled = [
        (where, leaf.replace(jnp.asarray(weights[_name(where)].astype(dtype))))
        for where, leaf in leaves
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


def _check_weights(
    path: Path, expected: Mapping[str, tuple[int, ...]], weights: Mapping[str, np.ndarray]
) -> None:
    for name in sorted({*expected, *weights}):
        if name not in weights:
            raise InputError(f"{path}: weights.safetensors lacks {name} {expected[name]}")
        if name not in expected:
            raise InputError(
                f"{path}: weights.safetensors has {name}, which the model does not know"
            )
        array = weights[name]
        if array.shape != expected[name]:
            raise InputError(
                f"{path}: weight {name} has shape {array.shape}, the model wants {expected[name]}"
            )
        if array.dtype not in (np.float32, np.float64):
            raise InputError(
                f"{path}: weight {name} has type {array.dtype}, wanted float32 or float64"
            )
        if not np.isfinite(array).all():
            raise InputError(f"{path}: weight {name} is not finite (NaN or infinite); train again")


def _config(path: Path, config_class: type, values: dict[str, Any]) -> Any:
    """The model's config dataclass from JSON values, each checked against the type of its field."""
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    for name in values:
        if name not in fields:
            raise InputError(f"{path}: config.json has the option {name!r}, unknown to this eqnet")
    converted = {}
    for name, field in fields.items():
        if name not in values:
            if (
                field.default is dataclasses.MISSING
                and field.default_factory is dataclasses.MISSING
            ):
                raise InputError(f"{path}: config.json lacks the option {name!r}")
            continue
        value = _freeze(values[name])
        if not _fits(value, str(getattr(field.type, "__name__", field.type))):
            raise InputError(
                f"{path}: config.json option {name!r} is {value!r}, wanted {field.type}"
            )
        converted[name] = value
    try:
        return config_class(**converted)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: config.json is not valid ({error})") from None


def _freeze(value: Any) -> Any:
    return tuple(_freeze(item) for item in value) if isinstance(value, list) else value


def _fits(value: Any, annotation: str) -> bool:
    """Whether a JSON value suits a field annotated 'int', 'float', 'tuple[...]' and the like."""
    choices = [part.strip().split("[")[0] for part in annotation.split("|")]
    names = {
        bool: "bool",
        int: "int",
        float: "float",
        str: "str",
        tuple: "tuple",
        type(None): "None",
    }
    name = names.get(type(value), "")
    known = set(names.values())
    return (
        name in choices or (name == "int" and "float" in choices) or not known.intersection(choices)
    )


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
