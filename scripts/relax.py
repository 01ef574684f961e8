"""`eqnet relax model.eqnet STRUCTURE`: relax atoms, and the cell, with ASE's optimisers.

eqnet relax model.eqnet ethanol.xyz --fmax 0.005
eqnet relax model.eqnet crystal.cif --cell --optimizer fire --output relaxed.cif
eqnet relax model.eqnet molecules.xyz --index :
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from eqnet.errors import InputError
from eqnet.model_options import default
from eqnet.scripts.now_and_then import now_and_then

if TYPE_CHECKING:
    from ase import Atoms
    from rich.console import Console

    from eqnet.calculator import EqnetCalculator
    from eqnet.relaxation import Relaxation

SKIN = 0.3  # angstrom, of structures side by side
NAMED = 20  # structures that a sentence lists


@dataclass(frozen=True)
class RelaxOptions:
    """Relax structures, and with --cell their lattices, until forces are small."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Model file, as `eqnet train` writes it."""
    structure: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STRUCTURE")]
    """Structure to begin with: any file ASE reads. Its constraints are kept."""
    output: Annotated[str | None, default("STRUCTURE_relaxed.xyz", "FILE")] = None
    """Relaxed structure, in a format that ASE writes; the way of a single one goes to the same name
    with .traj."""
    index: str = "-1"
    """Which frame of STRUCTURE, from 0; negative numbers count from the end. A slice, such as : for
    all or 0:10, relaxes all of them side by side."""
    fmax: float = 0.01
    """Largest force left on an atom, in eV/A; with --cell also of the forces on the cell."""
    cell: bool = False
    """Relax the lattice vectors too (three periodic axes)."""
    optimizer: Literal["bfgs", "lbfgs", "fire"] = "bfgs"
    """Optimiser: bfgs for few atoms, lbfgs for many, fire for rough beginnings."""
    steps: int = 1000
    """Most steps (of each structure)."""
    method: str = "default"
    """How the tensor products are computed: default, auto for the fastest here, or a name."""
    cores: int = 1
    """CPU cores that share the atoms; worth it from a hundred atoms on."""
    dtype: Literal["float32", "float64"] = "float64"
    """Precision of the model; float32 is faster and good to about 0.001 eV/A."""
    device: Annotated[str | None, default("JAX's choice", "{cpu,gpu,...}")] = None
    """Device to run on."""
    overwrite: bool = False
    """Write over existing files."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 1 when forces are still larger than fmax."""
    from eqnet.scripts.command_line import parse

    options = parse(RelaxOptions, sys.argv[1:] if argv is None else argv, command="relax")
    if not options.fmax > 0:
        raise InputError(f"--fmax must be a positive number of eV/A, not {options.fmax}")
    if options.steps < 1:
        raise InputError(f"--steps must be at least 1, not {options.steps}")
    several = ":" in options.index
    output = Path(options.output or f"{Path(options.structure).stem}_relaxed.xyz")
    trajectory = output.with_suffix(".traj")

    from eqnet.scripts.structures import check_outputs, check_writable, read_structures

    inputs = [options.model, options.structure]
    outputs = [output] if several else [output, trajectory]
    check_outputs(outputs, inputs, overwrite=options.overwrite)
    check_writable(output, several=several)
    structures = read_structures(options.structure, options.index)
    numbers = _numbers(options.structure, options.index) if several else [0]
    for number, atoms in zip(numbers, structures, strict=True):
        if options.cell and not atoms.pbc.all():
            raise InputError(
                f"--cell needs three periodic axes, but {options.structure} has "
                f"pbc = {atoms.pbc.tolist()}{f' (frame {number})' if several else ''}: relax the "
                "atoms alone"
            )
    from eqnet.calculator import EqnetCalculator

    calculator = EqnetCalculator(
        options.model,
        device=options.device,
        dtype=options.dtype,
        skin=SKIN if several else 0.0,
        method=options.method,
        cores=options.cores,
    )
    if several:
        return _relax_all(options, structures, numbers, calculator, output)
    return _relax(options, structures[0], calculator, output, trajectory)


def _relax(
    options: RelaxOptions,
    atoms: Atoms,
    calculator: EqnetCalculator,
    output: Path,
    trajectory: Path,
) -> int:
    """Run the optimiser, write and print."""
    from rich.console import Console

    from eqnet.scripts.structures import open_trajectory, write_structure

    console = Console(soft_wrap=True)
    atoms.calc = calculator
    before = _state(atoms)
    write, close = open_trajectory(trajectory)
    try:
        converged, steps = _optimize(options, atoms, write, console)
    except InputError as error:  # these positions have no energy: they are no result
        raise InputError(f"{error}; {trajectory} ends with the last good step") from None
    except KeyboardInterrupt:
        if calculator.check_state(atoms):  # its results are those of the step before
            atoms.calc = None
        write_structure(output, atoms)
        raise
    finally:
        close()
    write_structure(output, atoms)
    _summary(console, before, _state(atoms), steps)
    console.print(f"relaxed structure: {output}, every step: {trajectory}", markup=False)
    if not converged:
        print(
            f"eqnet: error: not relaxed to {options.fmax} eV/A within {steps} steps; continue "
            f"from {output}, or allow more --steps",
            file=sys.stderr,
        )
        return 1
    return 0


