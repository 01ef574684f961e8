"""What the two benchmarks of the command line share: lists of names, ranges, files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from eqnet.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

SUFFIXES = {"csv": (".csv",), "json": (".json",), "plot": (".png", ".svg", ".pdf")}


def chosen(text: str | None, known: Sequence[str], option: str) -> list[str]:
    """A list of names, comma by comma; all that are known where none are given.

    Raises:
        InputError: one of them is not known.
    """
    if text is None or text == "all":
        return list(known)
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise InputError(f"--{option}: there is no {name!r}; there is {', '.join(known)}")
    if not names:
        raise InputError(f"--{option} names nothing: leave it out for all")
    return list(dict.fromkeys(names))


def wide_console() -> Console:
    """Standard output; where that is no terminal, wide enough for the tables."""
    from rich.console import Console

    console = Console(soft_wrap=True)
    return console if console.is_terminal else Console(soft_wrap=True, width=140)


def check_positive(options: Any, *names: str) -> None:
    """Refuse numbers that are not above zero."""
    for name in names:
        if not getattr(options, name) > 0:
            raise InputError(f"--{name} must be greater than 0, not {getattr(options, name)}")


def write(options: Any, machine: Any, rows: list[dict]) -> None:
    """The files that were asked for."""
    from eqnet.bench_report import write_csv, write_json

    if options.csv is not None:
        write_csv(options.csv, rows)
    if options.json is not None:
        write_json(options.json, machine, rows)
