"""`eqnet bench geometry`: which structures models can tell apart, whatever they are trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from eqnet.bench_report import check_outputs
from eqnet.errors import InputError
from eqnet.model_options import default
from eqnet.scripts.bench_common import check_positive, chosen, wide_console

if TYPE_CHECKING:
    from rich.table import Table

    from eqnet.geometric_pairs import Pair
    from eqnet.separation import Variant

NUMBERS = ("layers", "degree", "correlation")


@dataclass(frozen=True)
class GeometryOptions:
    """Pairs of different structures that weaker networks cannot tell apart.

    Models have random weights: what these do not tell apart, no weights do. A dot is a difference
    within rounding.
    """

    models: Annotated[str | None, default("all", "NAME,NAME")] = None
    """Models of eqnet."""
    pairs: Annotated[str | None, default("all", "NAME,NAME")] = None
    """Pairs of structures."""
    layers: tuple[int, ...] = (1, 2, 3)
    """Numbers of layers."""
    degrees: tuple[int, ...] = (1, 2, 3)
    """Highest degrees of features and harmonics, of models that have them."""
    correlations: tuple[int, ...] = (3,)
    """Factors of the highest power, of models that have them."""
    seeds: int = 3
    """Random weights of each model."""
    csv: Annotated[str | None, default("none", "FILE")] = None
    """Write the differences in units of the rounding."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    from eqnet.scripts.command_line import parse

    options = parse(GeometryOptions, argv, command="bench geometry")
    check_positive(options, "seeds")
    for name in ("layers", "degrees", "correlations"):
        values = getattr(options, name)
        if not values or min(values) < 1:
            raise InputError(f"--{name} must be numbers from 1, not {values}")
    check_outputs({"csv": options.csv}, {"csv": (".csv",)})
    from rich.live import Live

    from eqnet.bench_report import write_csv
    from eqnet.geometric_pairs import PAIRS
    from eqnet.models import MODELS
    from eqnet.separation import variants

    models = chosen(options.models, list(MODELS), "models")
    pairs = {name: PAIRS[name]() for name in chosen(options.pairs, list(PAIRS), "pairs")}
    lines: list[dict[str, Any]] = []
    console = wide_console()
    with Live(_table([], pairs), console=console) as live:
        asked = variants(models, options.layers, options.degrees, options.correlations)
        for line in _lines(asked, pairs, options.seeds):
            lines.append(line)
            live.update(_table(lines, pairs))
    for name, pair in pairs.items():
        console.print(f"{name} needs {pair.needs}", markup=False, highlight=False)
    if options.csv is not None:
        write_csv(options.csv, lines)
    return 0


def _lines(
    asked: Iterator[Variant], pairs: dict[str, Pair], seeds: int
) -> Iterator[dict[str, Any]]:
    from eqnet.separation import table

    try:
        yield from table(asked, pairs, seeds)
    except ValueError as error:  # a model that does not take one of the numbers
        raise InputError(f"a model cannot be made: {error}") from None


def _table(lines: Sequence[dict[str, Any]], pairs: dict[str, Pair]) -> Table:
    """What each model tells apart."""
    from rich.table import Table

    from eqnet.separation import FACTOR

    table = Table()
    for name in ("model", *NUMBERS, *pairs):
        table.add_column(name, justify="left" if name == "model" else "right")
    for line in lines:
        numbers = ["" if line[name] is None else str(line[name]) for name in NUMBERS]
        marks = ["yes" if line[name] > FACTOR else "." for name in pairs]
        table.add_row(line["model"], *numbers, *marks)
    return table
