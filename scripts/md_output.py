"""The log and the screen of `eqnet md`."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from eqnet.errors import InputError
from eqnet.simulate import Simulation
from eqnet.trajectory import LOUD, Block, drift

LINE_SECONDS = 10.0  # between lines when the output is no terminal


class Log:
    """A csv file with one row per `interval` steps, complete up to the last block."""

    def __init__(
        self, path: Path, simulation: Simulation, interval: int, *, append: bool = False
    ) -> None:
        self.simulation = simulation
        self.interval = interval
        try:
            self.file = path.open("a" if append else "w", encoding="utf-8", newline="\n")
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror})") from None
        columns = ["step", "time_fs", "potential_eV", "kinetic_eV", "total_eV", "temperature_K"]
        columns += ["conserved_eV"] * (simulation.ensemble != "nve")
        columns += ["volume_A3", "pressure_GPa"] * (simulation.ensemble == "npt")
        if not append:
            self.file.write(",".join(columns) + "\n")

    def add(self, block: Block) -> None:
        """Write the rows of a block."""
        temperature = self.simulation.temperature(block.kinetic)
        for i in np.flatnonzero(block.step % self.interval == 0):
            time_fs = block.step[i] * self.simulation.time_step
            row = [f"{block.step[i]}", f"{time_fs:.4f}"]
            energies = [block.potential[i], block.kinetic[i], block.total[i]]
            row += [f"{energy:.9f}" for energy in energies] + [f"{temperature[i]:.3f}"]
            row += [f"{block.conserved[i]:.9f}"] * (self.simulation.ensemble != "nve")
            if block.volume is not None and block.pressure is not None:
                row += [f"{block.volume[i]:.6f}", f"{block.pressure[i]:.6f}"]
            self.file.write(",".join(row) + "\n")
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
        self.times: list[np.ndarray] = []
        self.energies: list[np.ndarray] = []
        self.temperatures: list[np.ndarray] = []
        self.volumes: list[np.ndarray] = []
        self.pressures: list[np.ndarray] = []
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
        self.times.append(block.step * self.simulation.time_step)
        self.energies.append(block.conserved)
        self.temperatures.append(self.simulation.temperature(block.kinetic))
        if self.simulation.compilations == self.compiled:
            self.seconds += block.seconds
            self.timed += len(block.step)
        self.compiled = self.simulation.compilations
        text = f"{self.temperatures[-1].mean():.0f} K  E {block.total[-1]:.4f} eV"
        if block.volume is not None and block.pressure is not None:
            self.volumes.append(block.volume)
            self.pressures.append(block.pressure)
            text += f"  V {block.volume[-1]:.1f} A^3"
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

    def summary(self, trajectory: Path, log: Path) -> None:
        """Print what happened."""
        if not self.times:
            return
        simulation = self.simulation
        times, energies = np.concatenate(self.times), np.concatenate(self.energies)
        temperatures = np.concatenate(self.temperatures)
        atoms = simulation.num_atoms
        count = len(times) - int(times[0] == 0)
        table = Table(show_header=False, box=None)
        table.add_row("steps", f"{count} of {simulation.time_step} fs, {atoms} atoms")
        spread = f"{temperatures.mean():.1f} K, standard deviation {temperatures.std():.1f} K"
        table.add_row("temperature", spread)
        if self.volumes:
            volumes, pressures = np.concatenate(self.volumes), np.concatenate(self.pressures)
            table.add_row("volume", f"{volumes.mean():.2f} A^3, at the end {volumes[-1]:.2f}")
            table.add_row("pressure", f"{pressures.mean():.3f} GPa")
        what = "total energy" if simulation.ensemble == "nve" else "conserved energy"
        rate, noise = drift(times, energies, atoms)
        table.add_row(what, f"drift {rate:.4f} meV/atom/ps, fluctuation {noise:.4f} meV/atom")
        if noise > LOUD:
            table.add_row(
                "", "it is not conserved: take a shorter --time_step, and look at the frames"
            )
        day = self.speed() * simulation.time_step * 86400e-6
        table.add_row("speed", f"{self.speed():.1f} steps/s, {day:.2f} ns/day")
        counts = f"{simulation.compilations} compilations, {simulation.rebuilds} neighbour searches"
        table.add_row("work", counts)
        table.add_row("files", escape(f"{trajectory}, {log}"))
        self.console.print(table)

    def __enter__(self) -> Screen:
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.stop()
