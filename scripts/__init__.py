"""The command `eqnet`: one subcommand per file of this folder.

A command joins with a row in `COMMANDS` and a file that has `main(argv)`. Nothing heavy is imported
before the command is known, so that `eqnet --help` is instant.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from eqnet.compiled_programs import keep_compiled_programs
from eqnet.errors import InputError, OutOfDomain

COMMANDS = {
    "train": "fit a potential to a file of labelled structures",
    "check": "look at structures and labels before a training",
    "data": "make a store of structures that memory may not hold",
    "evaluate": "errors of a potential on a file of labelled structures",
    "md": "molecular dynamics",
    "relax": "relax atoms, and the cell",
    "neb": "the path and the barrier between two structures",
    "train_tensors": "fit charges, dipoles, polarisabilities, Born charges or elasticity",
    "tensors": "dipoles and other tensors of structures",
    "info": "what is in a model file",
    "bench": "what tensor products and models cost on this machine",
}

_SHOW = warnings.showwarning


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `eqnet`; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    return _to_the_pipe(lambda: _dispatch(argv))


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        from importlib.metadata import version

        print(f"eqnet {version('eqnet')}")
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(COMMANDS)}"
        print(f"eqnet: error: there is no command {name!r}; {hint}", file=sys.stderr)
        return 2
    return run(name, rest)


def usage() -> str:
    """The text of `eqnet --help`."""
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items())
    return (
        "usage: eqnet COMMAND [options]\n\n"
        "Equivariant neural networks for molecules and materials.\n\n"
        f"commands:\n{rows}\n\n"
        "`eqnet COMMAND --help` lists the options of a command; `eqnet train` alone trains on a\n"
        "built-in example."
    )


def run(name: str, argv: Sequence[str] | None = None) -> int:
    """Run one command; a mistake of the user ends with one sentence on stderr and exit code 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    keep_compiled_programs()
    shown, warnings.showwarning = warnings.showwarning, _show
    try:
        return _to_the_pipe(lambda: import_module(f"eqnet.scripts.{name}").main(argv) or 0)
    except InputError as error:
        print(f"eqnet: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        warnings.showwarning = shown


def _show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """A warning for users without the line of code that it comes from."""
    if issubclass(category, OutOfDomain):
        print(f"eqnet: warning: {message}", file=sys.stderr)
    else:
        _SHOW(message, category, *where, **more)


def _to_the_pipe(command: Callable[[], int]) -> int:
    """Run something that prints; quietly over when the reader of a pipe has seen enough."""
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()  # here, where it can be caught, not when Python ends
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
