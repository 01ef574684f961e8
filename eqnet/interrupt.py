"""Signals that ask a run to stop: finish the step, save, leave; the second one leaves at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

# Slurm sends SIGUSR1 before the time is over if asked to; Windows does not have it.
NAMES = ("SIGTERM", "SIGINT", "SIGUSR1")
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))


class Interrupt:
    """Within this context SIGTERM, SIGINT and SIGUSR1 set `signal` and do not end the process.

    The exit code of a process ended by signal n is 128 + n: 143, 130, 138. In a thread that is not
    the main one Python takes no handlers, and the context does nothing.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            if sys.stdout.isatty():
                os.write(1, b"\x1b[?25h\n")  # the live display hides the cursor
            os._exit(128 + number)
        self.signal = number
