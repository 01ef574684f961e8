"""`eqnet md model.eqnet STRUCTURE`: molecular dynamics on the device.

eqnet md model.eqnet ethanol.xyz --temperature 300 --time_ps 10
eqnet md model.eqnet slab.xyz --ensemble langevin --temperature 600 --friction 0.02 --output hot.xyz
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
    from eqnet.simulate import Block, Simulation

FRICTION = 0.01  # 1/fs
STEPS = 2000
TEMPERATURE = 300.0  # K


def _default(text: str, metavar: str) -> Any:
    """How `--help` shows an option whose default depends on others."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {text})")


@dataclass(frozen=True)
class MdOptions:
    """Molecular dynamics of any structure, at constant energy or with a Langevin thermostat."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Model file, as `eqnet train` writes it."""
    structure: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STRUCTURE")]
    """Structure to begin with: any file ASE reads. Atoms fixed by FixAtoms stay where they are."""
    output: Annotated[str | None, _default("STRUCTURE_md.traj", "FILE")] = None
    """Trajectory: .traj (ASE) or .xyz; energies and temperature go to the same name with .csv."""
    index: int = -1
    """Which frame of STRUCTURE, from 0; negative numbers count from the end."""
    ensemble: Literal["nve", "langevin"] = "nve"
    """nve: constant energy, velocity Verlet; langevin: constant temperature, BAOAB."""
    steps: Annotated[int | None, _default(f"{STEPS}", "INT")] = None
    """Number of steps."""
    time_ps: Annotated[float | None, _default("by steps", "FLOAT")] = None
    """Length in picoseconds, instead of steps."""
    time_step: float = 0.5
    """Time step in fs."""
    temperature: Annotated[float | None, _default(f"{TEMPERATURE}", "FLOAT")] = None
    """Temperature in K: of the initial velocities, and of the thermostat."""
    friction: Annotated[float | None, _default(f"{FRICTION} with langevin", "FLOAT")] = None
    """Friction of the thermostat in 1/fs."""
    velocities: Literal["draw", "file"] = "draw"
    """draw: Maxwell-Boltzmann velocities of exactly the temperature, with nve without total
    momentum (and, for molecules, without angular momentum); file: those of STRUCTURE."""
    seed: Annotated[int | None, _default("0", "INT")] = None
    """Seed of velocities and thermostat."""
    traj_interval: int = 20
    """Steps between frames of the trajectory."""
    log_interval: int = 10
    """Steps between rows of the log."""
    skin: float = 0.3
    """Angstrom added to the cutoff when neighbours are searched; results do not depend on it."""
    method: str = "default"
    """How the tensor products are computed: default, auto for the fastest here, or a name."""
    cores: int = 1
    """CPU cores that share the atoms; worth it from a hundred atoms on."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of the model; motion and energies are float64 always."""
    device: Annotated[str | None, _default("JAX's choice", "{cpu,gpu,...}")] = None
    """Device to run on."""
    overwrite: bool = False
    """Write over existing files."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    from eqnet.scripts.command_line import parse

    options = parse(MdOptions, sys.argv[1:] if argv is None else argv, command="md")
    steps = _steps(options)
    trajectory = Path(options.output or f"{Path(options.structure).stem}_md.traj")
    if trajectory.suffix.lower() not in (".traj", ".xyz", ".extxyz"):
        raise InputError(f"--output {trajectory}: end the name with .traj or .xyz")
    log = trajectory.with_suffix(".csv")

    from eqnet.scripts.structures import check_outputs

    inputs = [options.model, options.structure]
    check_outputs([trajectory, log], inputs, overwrite=options.overwrite)
    simulation = _prepare(options)
    return _run(options, simulation, steps, trajectory, log)


def _steps(options: MdOptions) -> int:
    """Number of steps; options that make no sense together are refused."""
    if options.steps is not None and options.time_ps is not None:
        raise InputError("--steps and --time_ps say the same thing twice: give one of them")
    if options.ensemble == "nve" and options.friction is not None:
        raise InputError("--friction has no effect without --ensemble langevin: add it")
    if options.ensemble == "nve" and options.velocities == "file":
        for name in ("temperature", "seed"):
            if getattr(options, name) is not None:
                raise InputError(
                    f"--{name} has no effect with --ensemble nve --velocities file: leave it out"
                )
    for name in ("traj_interval", "log_interval"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name} must be at least 1, not {getattr(options, name)}")
    if options.temperature is not None and not 0 <= options.temperature < 1e5:
        raise InputError(f"--temperature must be from 0 to 100000 K, not {options.temperature}")
    if options.seed is not None and options.seed < 0:
        raise InputError(f"--seed must not be negative, not {options.seed}")
    if not options.time_step > 0:
        raise InputError(f"--time_step must be a positive number of fs, not {options.time_step}")
    steps = STEPS if options.steps is None else options.steps
    if options.time_ps is not None:
        if not 0 < options.time_ps < 1e9:
            raise InputError(f"--time_ps must be a positive number, not {options.time_ps}")
        steps = round(1000 * options.time_ps / options.time_step)
    if steps < 1:
        raise InputError(f"the simulation has {steps} steps; give at least 1")
    return steps


def _prepare(options: MdOptions) -> Simulation:
    """Read structure and model, give the atoms velocities."""
    from eqnet.scripts.structures import read_structure

    atoms = read_structure(options.structure, options.index)
    from eqnet.device import computing, find_device, shared_cores
    from eqnet.model_file import load
    from eqnet.simulate import Simulation
    from eqnet.velocities import draw_velocities

    temperature = TEMPERATURE if options.temperature is None else options.temperature
    seed = options.seed or 0
    if options.velocities == "draw":
        draw_velocities(atoms, temperature, seed, conserving=options.ensemble == "nve")
    elif not atoms.has("momenta"):
        raise InputError(f"{options.structure} has no velocities; use --velocities draw")
    shared_cores(options.cores)  # before JAX starts
    device = find_device(options.device)
    with computing(device, double=options.dtype == "float64", what=f"loading {options.model}"):
        potential = load(options.model, dtype=options.dtype, method=options.method)
    langevin = options.ensemble == "langevin"
    return Simulation(
        potential,
        atoms,
        ensemble=options.ensemble,
        time_step=options.time_step,
        temperature=temperature if langevin else None,
        friction=FRICTION if options.friction is None else options.friction,
        seed=seed,
        skin=options.skin,
        dtype=options.dtype,
        device=device,
        cores=options.cores,
    )


def _run(
    options: MdOptions, simulation: Simulation, steps: int, trajectory: Path, log: Path
) -> int:
    """Simulate, write and show; 0, or 1 when the simulation could not go on."""
    from rich.console import Console

    from eqnet.scripts.md_output import Log, Screen
    from eqnet.scripts.structures import open_trajectory
    from eqnet.simulate import Unstable

    screen = Screen(Console(soft_wrap=True), simulation, steps)
    write, close = open_trajectory(trajectory)
    trouble = None
    try:
        with Log(log, simulation, options.log_interval) as table, screen:
            written = -1

            def keep(block: Block) -> None:
                nonlocal written
                for frame in block.frames:
                    write(simulation.atoms_of(frame))
                    written = frame.step
                table.add(block)
                screen.add(block)

            try:
                for block in simulation.run(steps, frame_interval=options.traj_interval):
                    keep(block)
            except Unstable as error:
                trouble = str(error)
            last = simulation.last()
            if last.step > written:
                write(simulation.atoms_of(last))
    finally:
        close()
    screen.summary(trajectory, log)
    if trouble is not None:
        print(
            f"eqnet: error: stopped at {trouble}; {trajectory} ends with the last good step "
            f"{simulation.step - 1}",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    from eqnet.scripts import run

    sys.exit(run("md"))
