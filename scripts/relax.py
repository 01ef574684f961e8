"""`eqnet relax model.eqnet STRUCTURE`: relax atoms, and the cell, with ASE's optimisers.

eqnet relax model.eqnet ethanol.xyz --fmax 0.005
eqnet relax model.eqnet crystal.cif --cell --optimizer fire --output relaxed.cif
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from eqnet.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms
    from rich.console import Console


def _default(text: str, metavar: str) -> Any:
    """How `--help` shows an option whose default depends on others."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {text})")


@dataclass(frozen=True)
class RelaxOptions:
    """Relax a structure, and with --cell its lattice, until forces are small."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Model file, as `eqnet train` writes it."""
    structure: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STRUCTURE")]
    """Structure to begin with: any file ASE reads. Its constraints are kept."""
    output: Annotated[str | None, _default("STRUCTURE_relaxed.xyz", "FILE")] = None
    """Relaxed structure, in a format that ASE writes; the way there goes to the same name with
    .traj."""
    index: int = -1
    """Which frame of STRUCTURE, from 0; negative numbers count from the end."""
    fmax: float = 0.01
    """Largest force left on an atom, in eV/A; with --cell also of the forces on the cell."""
    cell: bool = False
    """Relax the lattice vectors too (three periodic axes)."""
    optimizer: Literal["bfgs", "lbfgs", "fire"] = "bfgs"
    """Optimiser: bfgs for few atoms, lbfgs for many, fire for rough beginnings."""
    steps: int = 1000
    """Most steps."""
    method: str = "default"
    """How the tensor products are computed: default, auto for the fastest here, or a name."""
    cores: int = 1
    """CPU cores that share the atoms; worth it from a hundred atoms on."""
    dtype: Literal["float32", "float64"] = "float64"
    """Precision of the model; float32 is faster and good to about 0.001 eV/A."""
    device: Annotated[str | None, _default("JAX's choice", "{cpu,gpu,...}")] = None
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
    output = Path(options.output or f"{Path(options.structure).stem}_relaxed.xyz")
    trajectory = output.with_suffix(".traj")

    from eqnet.scripts.structures import check_outputs, check_writable, read_structure

    inputs = [options.model, options.structure]
    check_outputs([output, trajectory], inputs, overwrite=options.overwrite)
    check_writable(output)
    atoms = read_structure(options.structure, options.index)
    if options.cell and not atoms.pbc.all():
        raise InputError(
            f"--cell needs three periodic axes, but {options.structure} has "
            f"pbc = {atoms.pbc.tolist()}: relax the atoms alone"
        )
    from eqnet.calculator import EqnetCalculator

    atoms.calc = EqnetCalculator(
        options.model,
        device=options.device,
        dtype=options.dtype,
        method=options.method,
        cores=options.cores,
    )
    return _relax(options, atoms, output, trajectory)


def _relax(options: RelaxOptions, atoms: Atoms, output: Path, trajectory: Path) -> int:
    """Run the optimiser, write and print."""
    from rich.console import Console

    from eqnet.scripts.structures import open_trajectory, write_structure

    console = Console(soft_wrap=True)
    before = _state(atoms)
    write, close = open_trajectory(trajectory)
    try:
        converged, steps = _optimize(options, atoms, write, console)
    except InputError as error:  # these positions have no energy: they are no result
        raise InputError(f"{error}; {trajectory} ends with the last good step") from None
    except KeyboardInterrupt:
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
    from ase.optimize import BFGS, FIRE, LBFGS

    target = FrechetCellFilter(atoms) if options.cell else atoms
    kinds: dict[str, Any] = {"bfgs": BFGS, "lbfgs": LBFGS, "fire": FIRE}
    optimizer = kinds[options.optimizer](target, logfile=None)
    console.print("step        energy (eV)   largest force (eV/A)")

    def show() -> None:
        largest = float((target.get_forces() ** 2).sum(axis=1).max() ** 0.5)
        energy = atoms.get_potential_energy()
        console.print(f"{optimizer.nsteps:4d} {energy:18.6f} {largest:22.5f}", highlight=False)

    optimizer.attach(show)
    optimizer.attach(lambda: write(atoms))
    return bool(optimizer.run(fmax=options.fmax, steps=options.steps)), optimizer.nsteps


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
