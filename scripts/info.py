"""`eqnet info model.eqnet`: what is in a model file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from rich.console import Console

UNITS = {"energy": "meV", "energy_per_atom": "meV/atom", "forces": "meV/A", "stress": "meV/A^3"}


@dataclass(frozen=True)
class InfoOptions:
    """What is in a model file: model, elements, energies, training, versions."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Model file, as `eqnet train` writes it."""
    json: bool = False
    """Print everything as JSON."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    from eqnet.scripts.command_line import parse

    options = parse(InfoOptions, sys.argv[1:] if argv is None else argv, command="info")
    from eqnet.model_file import read_info

    info = read_info(options.model)
    if options.json:
        print(json.dumps(info, indent=1))
        return 0
    from rich.console import Console

    _show(Console(soft_wrap=True), info)
    return 0


def _show(console: Console, info: dict[str, Any]) -> None:
    """Tables of the file, its model, its elements and its training."""
    console.print(info["file"], style="bold", markup=False)
    general = {
        "model": info["model"],
        "parameters": f"{info['num_parameters']} in {len(info['weights'])} arrays, {info['dtype']}",
        **_settings(info),
        "structures with answers": info["num_examples"],
        "uncertainty": "yes" if info["uncertainty"] else "no",
        "size": f"{info['bytes'] / 1e6:.2f} MB, format {info['format']}",
        "written by": f"eqnet {info['eqnet']}, "
        + ", ".join(f"{name} {number}" for name, number in info["versions"].items()),
        "SHA-256": info["sha256"],
    }
    training = dict(info["training"])
    equivariance, nve = training.pop("equivariance", None), training.pop("nve", None)
    _pairs(console, "", general.items())
    if "potential" in info:
        _elements(console, info["potential"])
    else:
        _pairs(console, "tensors", _tensors(info["tensors"]))
    _pairs(console, f"options of {info['model']}", _options(info["config"]))
    if equivariance is not None:
        _pairs(console, "equivariance error", _equivariance(equivariance))
    if nve is not None:
        from eqnet.energy_drift import sentence

        console.print(sentence(nve), markup=False, highlight=False)
    _pairs(console, "training", flat(training))


def _settings(info: Mapping[str, Any]) -> dict[str, str]:
    """What is around the model."""
    if "tensors" in info:
        unit = "strut radii" if info.get("struts") else "A"
        return {"cutoff": f"{info['config']['r_max']:g} {unit}"}
    potential = info["potential"]
    return {
        "cutoff": f"{potential['cutoff']:g} A",
        "pair repulsion": "ZBL" if potential["pair_repulsion"] else "none",
        "units": ", ".join(f"{name} {unit}" for name, unit in info["units"].items()),
    }


def _tensors(tensors: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Symmetry, unit and properties of each."""
    for name, kind in tensors.items():
        words = [f"'{kind['symmetry']}'", f"per {kind['per']}", kind["unit"] or "no unit"]
        words += [key for key in ("zero_sum", "charges", "positive") if kind[key]]
        yield name, ", ".join(words)


def _options(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What is set: no rank of exact products, no name left empty, nothing that is overridden."""
    overridden = ("num_channels", "max_L", "parity") if config.get("hidden_irreps") else ()
    for name, value in config.items():
        if value != "" and (name, value) != ("rank", 0) and name not in overridden:
            yield name, value


def _equivariance(error: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What turning structures does to their energies and forces."""
    from eqnet.equivariance import ROUNDING
    from eqnet.metrics import number

    for name in ("energy_per_atom", "forces"):
        rmse, largest = (number(error[f"{name}_{kind}"]) for kind in ("rmse", "max"))
        yield name, f"RMSE {rmse} {UNITS[name]}, largest {largest} {UNITS[name]}"
    declared = f"{number(error['declared'])} of its output, relative, root mean square"
    yield "declared by the product", declared if error["declared"] >= ROUNDING else "none, exact"
    yield "measured on", f"{error['structures']} structures, {error['turns']} orientations each"


def _elements(console: Console, potential: dict[str, Any]) -> None:
    from rich.table import Table

    from eqnet.data.elements import symbol

    columns = ("element", "isolated atom (eV)", "shift (eV)", "scale (eV)")
    table = Table(*columns, box=None, title="elements", title_justify="left")
    keys = ("elements", "atomic_energies", "shift", "scale")
    for z, *values in zip(*(potential[key] for key in keys), strict=True):
        table.add_row(symbol(z), *(f"{value:.6f}" for value in values))
    console.print()
    console.print(table)


def _pairs(console: Console, title: str, rows: Any) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None, title=title or None, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        table.add_row(name, escape(text))
    if table.rows:
        console.print()
        console.print(table)


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Rows of nested values with dotted names; errors with their units."""
    for name, value in values.items():
        if name == "config_types" and len(value) == 1:  # the same numbers again
            continue
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
            continue
        quantity, _, measure = name.rpartition("_")
        if measure in ("mae", "rmse") and quantity in UNITS and isinstance(value, (int, float)):
            yield prefix + name, f"{value:.3f} {UNITS[quantity]}"
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield prefix + name, text


if __name__ == "__main__":
    from eqnet.scripts import run

    sys.exit(run("info"))
