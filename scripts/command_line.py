"""Reading a command line into a frozen dataclass: tyro, with its mistakes told in one sentence."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro

from eqnet.errors import InputError
from eqnet.run_folder import read_yaml

T = TypeVar("T")

_FLAT = (tyro.conf.OmitArgPrefixes,)


def parse(cls: type[T], argv: Sequence[str], *, command: str, default: T | None = None) -> T:
    """Options of a command as an instance of a dataclass (groups may be nested; names are flat).

    Args:
        cls: the dataclass; its docstring heads the help.
        argv: what follows the command; `-` and `_` are the same within names of options.
        command: name of the command, for the help.
        default: values of the options that are not in argv; the dataclass's own if None.

    Raises:
        InputError: unknown option, missing or unsuitable value.
        SystemExit: after `--help`.
    """
    types = option_types(cls)
    switches = {name: bool in (kind, *get_args(kind)) for name, kind in types.items()}
    _check_names(list(argv), switches, command)
    optional = {name for name, switch in switches.items() if switch and types[name] is not bool}
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            return tyro.cli(
                cls,
                args=[part for word in argv for part in _spell_out(word, optional)],
                prog=f"eqnet {command}",
                use_underscores=True,
                config=_FLAT,
                default=tyro.MISSING_NONPROP if default is None else default,
            )
    except SystemExit as end:
        if not end.code:
            raise
    raise InputError(f"{_sentence(messages.getvalue())} (see eqnet {command} --help)")


def option_types(cls: type) -> dict[str, Any]:
    """Type of every option by its flat name, in order."""
    types = {}
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            types.update(option_types(kind))
        else:
            types[field.name] = kind
    return types


def suggestion(name: str, names: Sequence[str]) -> str:
    """', did you mean NAME?' for a misspelt name, or nothing."""
    lower = {known.lower(): known for known in names}
    near = get_close_matches(name.lower(), lower, n=1, cutoff=0.6)
    return f"; did you mean {lower[near[0]]}?" if near else ""


def from_file(cls: type, path: Path) -> dict[str, Any]:
    """Options of a YAML file, name: value, as the types of a dataclass (groups flat).

    Raises:
        InputError: unknown name, or a value of another type; text is no number and no switch.
    """
    types, values = option_types(cls), {}
    for name, value in read_yaml(path).items():
        known = name.replace("-", "_")
        if known not in types:
            hint = suggestion(known, list(types))
            hint = "; options stand alone, not in sections" if isinstance(value, dict) else hint
            raise InputError(f"{path}: unknown option {name}{hint}")
        values[known] = _typed(value, types[known], f"{path}: {name}")
    return values


def _typed(value: Any, kind: Any, where: str) -> Any:
    """A YAML value as a type of the command line."""
    choices = [c for c in (kind, *get_args(kind)) if c is not type(None)]
    literal = next((c for c in choices if get_origin(c) is Literal), None)
    if value is None and type(None) in get_args(kind):
        return None
    if literal is not None or get_origin(kind) is Literal:
        allowed = get_args(literal or kind)
        if value in allowed:
            return value
        raise InputError(f"{where} must be one of {', '.join(allowed)}, not {value!r}")
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if bool in choices and isinstance(value, bool):
        return value
    if int in choices and isinstance(value, int) and number:
        return value
    if float in choices and (found := _number(value)) is not None:
        return found
    if str in choices and (isinstance(value, (str, dict)) or number):
        return str(value)
    if any(get_origin(c) is tuple for c in choices) and isinstance(value, list):
        if all(isinstance(item, int) and not isinstance(item, bool) for item in value):
            return tuple(value)
    raise InputError(f"{where} must be {_words(choices)}, not {value!r}")


def _number(value: Any) -> float | None:
    """A number, also as 1e-3, which YAML 1.1 takes for text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _words(choices: list[Any]) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return next((names[c] for c in choices if c in names), "a list of whole numbers")


def _check_names(argv: list[str], switches: dict[str, bool], command: str) -> None:
    """Unknown options, with the nearest known one; text after a switch."""
    known = set(switches) | {f"no_{name}" for name, switch in switches.items() if switch} | {"help"}
    for i, word in enumerate(argv):
        if not word.startswith("--") or word == "--":
            continue
        name, _, value = word[2:].partition("=")
        name = name.replace("-", "_")
        if name not in known:
            hint = suggestion(name, sorted(known)).replace("mean ", "mean --")
            raise InputError(f"unknown option --{name}{hint or f'; see eqnet {command} --help'}")
        if switches.get(name, False) or name.startswith("no_"):
            following = value or (argv[i + 1] if i + 1 < len(argv) else "")
            if following.lower() in ("true", "false", "yes", "no", "on", "off", "1", "0"):
                plain = name.removeprefix("no_")
                raise InputError(
                    f"--{name} takes no value, not {following!r}: write --{plain} or --no_{plain}"
                )


def _spell_out(word: str, optional: set[str]) -> list[str]:
    """A switch that may also be None is a choice of three words to tyro."""
    name = word.removeprefix("--").replace("-", "_")
    if word.startswith("--") and name.removeprefix("no_") in optional:
        return [f"--{name.removeprefix('no_')}", str(not name.startswith("no_"))]
    return [word]


def _sentence(box: str) -> str:
    """What tyro prints in a box, without title and help: its first paragraph, in one line.

    Boxes are drawn with lines, or with blanks and a dashed line below the title where the output
    is not UTF-8; on a terminal they have colours.
    """
    box = re.sub(r"\x1b\[[0-9;]*m", "", box)
    paragraphs: list[list[str]] = [[]]
    for line in box.splitlines():
        inside = line.strip().strip("│").strip()
        if not inside.strip("─-╰╯") or inside.startswith("╭"):
            if inside:
                paragraphs.append([])
        else:
            paragraphs[-1].append(inside)
    found = [" ".join(lines) for lines in paragraphs if lines]
    if "╭" not in box:  # the title is a paragraph of its own
        found = found[1:] or found
    text = found[0].strip() if found else "the options could not be read"
    text = re.sub(r" ([.,])", r"\1", text)  # a mark that began a line
    return text[:1].lower() + text[1:]
