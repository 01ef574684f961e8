"""Accuracy against time beside mace-torch: the same data, model and settings, one after the other.

    python scripts/learning_curves.py TRAIN VALID --mace_torch PYTHON --out curves

trains the same MACE with mace-torch and with eqnet, with equal weights of the loss, optimiser,
learning rates, batches and number of epochs, and then eqnet with the options of a recipe. It writes
curves.json and curves.png into the folder and prints a table. Runs that are there are not repeated.
It needs Linux, which tells the CPU time of a running process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro
import yaml

from eqnet.errors import InputError
from eqnet.model_options import default

LOOK_SECONDS = 0.2  # between looks at what a run has written


@dataclass(frozen=True)
class CurveOptions:
    """Train the same MACE with mace-torch and with eqnet; errors against time."""

    train_file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TRAIN")]
    """Training structures with the keys energy and forces (eV, angstrom)."""
    valid_file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="VALID")]
    """Structures that the errors are of."""
    mace_torch: Annotated[str, tyro.conf.arg(metavar="PYTHON")]
    """Interpreter of an environment that has mace-torch."""
    out: str = "curves"
    """Folder of the runs and results."""
    recipe: Annotated[str | None, default("none", "FILE")] = None
    """YAML file of options of `eqnet train`, for a third run of as many epochs."""
    max_num_epochs: int = 60
    """Epochs of each run."""
    lr_scheduler_gamma: float = 0.93
    """Factor of the learning rate per epoch, from 0.01."""
    num_channels: int = 64
    """Channels of the model."""
    max_L: int = 1
    """Largest degree of its messages."""
    core: Annotated[int | None, default("any", "INT")] = None
    """Core that all runs are pinned to."""


class Point(NamedTuple):
    """After a validation: seconds since the start, and root mean square errors."""

    epoch: int
    cpu_s: float
    wall_s: float
    forces: float  # meV/angstrom
    energy: float  # meV/atom


@dataclass(frozen=True)
class Run:
    """A training in a process of its own.

    Attributes:
        name: of the curve.
        settings: by the names of the program.
        command: to be run in the folder.
        log: file with one JSON object per line.
    """

    name: str
    settings: dict[str, Any]
    command: list[str]
    log: Path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    from eqnet.scripts.command_line import parse

    options = parse(CurveOptions, sys.argv[1:] if argv is None else argv, command="learning_curves")
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    curves: dict[str, list[Point]] = {}
    for run in runs(options, out):
        kept = out / f"{run.name}.json"
        if not kept.exists():
            print(f"{run.name}: {' '.join(run.command)}", flush=True)
            points = follow(run, out, options.core)
            kept.write_text(json.dumps({"settings": run.settings, "points": points}))
        found = json.loads(kept.read_text())
        if found["settings"] != run.settings:
            raise InputError(f"{kept} is of a run with other settings: choose another --out")
        curves[run.name] = [Point(*values) for values in found["points"]]
    written = {"options": asdict(options), "columns": Point._fields, "curves": curves}
    (out / "curves.json").write_text(json.dumps(written, indent=1))
    show(curves)
    draw(curves, out / "curves.png")
    return 0


def runs(options: CurveOptions, out: Path) -> Iterator[Run]:
    """The trainings; both programs have the same names for most settings."""
    common: dict[str, Any] = {
        "train_file": str(Path(options.train_file).resolve()),
        "valid_file": str(Path(options.valid_file).resolve()),
        "energy_key": "energy",
        "forces_key": "forces",
        "E0s": "average",
        "r_max": 5.0,
        "num_channels": options.num_channels,
        "max_L": options.max_L,
        "max_ell": 3,
        "correlation": 3,
        "num_interactions": 2,
        "num_radial_basis": 8,
        "num_cutoff_basis": 5,
        "radial_MLP": [64, 64, 64],
        "energy_weight": 5.0,
        "forces_weight": 10.0,
        "lr": 0.01,
        "lr_scheduler_gamma": options.lr_scheduler_gamma,
        "clip_grad": 10.0,
        "weight_decay": 0.0,
        "ema_decay": 0.99,
        "batch_size": 5,
        "valid_batch_size": 20,
        "max_num_epochs": options.max_num_epochs,
        "eval_interval": 1,
        "seed": 0,
    }
    theirs = common | {
        "name": "mace",
        "work_dir": "mace-torch",
        "loss": "l1l2energyforces",  # the same measure of errors as our l1
        "scheduler": "ExponentialLR",
        "scaling": "rms_forces_scaling",
        "default_dtype": "float32",
        "device": "cpu",
    }
    words = [f"--{name}={value}" for name, value in theirs.items()]
    command = [options.mace_torch, "-m", "mace.cli.run_train", *words, "--ema", "--amsgrad"]
    yield Run("mace-torch", theirs, command, out / "mace-torch/results/mace_run-0_train.txt")
    ours = common | {"loss": "l1", "optimizer": "amsgrad", "scheduler": "exponential"}
    yield _eqnet("eqnet", ours, out)
    if options.recipe is not None:
        recipe = yaml.safe_load(Path(options.recipe).read_text())
        same = ("train_file", "valid_file", "max_num_epochs", "eval_interval")
        kept = {name: v for name, v in recipe.items() if name not in ("num_train", "num_valid")}
        yield _eqnet("eqnet, recipe", kept | {name: common[name] for name in same}, out)


def _eqnet(name: str, values: dict[str, Any], out: Path) -> Run:
    """`eqnet train` from a file of options in the folder."""
    folder = "run-" + name.replace(", ", "-")  # a folder named eqnet would be imported as eqnet
    config = out / f"{folder}.yaml"
    config.write_text(yaml.safe_dump(values | {"name": folder, "work_dir": "."}))
    command = [sys.executable, "-m", "eqnet.scripts.train", "--config", config.name]
    return Run(name, values, command, out / folder / "metrics.jsonl")


def follow(run: Run, out: Path, core: int | None) -> list[Point]:
    """Run a training to its end, and note the time whenever it has written errors.

    Raises:
        InputError: it failed; what it printed is in a file.
    """
    cores = os.sched_getaffinity(0) if core is None else {core}
    printed = out / f"{run.name}.log"
    points: list[Point] = []
    with printed.open("wb") as file:
        start = time.perf_counter()
        process = subprocess.Popen(
            run.command,
            cwd=out,
            stdout=file,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
            env=os.environ | {"OMP_NUM_THREADS": str(len(cores))},
        )
        ended = False
        while not ended:
            time.sleep(LOOK_SECONDS)
            cpu, wall = _cpu_seconds(process.pid), time.perf_counter() - start
            ended = process.poll() is not None
            errors = _errors(run.log)[len(points) :]
            points += [Point(epoch, cpu, wall, forces, energy) for epoch, forces, energy in errors]
    if process.returncode:
        raise InputError(f"{run.name} failed, see {printed}")
    return points


def _cpu_seconds(pid: int) -> float:
    """CPU time of a process that was not waited for yet."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _errors(log: Path) -> list[tuple[int, float, float]]:
    """Epoch (from 1), forces meV/angstrom and energy meV/atom of each validation so far."""
    if not log.exists():
        return []
    found = []
    for line in log.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # not yet written to its end
            break
        if "forces_rmse" in row:
            found.append((row["epoch"], row["forces_rmse"], row["energy_per_atom_rmse"]))
        elif row.get("mode") == "eval" and row.get("epoch") is not None:
            energy = 1000 * row["rmse_e_per_atom"]
            found.append((row["epoch"] + 1, 1000 * row["rmse_f"], energy))
    return found