def _optimize(
    options: RelaxOptions, atoms: Atoms, write: Any, console: Console
) -> tuple[bool, int]:
    """Whether forces became small enough, and the steps it took."""
    from ase.filters import FrechetCellFilter

    from eqnet.relaxation import OPTIMIZERS

    target = FrechetCellFilter(atoms) if options.cell else atoms
    optimizer = OPTIMIZERS[options.optimizer](target, logfile=None)
    console.print("step        energy (eV)   largest force (eV/A)")

    def show() -> None:
        largest = float((target.get_forces() ** 2).sum(axis=1).max() ** 0.5)
        energy = atoms.get_potential_energy()
        console.print(f"{optimizer.nsteps:4d} {energy:18.6f} {largest:22.5f}", highlight=False)

    optimizer.attach(show)
    optimizer.attach(lambda: write(atoms))
    return bool(optimizer.run(fmax=options.fmax, steps=options.steps)), optimizer.nsteps


def _numbers(file: str, index: str) -> list[int]:
    """The numbers of the frames that a slice takes, one that `read_structures` understands."""
    from eqnet.scripts.structures import read_structures

    bounds = [int(part) if part else None for part in index.split(":")]
    return list(range(len(read_structures(file, ":")))[slice(*bounds)])


def _relax_all(
    options: RelaxOptions,
    structures: list[Atoms],
    numbers: list[int],
    calculator: EqnetCalculator,
    output: Path,
) -> int:
    """Relax all side by side, write and print."""
    from rich.console import Console

    from eqnet.relaxation import relax
    from eqnet.scripts.structures import write_structure

    console = Console(soft_wrap=True)
    started = time.monotonic()
    try:
        ways = relax(
            calculator,
            structures,
            optimizer=options.optimizer,
            fmax=options.fmax,
            steps=options.steps,
            cell=options.cell,
            name=options.structure,
            indices=numbers,
            show=_progress(console),
        )
    except (InputError, KeyboardInterrupt) as error:
        if any(atoms.calc for atoms in structures):
            write_structure(output, structures)
            if isinstance(error, InputError):
                raise InputError(f"{error}; {output} has what was relaxed so far") from None
        raise
    write_structure(output, structures)
    _summary_of_all(console, ways, time.monotonic() - started)
    console.print(f"relaxed structures: {output}", markup=False)
    for way in ways:
        if way.error:
            print(f"eqnet: warning: {way.error}", file=sys.stderr)
    failed = [str(i) for i, way in enumerate(ways) if not way.converged]
    if failed:
        named = ", ".join(failed[:NAMED]) + (", ..." if len(failed) > NAMED else "")
        print(
            f"eqnet: error: {len(failed)} of {len(ways)} structures are not relaxed to "
            f"{options.fmax} eV/A within {options.steps} steps: {named} of {output}, counted from "
            "0; continue from there, or allow more --steps",
            file=sys.stderr,
        )
        return 1
    return 0


def _progress(console: Console) -> Callable[[Sequence[Relaxation]], None]:
    """A line about the sweep, now and then."""
    console.print("sweep   converged   largest force (eV/A)")
    sweeps, due = count(1), now_and_then()

    def show(ways: Sequence[Relaxation]) -> None:
        sweep = next(sweeps)
        if not due(sweep):
            return
        done = sum(way.converged for way in ways)
        largest = max((way.largest for way in ways if way.largest < float("inf")), default=0.0)
        console.print(f"{sweep:5d} {f'{done}/{len(ways)}':>11} {largest:22.5f}", highlight=False)

    return show


def _summary_of_all(console: Console, ways: Sequence[Relaxation], seconds: float) -> None:
    from statistics import median

    from rich.table import Table

    steps = [way.steps for way in ways]
    table = Table(box=None, show_header=False)
    table.add_row("structures", str(len(ways)))
    table.add_row("converged", str(sum(way.converged for way in ways)))
    table.add_row("steps: least", str(min(steps)))
    table.add_row("steps: median", f"{median(steps):g}")
    table.add_row("steps: most", str(max(steps)))
    table.add_row("seconds", f"{seconds:.1f}")
    table.add_row("structures per second", f"{len(ways) / seconds:.2f}")
    console.print(table)


def _state(atoms: Atoms) -> dict[str, str]:
    """What the table at the end compares."""
    forces = atoms.get_forces()
    state = {
        "energy (eV)": f"{atoms.get_potential_energy():.6f}",
        "largest force (eV/A)": f"{(forces**2).sum(axis=1).max() ** 0.5:.5f}",
    }
    if atoms.pbc.all():
        stress = atoms.get_stress()
        state["volume (A^3)"] = f"{atoms.get_volume():.4f}"
        state["pressure (GPa)"] = f"{-stress[:3].mean() * 160.21766208:.4f}"
        for name, value in zip("abc", atoms.cell.lengths(), strict=True):
            state[f"{name} (A)"] = f"{value:.5f}"
    return state


def _summary(console: Console, before: dict[str, str], after: dict[str, str], steps: int) -> None:
    from rich.table import Table

    table = Table("", "before", f"after {steps} steps", box=None)
    for name, value in before.items():
        table.add_row(name, value, after[name])
    console.print(table)


if __name__ == "__main__":
    from eqnet.scripts import run

    sys.exit(run("relax"))
