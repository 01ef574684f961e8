"""Signals between real processes: the first one is noted, the second one ends at once."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

WAIT = """
import sys, time
from eqnet.interrupt import Interrupt
with Interrupt() as interrupt:
    print("ready", flush=True)
    while interrupt.signal is None:
        time.sleep(0.01)
    print(interrupt.signal, flush=True)
    time.sleep(60 if sys.argv[1:] else 0)  # a save that takes long
sys.exit(128 + interrupt.signal)
"""


def start(*words: str) -> subprocess.Popen:
    command = [sys.executable, "-c", WAIT, *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_the_first_signal_waits_for_what_is_being_done(name: str) -> None:
    process, number = start(), getattr(signal, name)
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert out == f"{int(number)}\n" and process.returncode == 128 + number


def test_the_second_signal_ends_at_once() -> None:
    process = start("slow")
    assert process.stdout is not None
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == f"{int(signal.SIGTERM)}\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 128 + signal.SIGINT
    process.stdout.close()
