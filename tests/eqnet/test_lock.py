"""The lock of a run folder, between real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from eqnet.errors import InputError
from eqnet.lock import Lock

HOLD = """
import sys, time
from pathlib import Path
from eqnet.lock import Lock
with Lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(path: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    process = holder(path)
    try:
        with pytest.raises(InputError, match=f"in use by process {process.pid} on .* since 20"):
            Lock(path).__enter__()
    finally:
        end(process)
    told: list[str] = []
    with Lock(path, told.append):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert told == [f"taking over from process {process.pid}, which was killed"]
    assert not path.exists()


def test_same_process_twice_is_refused(tmp_path: Path) -> None:
    with Lock(tmp_path / "lock"):
        with pytest.raises(InputError, match="in use by process"):
            Lock(tmp_path / "lock").__enter__()
    with Lock(tmp_path / "lock"):
        pass


def test_lock_of_another_machine_is_respected(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "start": "2026-01-01 00:00:00"}))
    with pytest.raises(InputError, match="process 1 on elsewhere since 2026.*delete .*lock"):
        Lock(path).__enter__()
    assert "elsewhere" in path.read_text()


def test_without_kernel_locks_the_content_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lock, "_flock", lambda self, descriptor: False)
    path = tmp_path / "lock"
    process = holder(path)
    try:
        with pytest.raises(InputError, match="in use by"):
            Lock(path).__enter__()
    finally:
        end(process)
    with Lock(path):
        pass
    # A live process whose number was used before by the holder is not the holder.
    start = {"host": os.uname().nodename, "pid": os.getpid(), "start": "then", "ticks": "1"}
    path.write_text(json.dumps(start))
    with Lock(path):
        pass
