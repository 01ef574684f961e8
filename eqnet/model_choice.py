"""The model of a run: which one, and its configuration from the options that were set."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from eqnet.errors import InputError
from eqnet.options import TrainOptions

# options of the model that no Config has
NOT_OF_THE_MODEL = ("model", "preset", "method", "pair_repulsion")


def config_class_of(name: str) -> type:
    """The configuration of a model by its name on the command line."""
    from eqnet.models import MODELS

    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(MODELS)}"
        raise InputError(f"there is no --model {name}; {hint}")
    return MODELS[name][0]


def model_options(options: TrainOptions) -> dict[str, Any]:
    """Options of the model that were set, by hand or by the preset.

    Raises:
        InputError: the model is unknown, or does not have one of them or the preset.
    """
    config_class = config_class_of(options.model.model)
    known = {field.name for field in dataclasses.fields(config_class)}
    chosen = preset_of(config_class, options.model.preset)
    for field in dataclasses.fields(options.model):
        value = getattr(options.model, field.name)
        if field.name in NOT_OF_THE_MODEL or value is None:
            continue
        if field.name not in known:
            raise InputError(
                f"--{field.name} has no effect on --model {options.model.model}: leave it out"
            )
        chosen[field.name] = value
    return chosen


def preset_of(config_class: type, name: str | None) -> dict[str, Any]:
    """The values of a preset, `config_class.PRESETS[name]`; none without a name."""
    if name is None:
        return {}
    presets = config_class.PRESETS
    if name not in presets:
        raise InputError(f"there is no --preset {name}; there are {', '.join(presets)}")
    return dict(presets[name])


def make_config(
    config_class: type, values: dict[str, Any], *, elements: tuple[int, ...], neighbors: float
) -> Any:
    """The configuration of the model; mistakes in irreps and names become InputErrors.

    Args:
        config_class: of the model.
        values: of its options.
        elements: atomic numbers, ascending.
        neighbors: of an atom on average, for models that divide by it.
    """
    values = values | {"elements": elements}
    if any(field.name == "avg_num_neighbors" for field in dataclasses.fields(config_class)):
        values["avg_num_neighbors"] = neighbors
    try:
        config = config_class(**values)
        config.irreps()
    except (ValueError, KeyError) as error:
        text = str(error.args[0] if error.args else error)
        raise InputError(f"the model cannot be made: {text}") from None
    return config


def default_of(config_class: type, name: str) -> Any:
    """Default of a field."""
    return next(f.default for f in dataclasses.fields(config_class) if f.name == name)
