"""Lines of progress come at powers of two, or every ten seconds."""

from __future__ import annotations

from eqnet.scripts.now_and_then import now_and_then


def test_counts_that_double() -> None:
    now = now_and_then(clock=lambda: 0.0)
    assert [count for count in range(20) if now(count)] == [0, 1, 2, 4, 8, 16]


def test_ten_seconds() -> None:
    time = 0.0
    now = now_and_then(clock=lambda: time)
    lines = []
    for count in range(1, 40):
        time = 4.0 * count
        if now(count):
            lines.append(count)
    assert lines == [1, 2, 4, *range(7, 40, 3)]
