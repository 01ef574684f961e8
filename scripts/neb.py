"""`eqnet neb model.eqnet START END`: the path and the barrier between two structures.

eqnet neb model.eqnet before.xyz after.xyz --images 7 --climb
eqnet neb model.eqnet before.xyz after.xyz --relax_ends --output hop.traj
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from eqnet.errors import InputError
from eqnet.model_options import default
from eqnet.scripts.now_and_then import now_and_then

if TYPE_CHECKING:
    import numpy as np
    from ase import Atoms
    from rich.console import Console

    from eqnet.calculator import EqnetCalculator
    from eqnet.elastic_band import Band

SKIN = 0.3  # angstrom


@dataclass(frozen=True)
class NebOptions:
    """Find the path of least energy between two structures: a nudged elastic band."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Model file, as `eqnet train` writes it."""
    start: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="START")]
    """File that ASE reads with the structure at the start. Its constraints are kept."""
    end: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="END")]
    """Structure at the end: the same atoms in the same order, and the constraints of START."""
    start_index: int = -1
    """Frame of START, from 0; -1 is the last one."""
    end_index: int = -1
    """Frame of END."""
    output: Annotated[str | None, default("START_neb.xyz", "FILE")] = None
    """The band, START and END among its images, with energies and forces: .xyz or .traj."""
    images: int = 7
    """Images between START and END, computed side by side."""
    climb: bool = False
    """Let the highest image climb to the saddle point."""
    fmax: float = 0.05
    """Largest force left on an atom of the band, in eV/A."""
    interpolation: Literal["idpp", "linear"] = "idpp"
    """The first guess: idpp keeps atoms apart, linear is a straight line."""
    relax_ends: bool = False
    """Relax START and END first, to the same largest force."""
    optimizer: Literal["bfgs", "lbfgs", "fire"] = "fire"
    """Optimiser: fire is robust, bfgs and lbfgs need fewer steps near the end."""
    steps: int = 1000
    """Most steps."""
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

    options = parse(NebOptions, sys.argv[1:] if argv is None else argv, command="neb")
    if not options.fmax > 0:
        raise InputError(f"--fmax must be a positive number of eV/A, not {options.fmax}")
    for name in ("steps", "images"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name} must be at least 1, not {getattr(options, name)}")
    output = Path(options.output or f"{Path(options.start).stem}_neb.xyz")
    if output.suffix.lower() not in (".traj", ".xyz", ".extxyz"):
        raise InputError(f"--output {output}: end the name with .traj or .xyz")

    from eqnet.scripts.structures import check_outputs, read_structures

    inputs = [options.model, options.start, options.end]
    check_outputs([output], inputs, overwrite=options.overwrite)
    frames = ((options.start, options.start_index), (options.end, options.end_index))
    ends = [read_structures(file, str(index))[0] for file, index in frames]

    from eqnet.calculator import EqnetCalculator
    from eqnet.elastic_band import check_ends

    check_ends(*ends)
    ends[1].set_constraint(ends[0].copy().constraints)  # END may have none
    calculator = EqnetCalculator(
        options.model,
        device=options.device,
        dtype=options.dtype,
        skin=SKIN,
        method=options.method,
        cores=options.cores,
    )
    return _find_path(options, ends, calculator, output)


def _find_path(
    options: NebOptions, ends: list[Atoms], calculator: EqnetCalculator, output: Path
) -> int:
    """Relax the band, write and print."""
    from rich.console import Console

    from eqnet.elastic_band import exchanged, interpolate, relax_band
    from eqnet.scripts.structures import write_structure

    if options.relax_ends:
        _relax_ends(options, ends, calculator)
    console = Console(soft_wrap=True)
    images = interpolate(ends[0], ends[1], options.images, options.interpolation)
    if atoms := exchanged(images[0], images[-1]):
        print(
            f"eqnet: warning: atoms {', '.join(map(str, atoms))} end where others of their element "
            "begin; if they should not change places, give both ends the same order of atoms",
            file=sys.stderr,
        )
    try:
        band = relax_band(
            calculator,
            images,
            climb=options.climb,
            optimizer=options.optimizer,
            fmax=options.fmax,
            steps=options.steps,
            show=_progress(console),
        )
    except (InputError, KeyboardInterrupt) as error:
        if images[0].calc:
            write_structure(output, images)
            if isinstance(error, InputError):
                raise InputError(f"{error}; {output} has the last good band") from None
        raise
    write_structure(output, images)
    _table(console, band)
    console.print(f"band: {output}", markup=False)
    for file, largest in ((options.start, band.largest[0]), (options.end, band.largest[-1])):
        if largest > options.fmax:
            print(
                f"eqnet: warning: {file} is no minimum, its largest force is {largest:.3f} eV/A; "
                "the barrier counts from there (--relax_ends relaxes both ends first)",
                file=sys.stderr,
            )
    highest = int(band.energy.argmax())
    if highest in (0, len(band.energy) - 1):
        file = options.end if highest else options.start
        print(
            f"eqnet: warning: the highest image is {file}: there is no barrier between the ends, "
            "or more --images are needed to see it",
            file=sys.stderr,
        )
    if not band.converged:
        print(
            f"eqnet: error: the band is not relaxed to {options.fmax} eV/A within {options.steps} "
            "steps; allow more --steps, or begin with ends that are nearer to each other",
            file=sys.stderr,
        )
        return 1
    return 0


def _relax_ends(options: NebOptions, ends: list[Atoms], calculator: EqnetCalculator) -> None:
    """Move both ends to minima.

    Raises:
        InputError: that takes more steps than allowed.
    """
    from eqnet.relaxation import relax

    ways = relax(calculator, ends, fmax=options.fmax, steps=options.steps, name="ends")
    for file, way in zip((options.start, options.end), ways, strict=True):
        if not way.converged:
            reason = way.error or f"{options.steps} steps leave a force of {way.largest:.3f} eV/A"
            raise InputError(f"{file} cannot be relaxed to {options.fmax} eV/A: {reason}")


def _progress(console: Console) -> Callable[[int, np.ndarray, float], None]:
    """A line about the step, now and then."""
    console.print("step   highest energy (eV)   largest force (eV/A)")
    due = now_and_then()

    def show(step: int, energies: np.ndarray, largest: float) -> None:
        if due(step):
            highest = energies.max() - energies[0]
            console.print(f"{step:4d} {highest:21.4f} {largest:22.5f}", highlight=False)

    return show


def _table(console: Console, band: Band) -> None:
    from rich.table import Table

    table = Table("image", "distance (A)", "energy (eV)", "largest force (eV/A)", box=None)
    rows = zip(band.distance, band.energy, band.largest, strict=True)
    for image, (distance, energy, largest) in enumerate(rows):
        table.add_row(str(image), f"{distance:.3f}", f"{energy:.4f}", f"{largest:.4f}")
    console.print(table)
    console.print(
        f"barrier after {band.steps} steps: {band.forward:.4f} eV forward, "
        f"{band.backward:.4f} eV backward",
        highlight=False,
    )


if __name__ == "__main__":
    from eqnet.scripts import run

    sys.exit(run("neb"))
