"""What a person sees of a run: a live display on a terminal, lines elsewhere, and a log file."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from eqnet.errors import naming

LINE_SECONDS = 10.0  # between validations in the log, and in an output that is no terminal
LOOK_SECONDS = 30.0  # before a line from within an epoch

# Columns of a validation: key of the row, title, format.
COLUMNS = (
    ("train_loss", "train loss", "{:.4g}"),
    ("valid_loss", "valid loss", "{:.4g}"),
    ("energy_per_atom_mae", "energy meV/atom", "{:.3g}"),
    ("forces_mae", "forces meV/A", "{:.3g}"),
    ("stress_mae", "stress meV/A^3", "{:.3g}"),
)


def duration(seconds: float) -> str:
    """'1:02:03', '2:03' or '3.2 s'."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Output of a run; texts told before the log is opened reach it too.

    Args:
        console: where to write; standard output if None.
    """

    def __init__(self, console: Console | None = None):
        self.console = console or Console(soft_wrap=True)
        self._early = io.StringIO()
        self._log: Path | None = None
        self._live: Live | None = None
        self._last_row = -LINE_SECONDS
        self._last_line = time.monotonic()
        self._pending: str | None = None
        self._epochs = 0
        self._row: dict[str, Any] = {}
        self._best: dict[str, Any] = {}
        self.listeners: list[Callable[[dict[str, Any]], Any]] = []  # called with every row

    def open_log(self, path: Path) -> None:
        """Log to a file from now on, after what was told so far."""
        self._log = path
        if early := self._early.getvalue():
            self._write(early.removesuffix("\n"))

    def tell(self, text: str) -> None:
        """One line, always shown."""
        self.console.print(text, markup=False, highlight=False)
        self._write(text)

    def show(self, content: RenderableType) -> None:
        """A table or the like."""
        self.console.print(content)
        plain = Console(file=io.StringIO(), width=110, color_system=None, record=True)
        plain.print(content)
        self._write(plain.export_text().removesuffix("\n"))

    def start(self, epochs: int) -> Progress:
        """Begin the live part, for use as a context manager."""
        self._epochs = epochs
        return self

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            live = Live(console=self.console, refresh_per_second=4, transient=True)
            live.start()
            self._live = live
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            if self._row:  # the display vanishes, its last numbers stay
                self.console.print(self._line(self._row), markup=False, highlight=False)
        if self._pending is not None:
            self._emit(self._pending)
        self._live = None

    def validated(self, row: dict[str, Any], *, best: bool, left: float | None) -> None:
        """A row of metrics.jsonl.

        Args:
            row: the numbers.
            best: whether the validation loss is the lowest so far.
            left: seconds that the run is expected to go on.
        """
        self._row = {**row, "left": left}
        if best:
            self._best = self._row
        for listener in self.listeners:
            listener(row)
        self._draw(row["epoch"])
        line = self._line(self._row)
        if time.monotonic() - self._last_row < LINE_SECONDS:
            self._pending = line
            return
        self._last_row = time.monotonic()
        self._emit(line)

    def within_epoch(self, epoch: int, batch: int, batches: int, loss: float, rate: float) -> None:
        """A look into an epoch that takes long: mean loss of its steps, structures per second."""
        self._draw(epoch - 1 + batch / batches)
        if time.monotonic() - self._last_line >= LOOK_SECONDS:
            if self._pending is not None:
                self._emit(self._pending)
            self._emit(
                f"epoch {epoch}/{self._epochs}, step {batch}/{batches}: train loss {loss:.4g}, "
                f"{rate:.3g} structures/s"
            )

    def _emit(self, line: str) -> None:
        self._last_line, self._pending = time.monotonic(), None
        self._write(line)
        if self._live is None:
            self.console.print(line, markup=False, highlight=False)

    def _write(self, text: str) -> None:
        if self._log is None:
            self._early.write(text + "\n")
            return
        with naming(self._log), self._log.open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def _line(self, row: dict[str, Any]) -> str:
        numbers = [
            f"{title} {form.format(row[key])}"
            for key, title, form in COLUMNS
            if row.get(key) is not None
        ]
        left = f", {duration(row['left'])} left" if row.get("left") else ""
        return (
            f"epoch {row['epoch']}/{self._epochs}: {', '.join(numbers)}, lr {row['lr']:.2g}, "
            f"{row['structures_per_s']:.3g} structures/s, {row['compilations']} compilations{left}"
        )

    def _draw(self, epoch: float) -> None:
        if self._live is None:
            return
        self._live.update(Group(self._bar(epoch), self._numbers()))

    def _bar(self, epoch: float) -> RenderableType:
        row = self._row
        grid = Table.grid(padding=(0, 2))
        left = f"{duration(row['left'])} left" if row.get("left") else ""
        grid.add_row(
            f"epoch {int(epoch)}/{self._epochs}",
            ProgressBar(total=self._epochs, completed=epoch, width=24),
            left,
            f"{row['structures_per_s']:.3g} structures/s" if row else "compiling",
            f"{row['compilations']} compilations" if row else "",
        )
        return grid

    def _numbers(self) -> RenderableType:
        if not self._row:
            return Text("")
        shown = [column for column in COLUMNS if self._row.get(column[0]) is not None]
        table = Table(box=None, padding=(0, 1), pad_edge=False)
        table.add_column("")
        for _, title, _ in shown:
            table.add_column(title, justify="right")
        for name, row in (("epoch", self._row), ("best", self._best)):
            if row:
                label = f"{name} {row['epoch']}"
                table.add_row(label, *(form.format(row[key]) for key, _, form in shown))
        return table


class Pace:
    """Structures per second, of late and over the whole."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None
        self._before: tuple[int, float] = (0, 0.0)
        self._last_rate = 0.0

    def epoch(self, done: int, seconds: float) -> None:
        """An epoch and its validation are over: `done` structures after `seconds`, in all."""
        self._last_rate = self.rate(done, seconds)
        self._first = self._first or (done, seconds)
        self._before = (done, seconds)

    def rate(self, done: int, seconds: float) -> float:
        """Structures per second since the last epoch ended."""
        return max(done - self._before[0], 0) / max(seconds - self._before[1], 1e-9)

    def left(self, epochs: int, batches: int, batch_size: int) -> float | None:
        """Seconds for some more epochs at the mean rate."""
        if self._first is None:
            return None
        done, seconds = self._before[0] - self._first[0], self._before[1] - self._first[1]
        rate = done / seconds if done > 0 and seconds > 0 else self._last_rate
        return epochs * batches * batch_size / rate if rate > 0 else None
