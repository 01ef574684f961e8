"""Choices of methods, kept in the user's cache folder: one small JSON file for each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from eqnet.files import cache_folder, replacing

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
    try:
        with replacing(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    except OSError:
        UNWRITTEN[key] = method


def _file(key: str) -> Path | None:
    """None where there can be no cache folder."""
    folder = cache_folder("methods")
    return folder and folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
