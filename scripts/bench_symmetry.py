"""`eqnet bench symmetry`: whether networks find out which symmetries of a function are broken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from eqnet.bench_report import check_outputs
from eqnet.errors import InputError
from eqnet.model_options import default
from eqnet.scripts.bench_common import check_positive, chosen, wide_console

if TYPE_CHECKING:
    from rich.table import Table

NUMBERS = ("true", "soft", "free", "distance", "strength")
ERRORS = ("soft_error", "free_error", "exact_error")


@dataclass(frozen=True)
class SymmetryOptions:
    """Functions whose symmetries are broken to a known level, and networks that learn them.

    Each is learned by one network with a regulariser for every candidate group ('soft'), without
    any ('free'), and with every linear map equivariant under all groups ('exact'). Levels are
    relative to the size of the function: 0 is held. 'distance' is that of the weights from
    equivariant ones, 'strength' what is left of that of the regulariser, and the last columns are
    relative errors of inputs that the networks have not seen.
    """

    cases: Annotated[str | None, default("all", "NAME,NAME")] = None
    """Functions: inertia-z, inertia-xy, cosine-scale, cosine-z, cosine-both."""
    levels: tuple[float, ...] = (0.0, 0.3)
    """Sizes of the terms that break symmetries."""
    steps: int = 2000
    """Of Adam."""
    channels: int = 16
    """Of the hidden features."""
    samples: int = 1000
    """Inputs to train on, at least 125."""
    strength: float = 1.0
    """Of every regulariser, before the strengths are set."""
    power: float = 2.0
    """How fast strengths fall with what is left of a regulariser."""
    seed: int = 0
    """Of inputs, weights and batches."""
    csv: Annotated[str | None, default("none", "FILE")] = None
    """Write the table."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    from eqnet.scripts.command_line import parse

    options = parse(SymmetryOptions, argv, command="bench symmetry")
    check_positive(options, "channels", "strength", "power")
    if not options.levels or min(options.levels) < 0:
        raise InputError(f"--levels must be numbers from 0, not {options.levels}")
    check_outputs({"csv": options.csv}, {"csv": (".csv",)})
    from rich.live import Live

    from eqnet.bench_report import write_csv
    from eqnet.broken_symmetry import CASES, PARTS, Settings, table

    settings = Settings(
        channels=options.channels,
        steps=options.steps,
        samples=options.samples,
        strength=options.strength,
        power=options.power,
    )
    if options.steps < PARTS or options.steps % PARTS:
        raise InputError(f"--steps must be a multiple of {PARTS}, not {options.steps}")
    if options.samples < settings.batch:
        raise InputError(f"--samples must be at least {settings.batch}, not {options.samples}")
    cases = chosen(options.cases, list(CASES), "cases")
    lines: list[dict[str, Any]] = []
    with Live(_table([]), console=wide_console()) as live:
        for line in table(cases, options.levels, settings, options.seed):
            lines.append(line)
            live.update(_table(lines))
    if options.csv is not None:
        write_csv(options.csv, lines)
    return 0


def _table(lines: Sequence[dict[str, Any]]) -> Table:
    """Levels and errors."""
    from rich.table import Table

    table = Table()
    for name in ("case", "breaking", "group", *NUMBERS, *ERRORS):
        justify = "left" if name in ("case", "group") else "right"
        table.add_column(name.replace("_", " "), justify=justify)
    for line in lines:
        numbers = [f"{line[name]:.3f}" for name in (*NUMBERS, *ERRORS)]
        table.add_row(line["case"], f"{line['breaking']:g}", line["group"], *numbers)
    return table
