"""One process per run folder: a lock file that names its holder and cannot go stale unnoticed."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from eqnet.errors import InputError


class Lock:
    """Hold a folder for this process; use as a context manager.

    The kernel's advisory lock on the file decides between processes of one machine and ends with
    its holder, however that ends. The content (host, pid, start) is for people, for other machines
    and for file systems without such locks.

    Args:
        path: the lock file; its folder must exist.
        tell: takes one sentence when a lock left by a dead process is taken over.
    """

    def __init__(self, path: Path, tell: Callable[[str], None] = lambda text: None):
        self.path = path
        self._tell = tell
        self._descriptor: int | None = None

    def __enter__(self) -> Lock:
        """Take the lock.

        Raises:
            InputError: another process holds it, naming its host, pid and start.
        """
        while self._descriptor is None:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                if self._take(descriptor):
                    self._descriptor = descriptor
            finally:
                if self._descriptor is None:
                    os.close(descriptor)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def release(self) -> None:
        """Give the lock back and remove its file; harmless when it is not held."""
        if self._descriptor is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None

    def _take(self, descriptor: int) -> bool:
        """Lock the open file and sign it; False if it was removed meanwhile."""
        supported = self._flock(descriptor)
        try:
            same = os.path.samestat(os.fstat(descriptor), os.stat(self.path))
        except FileNotFoundError:
            same = False
        if not same:
            return False
        holder = _read(descriptor)
        if holder:
            here = holder.get("host") == socket.gethostname()
            if not here or (not supported and _alive(holder)):
                self._refuse(holder, sure=here)
            self._tell(f"taking over from process {holder.get('pid')}, which was killed")
        me = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "start": time.strftime("%Y-%m-%d %H:%M:%S"),
            "ticks": _ticks(os.getpid()),
        }
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, (json.dumps(me) + "\n").encode(), 0)
        os.fsync(descriptor)
        return True

    def _flock(self, descriptor: int) -> bool:
        """Take the kernel's lock; False where the file system or the platform has none."""
        try:
            import fcntl
        except ImportError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                self._refuse(_read(descriptor), sure=True)
            return False
        return True

    def _refuse(self, holder: dict[str, Any], *, sure: bool) -> None:
        who = (
            f"process {holder.get('pid', '(unknown)')} on {holder.get('host', '(unknown)')} "
            f"since {holder.get('start', '(unknown)')}"
        )
        advice = (
            "wait for it, stop it, or train under another --name"
            if sure
            else f"if that process has ended, delete {self.path}"
        )
        raise InputError(f"{self.path.parent} is in use by {who}; {advice}")


def _read(descriptor: int) -> dict[str, Any]:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0) or b"{}")
    except ValueError:  # cut short by a kill or a full disk
        return {}
    return holder if isinstance(holder, dict) else {}


def _ticks(pid: int) -> str | None:
    """When a process of this machine started, in the kernel's count: pids are used again."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _alive(holder: dict[str, Any]) -> bool:
    pid = holder.get("pid")
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return holder.get("ticks") in (None, _ticks(pid))
