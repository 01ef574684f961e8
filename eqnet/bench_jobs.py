"""Commands that run side by side, each on cores of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import IO, NamedTuple

from eqnet.errors import InputError
from eqnet.interrupt import Interrupt

Cores = set[int] | None  # None: those of this process
LOOK_SECONDS = 0.1  # between looks at what runs


class Job(NamedTuple):
    """A module with a command line, to be run by this Python."""

    name: str
    module: str
    words: Sequence[str]


class Running(NamedTuple):
    """A job in a process."""

    job: Job
    process: subprocess.Popen[bytes]
    errors: IO[bytes]
    cores: Cores


def share_cores(jobs: int, threads: int | None) -> list[Cores]:
    """The cores of each of some jobs at a time.

    Args:
        jobs: how many.
        threads: cores of one job; an equal share if None.

    Raises:
        InputError: there are not so many cores.
    """
    if (jobs == 1 and threads is None) or not hasattr(os, "sched_setaffinity"):
        return [None] * jobs
    cores = sorted(os.sched_getaffinity(0))
    each = threads or max(1, len(cores) // jobs)
    if jobs * each > len(cores):
        raise InputError(
            f"--jobs {jobs} on {each} cores each need {jobs * each} cores, and there are "
            f"{len(cores)}: lower --jobs or --threads"
        )
    return [set(cores[i * each : (i + 1) * each]) for i in range(jobs)]


def work_off(
    jobs: Sequence[Job], places: Sequence[Cores], ended: Callable[[Job, int, str], None]
) -> int | None:
    """Run all jobs, as many at a time as there are places.

    A signal to this process ends them (SIGTERM, which lets a training save itself), and no further
    one is started. An error here ends them, too.

    Args:
        jobs: what to run, in this order.
        places: cores of the jobs that run at a time.
        ended: called with each job, its exit code and why it failed: the last line of its errors,
            or the signal that killed it.

    Returns:
        The number of the signal that ended it, or None.
    """
    waiting, free = deque(jobs), list(reversed(places))
    running: list[Running] = []
    with Interrupt() as interrupt:
        try:
            while (running or waiting) and interrupt.signal is None:
                while waiting and free and interrupt.signal is None:
                    running.append(_start(waiting.popleft(), free.pop()))
                time.sleep(LOOK_SECONDS)
                for one in [one for one in running if one.process.poll() is not None]:
                    running.remove(one)
                    free.append(one.cores)
                    ended(one.job, one.process.returncode, _why(one))
        finally:
            _stop(running)
    return interrupt.signal


def _start(job: Job, cores: Cores) -> Running:
    """A process inherits the cores of the thread that starts it."""
    errors = tempfile.TemporaryFile()
    command = [sys.executable, "-m", job.module, *job.words]
    mine = os.sched_getaffinity(0) if cores is not None else set()
    try:
        if cores is not None:
            os.sched_setaffinity(0, cores)
        # A session of its own: signals of the terminal come through this process, once.
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
        )
    finally:
        if cores is not None:
            os.sched_setaffinity(0, mine)
    return Running(job, process, errors, cores)


def _stop(running: Sequence[Running]) -> None:
    for one in running:
        one.process.terminate()
    for one in running:
        one.process.wait()
        one.errors.close()


def _why(one: Running) -> str:
    """The signal that killed a process, or the last line of its errors."""
    with one.errors as file:
        file.seek(0)
        lines = file.read().decode(errors="replace").strip().splitlines()
    number = -one.process.returncode
    if number > 0:
        return f"it was killed by signal {number} ({signal.strsignal(number)})"
    return lines[-1].removeprefix("eqnet: error: ") if lines else "it ended without a word"
