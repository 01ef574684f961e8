"""The example that ships with the package: ethanol at 500 K, GFN2-xTB; see README.md beside it."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def demo_path() -> Path:
    """Where the example file lies: 600 frames of ethanol and three isolated atoms."""
    return Path(str(files(__name__) / "ethanol.xyz"))
