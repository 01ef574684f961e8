"""The picture of the README: how a run learned, how well it does, and the energy it conserves.

    eqnet train
    eqnet md runs/ethanol/ethanol.eqnet eqnet/data/demo/ethanol.xyz --time_ps 10 --output md.traj
    python scripts/make_readme_picture.py runs/ethanol md.csv docs/images/ethanol

writes docs/images/ethanol-light.png and docs/images/ethanol-dark.png.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from eqnet.data.frame import Frame
    from eqnet.evaluation import Answer


@dataclass(frozen=True)
class PictureOptions:
    """The picture of the README, from a run and a simulation at constant energy."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Folder of the run, as `eqnet train` leaves it."""
    log: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="LOG")]
    """Log of `eqnet md`, a csv file."""
    output: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Names of the pictures, without -light.png and -dark.png."""


def main(argv: Sequence[str] | None = None) -> int:
    """Draw both pictures; returns the exit code."""
    from eqnet.scripts.command_line import parse

    options = parse(
        PictureOptions, sys.argv[1:] if argv is None else argv, command="make_readme_picture"
    )
    from matplotlib.figure import Figure

    from eqnet import plots

    folder = Path(options.run)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    frames, answers = unseen(folder)
    with Path(options.log).open(newline="") as file:
        log = list(csv.DictReader(file))
    for theme in ("light", "dark"):
        with plots.style(theme):
            figure = Figure(figsize=(11, 3.5), layout="constrained")
            learning, parity, energy = figure.subplots(1, 3, width_ratios=(1, 0.85, 1.15))
            draw_learning(learning, rows)
            draw_forces(parity, frames, answers)
            draw_energy(energy, log, len(frames[0]))
            path = Path(f"{options.output}-{theme}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=120)
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
    return 0


def unseen(folder: Path) -> tuple[list[Frame], list[Answer]]:
    """The test structures of a run and what its model says of them."""
    from eqnet.data.read import read
    from eqnet.evaluation import evaluate
    from eqnet.model_file import load

    part = json.loads((folder / "data.json").read_text())["split"]["test"]
    chosen = set(part["frames"])
    frames = [frame for frame in read(part["file"]).frames if frame.index in chosen]
    return frames, evaluate(load(folder / f"{folder.resolve().name}.eqnet"), frames)


def draw_learning(axes: Axes, rows: list[dict]) -> None:
    """Validation errors against time."""
    from eqnet.metrics import QUANTITIES
    from eqnet.plots import COLORS

    minutes = [row["wall_s"] / 60 for row in rows]
    for color, quantity in zip(COLORS, ("forces", "energy_per_atom"), strict=False):
        words, unit = QUANTITIES[quantity]
        errors = [row[f"{quantity}_mae"] for row in rows]
        axes.plot(minutes, errors, color=color, label=f"{words}, {unit}")
    axes.set_xlim(left=0)
    axes.set(yscale="log", xlabel="minutes of training", title="Validation MAE")
    axes.legend()


def draw_forces(axes: Axes, frames: list[Frame], answers: list[Answer]) -> None:
    """Force components of unseen structures by element."""
    import numpy as np

    from eqnet.data.elements import symbol
    from eqnet.metrics import errors, forces_by_element, number
    from eqnet.plots import COLORS

    groups = forces_by_element(frames, answers)
    reach = 1.04 * max(float(np.abs(labels).max()) for _, labels in groups.values())
    axes.plot((-reach, reach), (-reach, reach), color=COLORS[-1], linewidth=0.9, zorder=1)
    for color, (z, (predicted, labels)) in zip(COLORS, groups.items(), strict=False):
        axes.scatter(labels, predicted, s=7, color=color, linewidths=0, alpha=0.7, label=symbol(z))
    mae = number(errors(frames, answers)["forces_mae"])
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    axes.set(xlabel="label, eV/Å", ylabel="predicted, eV/Å")
    axes.set_title(f"Forces of {len(frames)} unseen structures")
    axes.text(0.97, 0.04, f"MAE {mae} meV/Å", transform=axes.transAxes, ha="right")
    axes.legend(markerscale=2, handletextpad=0.1)


def draw_energy(axes: Axes, log: list[dict[str, str]], atoms: int) -> None:
    """Potential and total energy of a simulation at constant energy."""
    import numpy as np

    from eqnet.plots import COLORS

    time = np.array([float(row["time_fs"]) for row in log]) / 1000
    for color, key in zip(COLORS, ("potential", "total"), strict=False):
        values = np.array([float(row[f"{key}_eV"]) for row in log])
        energy = 1000 * (values - values[0]) / atoms
        axes.plot(time, energy, color=color, linewidth=0.5 if key == "potential" else 1.8)
        axes.plot([], [], color=color, label=key)
    axes.set(xlabel="ps", ylabel="meV per atom, from the start")
    axes.set_title("Energy of a simulation, NVE")
    axes.legend(ncols=2, loc="upper right")
    axes.set_ymargin(0.15)


if __name__ == "__main__":
    from eqnet.scripts import run

    sys.exit(run("make_readme_picture"))
