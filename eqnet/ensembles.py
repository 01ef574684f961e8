"""Ensembles by name: the options each has, their ranges, and the integrator of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from eqnet.barostat import FREEDOM, barostat
from eqnet.errors import InputError
from eqnet.motion import Array, Integrator, Verlet
from eqnet.thermostats import Bussi, Langevin, NoseHoover, links, start_chain

Ensemble = Literal["nve", "langevin", "bussi", "nose_hoover", "npt"]
Cell = Literal["isotropic", "anisotropic"]

# Options of each with their defaults; None has to be given.
_BATH = {"temperature": None, "thermostat_time": 100.0}
_CHAIN = {**_BATH, "chain_length": 3}
OPTIONS: dict[str, dict[str, Any]] = {
    "nve": {},
    "langevin": {"temperature": None, "friction": 0.01},
    "bussi": _BATH,
    "nose_hoover": _CHAIN,
    "npt": {**_CHAIN, "pressure": 0.0, "barostat_time": 1000.0, "cell": "isotropic"},
}
CONSERVING = tuple(name for name in OPTIONS if name != "langevin")  # keep a momentum of zero


def ensemble_options(ensemble: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of an ensemble: those given (not None), and defaults.

    Raises:
        InputError: unknown ensemble; an option that has no effect there, is missing, or is outside
            its range.
    """
    if ensemble not in OPTIONS:
        raise InputError(f"ensemble {ensemble!r} is unknown, choose {' or '.join(OPTIONS)}")
    chosen = {name: value for name, value in given.items() if value is not None}
    for name in chosen:
        if name not in OPTIONS[ensemble]:
            others = " or ".join(other for other, own in OPTIONS.items() if name in own)
            raise InputError(
                f"{name} has no effect with ensemble {ensemble}: leave it out, or choose {others}"
            )
    options = {**OPTIONS[ensemble], **chosen}
    for name, value in options.items():
        _check(ensemble, name, value)
    return options


def _check(ensemble: str, name: str, value: Any) -> None:
    if name == "temperature":
        least = 0 if ensemble == "langevin" else np.nextafter(0, 1)
        if value is None or not least <= value < np.inf:
            bound = "of 0 K or more" if ensemble == "langevin" else "above 0 K"
            raise InputError(f"{ensemble} needs a temperature {bound}, not {value}")
    elif name == "friction" and not 0 <= value < np.inf:
        raise InputError(f"friction must be 0 or more (1/fs), not {value}")
    elif name in ("thermostat_time", "barostat_time") and not 0 < value < np.inf:
        raise InputError(f"{name} must be a positive number of fs, not {value}")
    elif name == "chain_length" and not 1 <= value <= 20:
        raise InputError(f"chain_length must be from 1 to 20, not {value}")
    elif name == "pressure" and not np.isfinite(value):
        raise InputError(f"pressure must be a number of GPa, not {value}")
    elif name == "cell" and value not in FREEDOM:
        raise InputError(f"cell {value!r} is unknown, choose {' or '.join(FREEDOM)}")


def make_integrator(
    ensemble: str, time_step: float, options: Mapping[str, Any], freedom: np.ndarray, keys: Array
) -> tuple[Integrator, Any]:
    """The integrator and the bath to begin with, on the host.

    Args:
        ensemble: its name.
        time_step: in ASE's units, as are all `options`; the temperature is k T in eV.
        options: those of `ensemble_options`.
        freedom: degrees of freedom of each structure, [S].
        keys: random keys of the structures, [S].
    """
    step = np.float64(time_step)
    if ensemble == "nve":
        return Verlet(step), ()
    energy = np.full(len(freedom), float(options["temperature"]))
    no_heat = np.zeros(len(freedom))
    if ensemble == "langevin":
        return Langevin(step, np.float64(options["friction"]), energy, keys), no_heat
    damping = options["thermostat_time"]
    if ensemble == "bussi":
        return Bussi(step, np.float64(damping), energy, keys), no_heat
    if ensemble == "nose_hoover":
        target, length = freedom * energy, options["chain_length"]
        chain = links(target, target * damping**2, energy, damping, length)
        return NoseHoover(step, chain), start_chain(len(freedom), length)
    others = {name: value for name, value in options.items() if name != "temperature"}
    return barostat(time_step, energy, freedom, **others)
