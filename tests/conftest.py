"""What every test shares.

Test files import helpers of `tests/helpers` by their bare name; nothing else is importable
(pytest runs with import-mode=importlib, so that file names need not be unique).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Read by JAX when it is first imported: compiled programs are kept between runs of the suite.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"eqnet-tests-{os.getuid()}")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of public data sets: `EQNET_DATA`, or `../shared/data` beside the checkout."""
    folder = Path(os.environ.get("EQNET_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}; set EQNET_DATA")
    return folder


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision inside the test: JAX arrays made here are float64."""
    import jax

    with jax.enable_x64(True):
        yield
