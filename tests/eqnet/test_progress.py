"""Output of a run: lines where there is no terminal, a display where there is one, always a log."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from eqnet.progress import Pace, Progress, duration

ROW = {
    "epoch": 3, "step": 12, "train_loss": 0.5, "valid_loss": 0.25, "lr": 0.01,
    "energy_per_atom_mae": 1.5, "forces_mae": 20.0, "structures_per_s": 812.0, "compilations": 2,
}  # fmt: skip


def test_lines_are_few_and_the_last_one_is_there(tmp_path: Path) -> None:
    out = io.StringIO()
    progress = Progress(Console(file=out, soft_wrap=True))
    progress.tell("before the log")
    progress.open_log(tmp_path / "log.txt")
    with progress.start(5):
        for epoch in range(1, 6):
            progress.validated({**ROW, "epoch": epoch}, best=True, left=60.0 * (5 - epoch))
    lines = out.getvalue().splitlines()
    assert [line.split(":")[0] for line in lines[1:]] == ["epoch 1/5", "epoch 5/5"]
    assert "forces meV/A 20, lr 0.01, 812 structures/s, 2 compilations, 4:00 left" in lines[1]
    assert "stress" not in lines[1]
    assert (tmp_path / "log.txt").read_text() == out.getvalue()


def test_terminal_shows_errors_and_time(tmp_path: Path) -> None:
    out = io.StringIO()
    progress = Progress(Console(file=out, force_terminal=True, width=120))
    progress.open_log(tmp_path / "log.txt")
    with progress.start(5):
        progress.validated(ROW, best=True, left=75.0)
        progress.validated({**ROW, "epoch": 4}, best=False, left=60.0)
    shown = out.getvalue()
    for text in ("energy meV/atom", "epoch 4 ", "best 3 ", "812 structures/s", "left"):
        assert text in shown
    log = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(":")[0] for line in log] == ["epoch 3/5", "epoch 4/5"]
    assert shown.count("epoch 4/5: ") == 1


def test_listeners_get_every_row() -> None:
    rows: list[dict] = []
    progress = Progress(Console(file=io.StringIO()))
    progress.listeners.append(rows.append)
    for epoch in range(3):
        progress.validated({**ROW, "epoch": epoch}, best=False, left=None)
    assert [row["epoch"] for row in rows] == [0, 1, 2]


def test_pace_forgets_the_first_epoch() -> None:
    pace = Pace()
    assert pace.left(3, 10, 5) is None
    pace.epoch(50, 100.0)  # slow: warming up
    pace.epoch(100, 105.0)
    pace.epoch(150, 110.0)
    assert pace.left(3, 10, 5) == pytest.approx(15.0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.21, "3.2 s"), (61, "1:01"), (3723, "1:02:03"), (59.96, "1:00")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
