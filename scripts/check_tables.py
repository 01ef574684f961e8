"""What `eqnet check` prints: one screen of tables and sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console

STYLES = {"error": "bold red", "warning": "bold yellow", "note": "cyan"}


def show(console: Console, report: Mapping[str, Any]) -> None:
    """Print a report of `eqnet check`."""
    console.print(_labels(report))
    for line in _key_lines(report):
        console.print(line, markup=False, highlight=False)
    if report["units"]["evidence"]:
        console.print(_evidence(report["units"]))
    console.print(_energies(report["E0s"], report["elements"]))
    for line in (*_structure_lines(report["neighbours"]), *_forecast_lines(report["forecast"])):
        console.print(line, markup=False, highlight=False)
    for finding in sorted(report["findings"], key=lambda f: list(STYLES).index(f["level"])):
        style = STYLES[finding["level"]]
        console.print(f"[{style}]{finding['level']}:[/] {escape(finding['text'])}", highlight=False)
    bad = sum(finding["level"] != "note" for finding in report["findings"])
    words = f"{bad} of the findings would ruin a training" if bad else "nothing speaks against it"
    if "refused" in report["forecast"]:
        bad, words = 1, "a training with these options is refused"
    console.print(f"check: {words}", style="bold red" if bad else "bold green", highlight=False)


def _labels(report: Mapping[str, Any]) -> Table:
    elements = " ".join(report["elements"])
    title = f"labels of {', '.join(report['files'].values())} ({elements})"
    table = Table(title=escape(title), title_justify="left", box=None)
    for name in ("role", "label", "key", "source"):
        table.add_column(name)
    for name in ("frames", "lowest", "highest", "mean", "std"):
        table.add_column(name, justify="right")
    table.add_column("unit")
    for row in report["labels"]:
        numbers = (f"{row[name]:.6g}" for name in ("lowest", "highest", "mean", "std"))
        words = (escape(row[name]) for name in ("role", "label", "key", "source"))
        table.add_row(*words, f"{row['frames']}/{row['of']}", *numbers, row["unit"])
    return table


def _key_lines(report: Mapping[str, Any]) -> Iterator[str]:
    for role, names in report["unused"].items():
        if names:
            yield f"not read from {report['files'][role]}: {', '.join(names)}"
    yield from (f"note: {note}" for note in report["notes"])


def _evidence(units: Mapping[str, Any]) -> Table:
    """What the units were guessed from."""
    names = ", ".join(units["guess"].values())
    title = f"units that explain the numbers: {names} ({'ours' if units['ours'] else 'NOT OURS'})"
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("evidence, 1 is expected")
    table.add_column("in our units", justify="right")
    if not units["ours"]:
        table.add_column("in these", justify="right")
    table.add_column("usual factor", justify="right")
    for row in units["evidence"]:
        values = [row["value"]] if units["ours"] else [row["value"], row["in_guess"]]
        usual = f"{math.exp(row['width']):.3g}"
        table.add_row(escape(row["what"]), *(f"{value:.3g}" for value in values), usual)
    return table


def _energies(energies: Mapping[str, Any], elements: list[str]) -> Table:
    """Reference energies in use beside fitted ones."""
    used, fitted = energies["used"], energies["fitted"]
    table = Table(
        title=f"reference energies (E0s): {used['method']}; they leave {used['mean']:.4g} eV/atom "
        f"on average, {used['rms']:.4g} meV/atom rms around it; fitted ones "
        f"{fitted['rms_mev']:.4g} meV/atom",
        title_justify="left",
        box=None,
        caption="; ".join(dict.fromkeys([*used["notes"], *fitted["notes"]])) or None,
        caption_justify="left",
    )
    for name in ("eV", *elements):
        table.add_column(name, justify="left" if name == "eV" else "right")
    isolated = [energies["isolated"].get(name) for name in elements]
    rows = (("used", used["energies"]), ("fitted", fitted["energies"]), ("isolated atom", isolated))
    for name, values in rows:
        if any(value is not None for value in values):
            table.add_row(name, *("" if v is None else f"{v:.5g}" for v in values))
    return table


def _structure_lines(found: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"neighbours within r_max = {found['r_max']:g} A: {found['lowest']} to {found['highest']}, "
        f"on average {found['mean']:.1f}; atoms without any: {found['alone']}"
    )
    near = found["shortest"]
    if near is not None:
        i, j = near["atoms"]
        yield (
            f"shortest distance: {near['distance']:.3f} A, atoms {i} and {j} of {near['file']}, "
            f"frame {near['frame']}"
        )


def _forecast_lines(forecast: Mapping[str, Any]) -> Iterator[str]:
    if "refused" in forecast:
        yield f"a training with these options is refused: {forecast['refused']}"
        return
    for role, words in (("train", "an epoch"), ("valid", "a validation")):
        part = forecast[role]
        yield (
            f"{words} of {forecast['model']}: {part['batches']} batches of {part['batch_size']} "
            f"structures in shapes to compile: {len(part['shapes'])}; at most "
            f"{part['bytes'] / 1e6:.2f} MB each"
        )
    if "measured" in forecast:
        found = forecast["measured"]
        clock = "cpu" if found["device"] == "cpu" else "wall"
        memory = (
            f"{found['peak_rss_mb']:.0f} MB of this process at most"
            if found["device_peak_bytes"] is None
            else f"{found['device_peak_bytes'] / 1e6:.0f} MB of the device at most"
        )
        kind = "of all threads" if clock == "cpu" else "of the clock"
        yield (
            f"measured on {found['device']}, without compilation: {found[f'train_{clock}']:.3g} s "
            f"{kind} an epoch, {found[f'valid_{clock}']:.3g} s a validation; {memory}"
        )