def show(curves: dict[str, list[Point]]) -> None:
    """The time at which each run first reached an error, and its last errors."""
    from rich.console import Console
    from rich.table import Table

    best = {name: min(point.forces for point in curve) for name, curve in curves.items()}
    goals = [g for g in (100, 70, 50, 40, 30, 25, 20, 15, 12, 10) if g >= min(best.values())]
    table = Table("forces RMSE", *curves, box=None, title="CPU minutes until an error is reached")
    for goal in goals:
        times = [[p.cpu_s / 60 for p in curve if p.forces <= goal] for curve in curves.values()]
        table.add_row(f"{goal} meV/A", *(f"{t[0]:.2f}" if t else "-" for t in times))
    last = [curve[-1] for curve in curves.values()]
    table.add_row("all epochs", *(f"{p.cpu_s / 60:.2f}" for p in last))
    table.add_row("last forces, meV/A", *(f"{p.forces:.1f}" for p in last))
    table.add_row("last energy, meV/atom", *(f"{p.energy:.3f}" for p in last))
    Console().print(table)


def draw(curves: dict[str, list[Point]], path: Path) -> None:
    """Errors of the forces against CPU time."""
    from matplotlib.figure import Figure

    from eqnet import plots

    with plots.style():
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        axes = figure.subplots()
        for (name, curve), color in zip(curves.items(), plots.COLORS, strict=False):
            times, errors = [p.cpu_s / 60 for p in curve], [p.forces for p in curve]
            axes.plot(times, errors, label=name, color=color)
        axes.set(xscale="log", yscale="log", xlabel="CPU minutes", ylabel="forces RMSE, meV/A")
        axes.legend()
        figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
