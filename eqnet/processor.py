"""The processor that this program runs on: what is kept on a disk may be read by another one."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path


def processor_name() -> str:
    """As the system calls it: of its model where that is known, else of its architecture."""
    names = [line.partition(":")[2].strip() for line in _lines("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def processor_key() -> str:
    """Twelve digits for the kind of processor and the instructions it knows, where listed."""
    kind = platform.machine()
    kind += "".join(sorted({*_lines("flags", "Features", "model name")})) or platform.processor()
    return hashlib.sha256(kind.encode()).hexdigest()[:12]


def _lines(*starts: str) -> list[str]:
    """Of Linux's description of its processors; none elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return []
    return [line for line in lines if line.startswith(starts)]
