"""Choices of methods, kept in the user's cache folder: one small JSON file for each."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

UNWRITTEN: dict[str, str] = {}  # choices of this process that no folder could take


def read(key: str) -> str:
    """The method that was chosen under this key; '' if there is none, or its file is damaged."""
    path = _file(key)
    try:
        choice = json.loads(path.read_text(encoding="utf-8")) if path else {}
        found = choice["method"] if choice.get("key") == key else ""
    except (OSError, ValueError, AttributeError, KeyError):
        found = ""
    return found if found and isinstance(found, str) else UNWRITTEN.get(key, "")


def write(key: str, method: str, milliseconds: Mapping[str, float]) -> None:
    """Keep a choice and the times it rests on: the whole file or nothing.

    Where no file can be written, the choice lasts as long as the process.
    """
    path = _file(key)
    text = json.dumps({"key": key, "method": method, "milliseconds": dict(milliseconds)}, indent=1)
    if path is None:
        UNWRITTEN[key] = method
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError:
        UNWRITTEN[key] = method
        temporary.unlink(missing_ok=True)


def _file(key: str) -> Path | None:
    """None where there can be no cache folder."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
        folder = base / "eqnet" / "methods"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
