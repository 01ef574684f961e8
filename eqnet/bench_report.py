"""What a benchmark leaves behind: tables, csv, json and plots."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqnet.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

    from eqnet.bench_machine import Machine
    from eqnet.bench_ops import Result

WORDS = {"value": "forward", "gradient": "forward and gradients"}
MARKERS = "osD^vPX"


def check_outputs(paths: Mapping[str, str | None], suffixes: Mapping[str, Sequence[str]]) -> None:
    """Refuse files that cannot be written, before any work.

    Raises:
        InputError: naming the option.
    """
    for option, name in paths.items():
        if name is None:
            continue
        path = Path(name)
        if path.suffix.lower() not in suffixes[option]:
            known = " or ".join(suffixes[option])
            raise InputError(f"--{option} {name}: the name must end with {known}")
        if path.is_dir() or not path.resolve().parent.is_dir():
            raise InputError(f"--{option} {name}: there is no such folder, make it first")


def write_csv(path: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """One line per row, with a column for each key that any of them has; lists are left out."""
    rows = [{k: v for k, v in row.items() if not isinstance(v, list)} for row in rows]
    header = list(dict.fromkeys(key for row in rows for key in row))
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=header, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _short(value) for key, value in row.items()} for row in rows)


def write_json(path: str, machine: Machine, rows: Sequence[Mapping[str, Any]]) -> None:
    """{"machine": ..., "rows": [...]}."""
    text = json.dumps({"machine": machine.as_dict(), "rows": list(rows)}, indent=1)
    Path(path).write_text(text + "\n", encoding="utf-8")


def write_markdown(path: str, cells: Sequence[Mapping[str, str]]) -> None:
    """A table with a column for each key that any of the rows has; numbers stand right."""
    header = list(dict.fromkeys(key for line in cells for key in line))
    words = {k for k in header if all(not line.get(k, "")[:1].isdigit() for line in cells)}
    lines = [header, ["---" if key in words else "---:" for key in header]]
    lines += [[line.get(key, "") for key in header] for line in cells]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    Path(path).write_text(text, encoding="utf-8")


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def machine_line(machine: Machine) -> str:
    """The machine in one line."""
    return (
        f"{machine.device}, {machine.processor}, {machine.cores} cores: "
        f"{machine.matmul / 1e9:.0f} GFLOP/s ({machine.dtype} matrix product), "
        f"{machine.bandwidth / 1e9:.1f} GB/s; "
        + ", ".join(f"{name} {number}" for name, number in machine.versions.items())
    )


def clock(result: Result) -> float:
    """Milliseconds by the clock to trust: all threads' on a CPU, the wall's beside a device."""
    import jax

    return result.cpu_ms if jax.default_backend() == "cpu" else result.wall_ms


def time_table(results: Sequence[Result], what: str) -> Table:
    """Milliseconds of every contestant (rows) at every degree (columns); the best are bold."""
    from rich.table import Table

    chosen = [result for result in results if result.what == what]
    degrees = sorted({result.l_max for result in chosen})
    table = Table(
        "contestant",
        "outputs",
        *(f"L = {l}" for l in degrees),
        box=None,
        title=f"{WORDS[what]}, ms",
        title_justify="left",
    )
    times = {(result.name, result.outputs, result.l_max): clock(result) for result in chosen}
    best: dict[tuple[str, int], float] = {}
    for (_, outputs, l), time in times.items():
        best[outputs, l] = min(time, best.get((outputs, l), time))
    for name, outputs in dict.fromkeys((result.name, result.outputs) for result in chosen):
        cells = []
        for l in degrees:
            time = times.get((name, outputs, l))
            text = "" if time is None else f"{time:.3g}"
            cells.append(f"[bold]{text}[/bold]" if time == best.get((outputs, l)) else text)
        table.add_row(name, outputs, *cells)
    return table


def detail_table(results: Sequence[Result]) -> Table:
    """What else was measured, for the gradients at the highest degree of each contestant."""
    from rich.table import Table

    table = Table(
        *("contestant", "L", "couplings", "weights", "compile s", "temp MB", "Mop"),
        *("% matmul peak", "% bandwidth", "rotation error"),
        box=None,
        title=f"{WORDS['gradient']}, in detail",
        title_justify="left",
    )
    last = {result.name: result for result in results if result.what == "gradient"}
    for result in last.values():
        table.add_row(
            result.name,
            str(result.l_max),
            str(result.couplings),
            str(result.weights),
            f"{result.compile_cpu_s:.2f}",
            f"{result.temporary_mb:.1f}",
            f"{result.operations / 1e6:.0f}",
            f"{result.matmul_peak_percent:.1f}",
            f"{result.bandwidth_percent:.1f}",
            f"{result.rotation_error:.0e}",
        )
    return table


def figure(results: Sequence[Result]) -> Figure:
    """Time against degree and against expressible paths, forward and gradients, one style."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, NullFormatter

    from eqnet.plots import style

    with style():
        figure = Figure(figsize=(11, 7.4), layout="constrained")
        panels = figure.subplots(2, 2, sharey="row")
        for row, what in zip(panels, WORDS, strict=True):
            for axes, key in zip(row, ("l_max", "couplings"), strict=True):
                _curves(axes, [result for result in results if result.what == what], key)
                axes.set_yscale("log")
            row[0].set(title=WORDS[what], xlabel="highest degree L", ylabel="time, ms")
            row[0].xaxis.set_major_locator(MaxNLocator(integer=True))
            row[1].set(xlabel="expressible paths")
            row[1].set_xscale("log")
            row[1].xaxis.set_minor_formatter(NullFormatter())
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper")
    return figure


def _curves(axes: Axes, results: Sequence[Result], key: str) -> None:
    """One curve per contestant: the colour says the product or rival, the marker the method."""
    from eqnet.plots import COLORS

    families = list(dict.fromkeys(_family(result) for result in results))
    for family in families:
        color = COLORS[families.index(family) % len(COLORS)]
        dashed = (0, (5, 1.5)) if families.index(family) >= len(COLORS) else "solid"
        names = dict.fromkeys(r.name for r in results if _family(r) == family)
        for number, name in enumerate(names):
            chosen = [result for result in results if result.name == name]
            axes.plot(
                [getattr(result, key) for result in chosen],
                [clock(result) for result in chosen],
                label=name,
                color=color,
                marker=MARKERS[number % len(MARKERS)],
                markersize=4.5,
                linestyle=":" if chosen[0].library != "eqnet" else dashed,
            )


def _family(result: Result) -> str:
    return result.product if result.library == "eqnet" else result.library


def save_figure(results: Sequence[Result], path: str) -> None:
    """Write the plots; the suffix says the format."""
    figure(results).savefig(path)
