"""What model files are made of: weights by name, a configuration, and a model built from both.

Weights are plain arrays whose names, shapes and values are checked against a model built from the
configuration, whose values are checked against the types of its fields.
"""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from eqnet import archive
from eqnet.device import refuse_fork
from eqnet.errors import InputError, reason

#: Written by this version; 1 is read too: it has no uncertainty.
FORMAT = 2
READABLE = (1, 2)
MEGABYTE = 2**20
#: Members of the archive and the largest size in bytes that is read.
MEMBERS = {
    "config.json": 16 * MEGABYTE,
    "weights.safetensors": 16384 * MEGABYTE,
    "examples.json": 256 * MEGABYTE,
    "uncertainty.safetensors": 1024 * MEGABYTE,
}
OPTIONAL = ("uncertainty.safetensors",)
#: What a file has by the part of its description that says so, and how to open it.
KINDS = {
    "potential": "energies and forces: open it with eqnet.load or EqnetCalculator",
    "tensors": "tensors, not energies: open it with eqnet.load_tensors or `eqnet tensors`",
}

#: The largest values of options of models that are counted in loops, and of all others; a layer has
#: at least one array of weights.
LARGEST = {"max_L": 11, "max_ell": 11, "m_max": 11, "correlation": 11, "num_cutoff_basis": 100}
MOST = 10**6

Model = TypeVar("Model", bound=nnx.Module)


def open_file(path: Path, parts: Mapping[str, type]) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The members of a model file, and its description with these parts known to be there.

    Raises:
        InputError: no such file, damaged or foreign, of another format, or lacks a part.
    """

    def check_format(data: bytes) -> None:
        description = archive.from_json(path, "config.json", data)
        found = description.get("format") if isinstance(description, dict) else None
        if type(found) is not int:
            raise InputError(f"{path}: not an eqnet model file, config.json has no format number")
        if found not in READABLE:
            raise InputError(
                f"{path}: format {found} of a model file, written by eqnet "
                f"{str(description.get('eqnet', '(unknown)'))[:40]}, but this is eqnet "
                f"{version('eqnet')} which reads formats "
                f"{' and '.join(map(str, READABLE))}; use that version or train again"
            )

    members = archive.read(path, MEMBERS, ("config.json", check_format), OPTIONAL)
    description = archive.from_json(path, "config.json", members["config.json"])
    for kind, words in KINDS.items():
        if kind in description and parts.keys() & KINDS.keys() - {kind}:
            raise InputError(f"{path}: this file has {words}")
    for key, kind in {"model": str, "config": dict, "training": dict, **parts}.items():
        if not isinstance(description.get(key), kind):
            raise InputError(f"{path}: config.json has no valid {key!r}")
    return members, description


def model_of(
    path: Path, description: Mapping[str, Any], weights: Mapping[str, np.ndarray]
) -> tuple[str, type, Any]:
    """Name and class of the model of a file, and its configuration.

    Raises:
        InputError: there is no such model, or its configuration is not valid.
    """
    from eqnet.models import MODELS

    name = description["model"]
    if name not in MODELS:
        raise InputError(f"{path}: model {name!r} is unknown, this eqnet has {', '.join(MODELS)}")
    config_class, model_class = MODELS[name]
    config = config_from(path, config_class, description["config"])
    largest = {**LARGEST, "num_interactions": len(weights)}
    for option, value in vars(config).items():
        most = largest.get(option, MOST)
        if isinstance(value, int) and value > most:  # its shapes alone might never end
            raise InputError(f"{path}: config.json has {option} {value}, and {most} is the most")
    return name, model_class, config


def weights_of(model: nnx.Module) -> dict[str, np.ndarray]:
    """Weights by name, the path in the model joined by dots."""
    arrays = {}
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        if not isinstance(leaf, nnx.Param):
            raise TypeError(f"{_name(path)} is no nnx.Param: a model file would lose it")
        arrays[_name(path)] = np.array(leaf[...], order="C")
    return arrays


def _name(path: Sequence[Any]) -> str:
    return ".".join(str(part) for part in path)


def finite_weights(model: nnx.Module) -> dict[str, np.ndarray]:
    """`weights_of`, to be saved.

    Raises:
        ValueError: a weight is not finite.
    """
    weights = weights_of(model)
    for name, array in weights.items():
        if not np.isfinite(array).all():
            raise ValueError(f"weight {name} is not finite: the model is not saved")
    return weights


def origin(weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What a description says of its weights and of the versions that made them."""
    return {
        "dtype": str(np.result_type(np.float32, *weights.values())),
        "num_parameters": sum(array.size for array in weights.values()),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("jax", "flax", "numpy", "e3nn-jax")},
        },
    }


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


def to_json(value: Any) -> bytes:
    """Text; numpy becomes lists and numbers, a number that is not finite null."""
    return (json.dumps(_plain(value), indent=1, allow_nan=False) + "\n").encode()


def weights_from(
    path: Path, data: bytes, member: str = "weights.safetensors"
) -> dict[str, np.ndarray]:
    """The arrays of a file's member, by name.

    Raises:
        InputError: it is damaged.
    """
    try:
        return safetensors.numpy.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path}: {member} is damaged ({reason(error)})") from None


def built(
    path: Path,
    name: str,
    construct: Callable[[str], Model],
    weights: Mapping[str, np.ndarray],
    dtype: str,
    method: str,
) -> Model:
    """A model with the weights of a file: first its shapes only, then the weights put in.

    Args:
        path: of the file, for messages.
        name: of the model, for messages.
        construct: method -> the model with any weights.
        weights: by name.
        dtype: their precision in the model.
        method: of its products.

    Raises:
        InputError: the configuration is no such model's, the weights do not fit, or the model has
            no such method.
    """
    refuse_fork()
    try:
        shapes = nnx.eval_shape(lambda: construct("default"))
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, ArithmeticError, MemoryError) as error:
        raise InputError(
            f"{path}: config.json does not describe a {name} model ({reason(error)})"
        ) from None
    if method != "default":
        try:
            shapes = nnx.eval_shape(lambda: construct(method))
        except ValueError as error:
            raise InputError(f"{path}: {error}") from None
    graphdef, state = nnx.split(shapes)
    leaves = nnx.to_flat_state(state)
    expected = {_name(where): tuple(leaf.get_value().shape) for where, leaf in leaves}
    check_weights(path, expected, weights)
    filled = [
        (where, leaf.replace(jnp.asarray(weights[_name(where)].astype(dtype))))
        for where, leaf in leaves
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


def check_weights(
    path: Path,
    expected: Mapping[str, tuple[int, ...]],
    weights: Mapping[str, np.ndarray],
    member: str = "weights.safetensors",
) -> None:
    """Refuse weights that are not those of the model.

    Raises:
        InputError: naming the first that is missing, unknown, of another shape or not finite.
    """
    for name in sorted({*expected, *weights}):
        if name not in weights:
            raise InputError(f"{path}: {member} lacks {name} {expected[name]}")
        if name not in expected:
            raise InputError(f"{path}: {member} has {name}, which the model does not know")
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


def config_from(path: Path, config_class: type, values: dict[str, Any]) -> Any:
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
        raise InputError(f"{path}: config.json is not valid ({reason(error)})") from None


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
