"""The command line of `eqnet train`: flags, a YAML file of options, and the built-in example."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from eqnet.errors import InputError
from eqnet.options import DataOptions, TrainOptions


@dataclass(frozen=True)
class TrainCommand:
    """Train a potential on a file of labelled structures.

    Everything goes to WORK_DIR/NAME. The same command again goes on where an interrupted run
    stopped, with the same numbers as a run without interruption.
    """

    options: TrainOptions = field(default_factory=TrainOptions)
    config: Annotated[
        str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: none)")
    ] = None
    """YAML file of options by the names below; what is given here wins over it."""
    coordinator: Annotated[
        str | None, tyro.conf.arg(metavar="HOST:PORT|auto", help_behavior_hint="(default: none)")
    ] = None
    """Train in several processes, each with a part of every batch: run the command once for each,
    with the address of the first; auto where Slurm, Open MPI or Kubernetes start them."""
    num_processes: Annotated[
        int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: as started)")
    ] = None
    """How many processes there are, with --coordinator HOST:PORT."""
    process_id: Annotated[
        int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: as started)")
    ] = None
    """Which of them this is, from 0, with --coordinator HOST:PORT."""


# What `eqnet train` alone does: the built-in example, in a few minutes on two cores.
DEMO: dict[str, Any] = {
    "name": "ethanol",
    "num_train": 450,
    "num_valid": 50,
    "num_test": 100,
    "r_max": 4.0,
    "num_channels": 32,
    "max_num_epochs": 80,
}
# Options that take the place of each other.
INSTEAD = (
    {"num_train", "split_file"},
    {"num_valid", "valid_fraction", "valid_file", "split_file"},
    {"num_test", "test_fraction", "test_file", "split_file"},
    {"num_channels", "hidden_irreps", "preset"},
    {"max_num_epochs", "max_num_steps"},
)


def read_command(argv: list[str], kind: type[Any] = TrainCommand, name: str = "train") -> Any:
    """A command line: its flags, then the options of --config, then the defaults.

    `kind` has the fields `options` and `config`, and what else its command takes.
    """
    from eqnet.scripts.command_line import from_file, parse

    argv = file_first(argv)
    file, options = value_of("config", argv), TrainOptions()
    if file is not None:
        options = options.replace(from_file(TrainOptions, Path(file)))
    command = parse(kind, argv, command=name, default=kind(options=options, config=file))
    if command.options.data.train_file is None:
        command = replace(command, options=with_demo(command.options))
    return command


def with_demo(options: TrainOptions) -> TrainOptions:
    """The settings of the built-in example, as far as nothing else was asked for."""
    plain = TrainOptions().flat()
    given = {name: value for name, value in options.flat().items() if value != plain[name]}
    settings = dict(DEMO)
    for alternatives in INSTEAD:
        if alternatives & set(given):
            settings = {k: v for k, v in settings.items() if k not in alternatives}
    return options.replace({**settings, **given})


def file_first(argv: list[str]) -> list[str]:
    """`--train_file FILE`, as it is spelt in YAML, is FILE."""
    for i, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name.replace("-", "_") == "__train_file":
            rest = argv[:i] + argv[i + 1 + (not equals) :]
            if not equals and i + 1 == len(argv):
                raise InputError("--train_file needs the name of a file")
            return [value if equals else argv[i + 1], *rest]
    return argv


def value_of(option: str, argv: list[str]) -> str | None:
    """What follows --option, or comes after its `=`; None if it is not there."""
    for i, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name == f"--{option}":
            return value if equals else (argv[i + 1] if i + 1 < len(argv) else None)
    return None


def find_files(data: DataOptions) -> None:
    """Refuse a missing file before JAX is loaded, which takes seconds."""
    for path in (data.train_file, data.valid_file, data.test_file, data.split_file):
        if path is not None and not Path(path).exists():
            raise InputError(f"{path}: there is no such file")
