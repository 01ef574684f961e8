"""`eqnet md model.eqnet STRUCTURE`: molecular dynamics on the device.

eqnet md model.eqnet ethanol.xyz --temperature 300 --time_ps 10
eqnet md model.eqnet slab.xyz --ensemble langevin --temperature 600 --friction 0.02 --output hot.xyz
eqnet md model.eqnet crystal.cif --ensemble npt --pressure 1 --cell anisotropic
eqnet md model.eqnet molecules.xyz --index : --replicas 4 --ensemble bussi
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from eqnet.errors import InputError
from eqnet.model_options import default

if TYPE_CHECKING:
    from ase import Atoms

    from eqnet.committee import Member
    from eqnet.scripts.md_restart import RestartFile
    from eqnet.simulate import Simulation

STEPS = 2000
TEMPERATURE = 300.0  # K
NOISY = ("langevin", "bussi")  # ensembles with random numbers


@dataclass(frozen=True)
class MdOptions:
    """Molecular dynamics of any structure at constant energy, temperature or pressure."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Model file, as `eqnet train` writes it."""
    structure: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STRUCTURE")]
    """Structure to begin with: any file ASE reads. Atoms fixed by FixAtoms stay where they are."""
    output: Annotated[str | None, default("STRUCTURE_md.traj", "FILE")] = None
    """Trajectory: .traj (ASE) or .xyz; energies and temperature go to the same name with .csv.
    Several structures get a file each, with their number: STRUCTURE_md_0.traj ..."""
    index: str = "-1"
    """Which frame of STRUCTURE, from 0 (negative numbers count from the end); or several, as in
    ASE: ':' for all, '0:10' for the first ten. They move side by side in one program."""
    replicas: int = 1
    """Copies of every structure, each with velocities and noise of its own."""
    ensemble: Literal["nve", "langevin", "bussi", "nose_hoover", "npt"] = "nve"
    """nve: constant energy, velocity Verlet. Constant temperature: langevin, BAOAB; bussi,
    stochastic velocity rescaling; nose_hoover, a chain. npt: constant temperature and pressure,
    Martyna-Tobias-Klein."""
    steps: Annotated[int | None, default(f"{STEPS}", "INT")] = None
    """Number of steps."""
    time_ps: Annotated[float | None, default("by steps", "FLOAT")] = None
    """Length in picoseconds, instead of steps."""
    time_step: float = 0.5
    """Time step in fs."""
    temperature: Annotated[float | None, default(f"{TEMPERATURE}", "FLOAT")] = None
    """Temperature in K: of the initial velocities, and of the thermostat."""
    friction: Annotated[float | None, default("0.01 with langevin", "FLOAT")] = None
    """Friction of the thermostat in 1/fs."""
    thermostat_time: Annotated[float | None, default("100 but with langevin", "FLOAT")] = None
    """Damping time of the thermostat in fs."""
    chain_length: Annotated[int | None, default("3 with nose_hoover, npt", "INT")] = None
    """Links of the Nose-Hoover chain."""
    pressure: Annotated[float | None, default("0 with npt", "FLOAT")] = None
    """Pressure in GPa."""
    barostat_time: Annotated[float | None, default("1000 with npt", "FLOAT")] = None
    """Damping time of the cell in fs."""
    cell: Annotated[
        Literal["isotropic", "anisotropic"] | None,
        default("isotropic with npt", "{isotropic,anisotropic}"),
    ] = None
    """What the pressure changes: isotropic, the volume; anisotropic, the shape of the cell too."""
    velocities: Literal["draw", "file"] = "draw"
    """draw: Maxwell-Boltzmann velocities of exactly the temperature, but with langevin without
    total momentum (and, for molecules, without angular momentum); file: those of STRUCTURE."""
    seed: Annotated[int | None, default("0", "INT")] = None
    """Seed of velocities and thermostat; of the structure with number s it is seed + s."""
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
    device: Annotated[str | None, default("JAX's choice", "{cpu,gpu,...}")] = None
    """Device to run on."""
    restart: bool = False
    """Go on with a run that was stopped, or make it longer: the same command, --steps or --time_ps
    may be larger. Its files continue as if it had never stopped."""
    overwrite: bool = False
    """Write over existing files."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    from eqnet.scripts.command_line import parse

    options = parse(MdOptions, sys.argv[1:] if argv is None else argv, command="md")
    steps = _steps(options)
    _ensemble(options)
    structures = _structures(options)
    output = Path(options.output or f"{Path(options.structure).stem}_md.traj")
    trajectories = _numbered(output, len(structures))
    log, state = output.with_suffix(".csv"), output.with_suffix(".restart")

    from eqnet.scripts.md_restart import RestartFile
    from eqnet.scripts.structures import check_outputs

    inputs, outputs = [options.model, options.structure], [*trajectories, log, state]
    check_outputs(outputs, inputs, overwrite=options.overwrite or options.restart)
    _refuse_leftovers(output, trajectories)
    if options.restart and not state.is_file():
        raise InputError(f"{state}: no such restart file; begin without --restart")
    simulation, member = _prepare(options, structures)
    restart = RestartFile(state, options, [*trajectories, log])
    if options.restart:
        restart.resume(simulation, steps)
    return _run(options, simulation, member, steps, restart)


def _steps(options: MdOptions) -> int:
    """Number of steps; options that make no sense are refused."""
    if not (options.output or ".traj").lower().endswith((".traj", ".xyz", ".extxyz")):
        raise InputError(f"--output {options.output}: end the name with .traj or .xyz")
    if options.restart and options.overwrite:
        raise InputError("--overwrite has no effect with --restart: leave it out")
    if options.replicas < 1:
        raise InputError(f"--replicas must be at least 1, not {options.replicas}")
    if options.steps is not None and options.time_ps is not None:
        raise InputError("--steps and --time_ps say the same thing twice: give one of them")
    if options.velocities == "file":
        idle = ["temperature"] * (options.ensemble == "nve")
        idle += ["seed"] * (options.ensemble not in NOISY)
        for name in idle:
            if getattr(options, name) is not None:
                raise InputError(
                    f"--{name} has no effect with --ensemble {options.ensemble} --velocities "
                    "file: leave it out"
                )
        if options.replicas > 1 and "seed" in idle:
            raise InputError(
                f"--replicas would be equal with --ensemble {options.ensemble} --velocities file: "
                "leave it out, or draw velocities"
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


def _ensemble(options: MdOptions) -> dict[str, Any]:
    """Options of the ensemble that are given; the temperature always, where it has a bath.

    Raises:
        InputError: an option that has no effect or is outside its range.
    """
    from eqnet.ensembles import OPTIONS, ensemble_options

    names = {name for own in OPTIONS.values() for name in own} - {"temperature"}
    given = {name: getattr(options, name) for name in sorted(names)}
    if options.ensemble != "nve":
        given["temperature"] = TEMPERATURE if options.temperature is None else options.temperature
    return ensemble_options(options.ensemble, given)


def _structures(options: MdOptions) -> list[Atoms]:
    """The structures that move, with velocities; the copies of one follow each other."""
    from eqnet.scripts.structures import read_structures

    found = read_structures(options.structure, options.index)
    structures = [atoms.copy() for atoms in found for _ in range(options.replicas)]
    for number, atoms in enumerate(structures):
        if options.velocities == "file" and not atoms.has("momenta"):
            raise InputError(f"{options.structure} has no velocities; use --velocities draw")
        if options.velocities == "draw":
            _draw_velocities(options, atoms, number)
    return structures


def _draw_velocities(options: MdOptions, atoms: Atoms, number: int) -> None:
    from eqnet.ensembles import CONSERVING
    from eqnet.velocities import draw_velocities

    temperature = TEMPERATURE if options.temperature is None else options.temperature
    conserving = options.ensemble in CONSERVING
    draw_velocities(atoms, temperature, (options.seed or 0) + number, conserving=conserving)


def _numbered(path: Path, count: int) -> list[Path]:
    """One name for one structure, names with numbers of equal width for several."""
    if count == 1:
        return [path]
    width = len(str(count - 1))
    return [path.with_stem(f"{path.stem}_{number:0{width}d}") for number in range(count)]


def _refuse_leftovers(output: Path, trajectories: list[Path]) -> None:
    """Trajectories of a run with more structures would look like some of this one."""
    if len(trajectories) == 1:
        return
    numbered = re.compile(re.escape(output.stem) + r"_\d+" + re.escape(output.suffix))
    for path in sorted(output.parent.glob("*")):
        if numbered.fullmatch(path.name) and path not in trajectories:
            raise InputError(
                f"{path} is of a run with other structures; remove it or choose another --output"
            )


def _prepare(options: MdOptions, structures: list[Atoms]) -> tuple[Simulation, Member]:
    """Load the model and set up the dynamics."""
    from eqnet.committee import open_member
    from eqnet.device import computing, find_device, shared_cores
    from eqnet.replay import replay
    from eqnet.simulate import Simulation

    shared_cores(options.cores)  # before JAX starts
    device = find_device(options.device)
    path, dtype = Path(options.model), options.dtype
    member = open_member(path, dtype=dtype, method=options.method, device=device, examples=True)
    with computing(device, double=dtype == "float64", what=f"the examples of {path}"):
        replay(member.potential, member.examples, dtype=dtype, path=path)
    simulation = Simulation(
        member.potential,
        structures[0] if len(structures) == 1 else structures,
        ensemble=options.ensemble,
        time_step=options.time_step,
        **_ensemble(options),
        seed=options.seed or 0,
        skin=options.skin,
        dtype=options.dtype,
        device=device,
        cores=options.cores,
    )
    return simulation, member


def _run(
    options: MdOptions, simulation: Simulation, member: Member, steps: int, restart: RestartFile
) -> int:
    """Simulate, write and show.

    Returns:
        0; 1 when the simulation could not go on; 128 + n when signal n stopped it.
    """
    from contextlib import ExitStack

    from rich.console import Console

    from eqnet.interrupt import Interrupt
    from eqnet.scripts.md_output import Log, Screen
    from eqnet.scripts.md_watch import Watch
    from eqnet.scripts.structures import open_trajectory
    from eqnet.simulate import Unstable

    *trajectories, log = restart.files
    screen = Screen(Console(soft_wrap=True), simulation, steps)
    watch = Watch(member, simulation, screen.tell)
    interval, trouble = options.traj_interval, None
    with ExitStack() as files:
        writers = []
        for path in trajectories:
            write, close = open_trajectory(path, append=options.restart)
            files.callback(close)
            writers.append(write)
        table = files.enter_context(
            Log(log, simulation, options.log_interval, append=options.restart)
        )
        with screen, Interrupt() as interrupt:
            try:
                for block in simulation.run(steps, frame_interval=interval):
                    for frame in block.frames:
                        writers[frame.structure](simulation.atoms_of(frame))
                    table.add(block)
                    screen.add(block)
                    watch.look(block)
                    if interrupt.signal is not None:
                        break
                    restart.save_now_and_then(simulation)
                restart.save(simulation)
            except Unstable as error:
                trouble = f"stopped at {error}; {trajectories[0]} ends with the last good step"
        last = [simulation.last(number) for number in range(simulation.num_structures)]
        if last[0].step % interval:
            for frame in last:
                writers[frame.structure](simulation.atoms_of(frame))
    screen.summary(restart.files, watch.largest)
    if trouble is not None:
        print(f"eqnet: error: {trouble} {last[0].step}", file=sys.stderr)
        return 1
    if interrupt.signal is not None and last[0].step < steps:
        print(f"eqnet: stopped after step {last[0].step}; go on with --restart", file=sys.stderr)
        return 128 + interrupt.signal
    return 0


if __name__ == "__main__":
    from eqnet.scripts import run

    sys.exit(run("md"))
