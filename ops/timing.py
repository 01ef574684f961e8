"""Times of calculations that share a machine: two clocks, and contestants in turn.

On a machine with other work the wall clock measures the neighbours, too: the CPU time of the
process is the honest number there, and the smallest of many is the least disturbed. Contestants
that take turns meet the same conditions.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax


class Clock(NamedTuple):
    """Seconds of the wall clock, and of all threads of the process."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Clock:
        """The clocks at this moment."""
        return cls(time.perf_counter(), time.process_time())

    def until_now(self) -> Clock:
        """What has passed since then."""
        now = Clock.now()
        return Clock(now.wall - self.wall, now.cpu - self.cpu)


class Timing(NamedTuple):
    """Seconds of one call: smallest and median of `calls`."""

    cpu: float
    cpu_median: float
    wall: float
    wall_median: float
    calls: int

    def best(self, platform: str) -> float:
        """The smallest time by the clock to trust: of the CPU, or of the wall beside a device."""
        return self.cpu if platform == "cpu" else self.wall


def take_turns(
    contestants: Mapping[str, Callable[[], Any]],
    seconds: float = 1.0,
    least: int = 3,
    most: int = 50,
) -> dict[str, Timing]:
    """Time calls in turn, one of each per round, after a call of each that does not count.

    Args:
        contestants: by name; a call is over when all arrays it returns are computed. One that
            returns a `Clock` has timed itself, in another process.
        seconds: of one contestant, after which it sits out.
        least: calls that even a slow one makes.
        most: calls.
    """
    for call in contestants.values():
        jax.block_until_ready(call())
    times: dict[str, list[Clock]] = {name: [] for name in contestants}
    playing = set(contestants)
    while playing:
        for name in [name for name in contestants if name in playing]:
            start = Clock.now()
            result = jax.block_until_ready(contestants[name]())
            times[name].append(result if isinstance(result, Clock) else start.until_now())
            spent = sum(clock.wall for clock in times[name])
            if len(times[name]) >= (most if spent < seconds else least):
                playing.discard(name)
    return {name: _summary(clocks) for name, clocks in times.items()}


def _summary(clocks: list[Clock]) -> Timing:
    cpu, wall = [c.cpu for c in clocks], [c.wall for c in clocks]
    return Timing(min(cpu), statistics.median(cpu), min(wall), statistics.median(wall), len(clocks))
