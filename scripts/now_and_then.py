"""When `relax` and `neb` print a line of progress."""

from __future__ import annotations

import time
from collections.abc import Callable

INTERVAL = 10.0  # seconds between lines at most


def now_and_then(clock: Callable[[], float] = time.monotonic) -> Callable[[int], bool]:
    """A function that says at which counts, 0, 1, ... or 1, 2, ..., there is a line.

    At the first one, when the count has doubled since the last, or ten seconds after it.
    """
    due, last = 0, clock()

    def now(count: int) -> bool:
        nonlocal due, last
        if count < due and clock() - last < INTERVAL:
            return False
        due, last = max(due, 2 * count, 1), clock()
        return True

    return now
