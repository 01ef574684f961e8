"""`eqnet md --restart`: the options, files and state of a run that goes on."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eqnet.data.store import identity
from eqnet.errors import InputError
from eqnet.files import digest
from eqnet.restart import Restart, read_restart, write_restart

if TYPE_CHECKING:
    from eqnet.scripts.md import MdOptions
    from eqnet.simulate import Simulation

SECONDS = 30.0  # between restart files
FREE = ("steps", "time_ps", "output", "overwrite", "restart")  # options that may differ
TABLE = 42  # the table of frames of a .traj file grows by this factor


class RestartFile:
    """Writes the state of a run every now and then, with the ends of its other files.

    Args:
        path: where.
        options: of the run.
        files: trajectory and log; what is written to them has left the process when `save` is
            called.
    """

    def __init__(self, path: Path, options: MdOptions, files: Sequence[Path]) -> None:
        self.path = path
        self.options = _identity(options)
        self.files = files
        self.saved = time.monotonic()

    def save_now_and_then(self, simulation: Simulation) -> None:
        """Save if the last time is long ago."""
        if time.monotonic() - self.saved > SECONDS:
            self.save(simulation)

    def save(self, simulation: Simulation) -> None:
        """Write the file."""
        marks = {file.name: _mark(file) for file in self.files}
        write_restart(self.path, Restart(self.options, marks, simulation.saved()))
        self.saved = time.monotonic()

    def resume(self, simulation: Simulation, steps: int) -> None:
        """Give a new simulation the state in the file, and cut the other files to where it was.

        Raises:
            InputError: no such file, or a damaged one; other options than those of the first run;
                files that have gone or are too short; nothing left to do.
        """
        found = read_restart(self.path)
        for name, value in self.options.items():
            before = found.options.get(name)
            if before != value and name in ("model", "structure"):
                raise InputError(f"{self.path} belongs to another {name} file; give that one")
            if before != value:
                was, now = ("its default" if v is None else v for v in (before, value))
                raise InputError(
                    f"{self.path} belongs to a run with {name} = {was}, not {now}: only --steps "
                    "and --time_ps may differ"
                )
        simulation.restore(found.state)
        if simulation.step > steps:
            raise InputError(
                f"{self.path}: step {simulation.step - 1} is reached already; ask for more --steps"
            )
        for file in self.files:
            mark = found.marks.get(file.name)
            if mark is None or not file.is_file() or file.stat().st_size < mark[0]:
                raise InputError(f"{file} is not the file that {self.path} goes on with")
        for file in self.files:
            _rewind(file, found.marks[file.name])


def _identity(options: MdOptions) -> dict[str, Any]:
    """All that makes the numbers of a run, as plain values."""
    values = {k: v for k, v in dataclasses.asdict(options).items() if k not in FREE}
    return {**values, "model": digest(options.model), "structure": identity(options.structure)}


def _mark(path: Path) -> list[int]:
    """The size of a file, which is then on the disk.

    Of a .traj also its number of frames and the place of their table, which change when more come.
    """
    with path.open("rb") as file:
        os.fsync(file.fileno())
        size = file.seek(0, os.SEEK_END)
        if path.suffix.lower() != ".traj":
            return [size]
        file.seek(32)
        return [size, *np.frombuffer(file.read(16), "<i8").tolist()]


def _rewind(path: Path, mark: list[int]) -> None:
    """Bring a file back to what it was when it was marked, byte by byte."""
    with path.open("r+b") as file:
        file.truncate(mark[0])
        if len(mark) == 3:
            frames, table = mark[1:]
            room = 1
            while room < frames:
                room *= TABLE
            file.seek(32)
            file.write(np.array([frames, table], "<i8").tobytes())
            file.seek(table + 8 * frames)
            file.write(bytes(8 * (room - frames)))
