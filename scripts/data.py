"""`eqnet data build FILE... --output STORE`: data larger than memory, made ready for a training.

eqnet data build train.xyz more.xyz --output train.store
eqnet data build big.aselmdb --output big.store --energy_key energy
eqnet train train.store --valid_fraction 0.01
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from eqnet.errors import InputError
from eqnet.model_options import default

USAGE = """usage: eqnet data build FILE... --output STORE [options]

Make a store, a folder of arrays, of files of labelled structures that memory may not hold.
`eqnet train`, `check` and `evaluate` take it for a file of structures.

`eqnet data build --help` lists the options."""


@dataclass(frozen=True)
class BuildOptions:
    """Make a store of files of labelled structures, in memory that does not grow with them.

    Isolated atoms become reference energies. Tensors are not kept.
    """

    files: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE...")]
    """Labelled structures: extxyz or anything ASE reads (eV, angstrom)."""
    output: Annotated[str, tyro.conf.arg(metavar="STORE")]
    """Folder of the store."""
    energy_key: Annotated[str | None, default("found", "KEY")] = None
    """Name of the energy in the files."""
    forces_key: Annotated[str | None, default("found", "KEY")] = None
    """Name of the forces in the files."""
    stress_key: Annotated[str | None, default("found", "KEY")] = None
    """Name of the stress in the files (ASE sign, eV/A^3)."""
    virials_key: Annotated[str | None, default("found", "KEY")] = None
    """Name of the virials in the files (eV)."""
    overwrite: bool = False
    """Replace a store that is there."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    kind = argv[0] if argv else "--help"
    if kind in ("-h", "--help"):
        print(USAGE)
        return 0
    if kind != "build":
        raise InputError(f"eqnet data can build, not {kind!r}")
    from eqnet.scripts.command_line import parse

    options = parse(BuildOptions, argv[1:], command="data build")
    if not options.files:
        raise InputError("eqnet data build needs at least one file of structures")
    from rich.console import Console

    from eqnet.data.build import build
    from eqnet.data.label_choice import Keys
    from eqnet.scripts.train_tables import label_table

    keys = Keys(options.energy_key, options.forces_key, options.stress_key, options.virials_key)
    try:
        report = build(options.files, options.output, keys, overwrite=options.overwrite)
    except OSError as error:
        raise InputError(f"{options.output}: cannot be written ({error.strerror})") from None
    console = Console(soft_wrap=True)
    console.print(label_table(report))
    for note in report.notes:
        console.print(f"note: {note}", markup=False)
    size = sum(file.stat().st_size for file in Path(options.output).glob("*.npy"))
    console.print(
        f"{options.output}: {report.num_frames:,} structures, {size / 1e6:,.1f} MB", markup=False
    )
    return 0


if __name__ == "__main__":
    from eqnet.scripts import run

    sys.exit(run("data"))
