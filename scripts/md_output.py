"""The log and the screen of `eqnet md`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from eqnet.errors import InputError
from eqnet.simulate import Simulation
from eqnet.trajectory import LOUD, Block, Line

LINE_SECONDS = 10.0  # between lines when the output is no terminal


def _by_structure(values: np.ndarray) -> np.ndarray:
    """Values of a block with an axis of structures, [B, S]."""
    return values.reshape(len(values), -1)


class Log:
    """A csv file with a row every `interval` steps and structure, complete up to the last block."""

    def __init__(
        self, path: Path, simulation: Simulation, interval: int, *, append: bool = False
    ) -> None:
        self.simulation = simulation
        self.interval = interval
        try:
            self.file = path.open("a" if append else "w", encoding="utf-8", newline="\n")
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror})") from None
        columns = ["step", "time_fs"] + ["structure"] * (simulation.num_structures > 1)
        columns += ["potential_eV", "kinetic_eV", "total_eV", "temperature_K"]
        columns += ["conserved_eV"] * (simulation.ensemble != "nve")
        columns += ["volume_A3", "pressure_GPa"] * (simulation.ensemble == "npt")
        if not append:
            self.file.write(",".join(columns) + "\n")

    def add(self, block: Block) -> None:
        """Write the rows of a block, one for every structure."""
        values = [block.potential, block.kinetic, block.total]
        values.append(self.simulation.temperature(block.kinetic))
        formats = [".9f", ".9f", ".9f", ".3f"]
        if self.simulation.ensemble != "nve":
            values, formats = [*values, block.conserved], [*formats, ".9f"]
        if block.volume is not None and block.pressure is not None:
            values, formats = [*values, block.volume, block.pressure], [*formats, ".6f", ".6f"]
        table = np.stack([_by_structure(value) for value in values], axis=-1)
        for i in np.flatnonzero(block.step % self.interval == 0):
            start = f"{block.step[i]},{block.step[i] * self.simulation.time_step:.4f}"
            for structure, row in enumerate(table[i]):
                number = f",{structure}" if len(table[i]) > 1 else ""
                cells = [f"{value:{form}}" for value, form in zip(row, formats, strict=True)]
                self.file.write(",".join([start + number, *cells]) + "\n")
        self.file.flush()

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.file.close()


class Screen:
    """A live bar on a terminal, a line every ten seconds elsewhere, and a table at the end."""

    def __init__(self, console: Console, simulation: Simulation, steps: int) -> None:
        self.console = console
        self.simulation = simulation
        self.steps = steps
        self.count = 0  # steps, the first one not counted
        self.conserved = Line()
        self.temperature = Line()
        self.volume = Line()
        self.pressure = Line()
        self.last_volume = 0.0
        self.seconds = 0.0  # of blocks without a compilation
        self.timed = 0  # their steps
        self.compiled = 0
        self.printed = time.monotonic()
        self.progress = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task("compiling", total=steps)

    def add(self, block: Block) -> None:
        """Take in a block and show where the simulation is."""
        times = block.step * self.simulation.time_step
        temperature = _by_structure(self.simulation.temperature(block.kinetic))
        self.count += int((block.step > 0).sum())
        self.conserved.add(times, _by_structure(block.conserved))
        self.temperature.add(times, temperature)
        if self.simulation.compilations == self.compiled:
            self.seconds += block.seconds
            self.timed += len(block.step)
        self.compiled = self.simulation.compilations
        text = f"{temperature.mean():.0f} K  E {block.total[-1].sum():.4f} eV"
        if block.volume is not None and block.pressure is not None:
            self.volume.add(times, _by_structure(block.volume))
            self.pressure.add(times, _by_structure(block.pressure))
            self.last_volume = float(block.volume[-1].mean())
            text += f"  V {self.last_volume:.1f} A^3"
        if self.seconds:
            text += f"  {self.speed():.0f} steps/s"
        self.progress.update(self.task, completed=int(block.step[-1]), description=text)
        now = time.monotonic()
        if not self.console.is_terminal and now - self.printed > LINE_SECONDS:
            self.console.print(f"step {block.step[-1]}/{self.steps}  {text}")
            self.printed = now

    def speed(self) -> float:
        """Steps per second, compilation left out where possible."""
        return self.timed / self.seconds if self.seconds else 0.0

    def tell(self, text: str) -> None:
        """Print a sentence above the bar."""
        self.console.print(text, markup=False, highlight=False)

    def summary(self, files: Sequence[Path], novelty: float | None = None) -> None:
        """Print what happened, and where it is: the trajectories, and the log as the last.

        Args:
            files: written.
            novelty: the largest that was seen, if it was looked at.
        """
        if not self.temperature.count:
            return
        simulation = self.simulation
        table = Table(show_header=False, box=None)
        many = simulation.num_structures > 1
        what = f"{simulation.num_structures} structures, " * many + f"{simulation.num_atoms} atoms"
        table.add_row("steps", f"{self.count} of {simulation.time_step} fs, {what}")
        mean, spread = self.temperature.moments()
        spread = f"{mean:.1f} K, standard deviation {spread:.1f} K"
        table.add_row("temperature", spread)
        if self.volume.count:
            mean = self.volume.moments()[0]
            table.add_row("volume", f"{mean:.2f} A^3, at the end {self.last_volume:.2f}")
            table.add_row("pressure", f"{self.pressure.moments()[0]:.3f} GPa")
        self._conservation(table)
        if novelty is not None:
            words = f"up to {novelty:.2f} where it was looked at (1: the farthest validated)"
            table.add_row("novelty", words)
        if self.seconds:
            day = self.speed() * simulation.time_step * 86400e-6
            each = " of each structure" * many
            table.add_row("speed", f"{self.speed():.1f} steps/s, {day:.2f} ns/day{each}")
        else:
            table.add_row("speed", "not known: the program was compiled during all of it")
        counts = f"{simulation.compilations} compilations, {simulation.rebuilds} neighbour searches"
        table.add_row("work", counts)
        *trajectories, log = files
        names = f"{trajectories[0]} to {trajectories[-1]}" if many else f"{trajectories[0]}"
        table.add_row("files", escape(f"{names}, {log}"))
        self.console.print(table)

    def _conservation(self, table: Table) -> None:
        """How well the conserved energy is kept; of several structures the mean and the worst."""
        slopes, noises = (1000 * v / np.array(self.simulation.sizes) for v in self.conserved.fit())
        text = []
        kinds = [("drift", "meV/atom/ps"), ("fluctuation", "meV/atom")]
        for (name, unit), values in zip(kinds, (1000 * slopes, noises), strict=True):
            worst = int(np.argmax(abs(values)))
            most = f" (of structure {worst}: {values[worst]:.4f})" * (len(values) > 1)
            text.append(f"{name} {values.mean():.4f} {unit}{most}")
        nve = self.simulation.ensemble == "nve"
        table.add_row("total energy" if nve else "conserved energy", ", ".join(text))
        if noises.max() > LOUD:
            table.add_row(
                "", "it is not conserved: take a shorter --time_step, and look at the frames"
            )

    def __enter__(self) -> Screen:
        if not self.console.is_terminal:
            self.console.print(f"{self.simulation.num_atoms} atoms: compiling")
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.stop()
