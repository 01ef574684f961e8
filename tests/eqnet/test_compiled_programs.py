"""Where compiled programs are kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FOLDER = "JAX_COMPILATION_CACHE_DIR"
BEFORE_JAX = """
import os, sys
from eqnet.compiled_programs import keep_compiled_programs
keep_compiled_programs()
assert "jax" not in sys.modules
print(os.environ.get("JAX_COMPILATION_CACHE_DIR"))
"""
AFTER_JAX = """
import jax, jax.numpy as jnp
from eqnet.compiled_programs import keep_compiled_programs
jax.jit(lambda x: x + 1)(jnp.ones(3))
keep_compiled_programs()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: x * 2 + 1)(jnp.ones(5)).block_until_ready()
print(jax.config.jax_compilation_cache_dir)
"""


def said(code: str, home: Path, folder: str | None = None) -> str:
    """What a new process prints, with its cache folder under `home`."""
    env = {k: v for k, v in os.environ.items() if k != FOLDER} | {"XDG_CACHE_HOME": str(home)}
    if folder is not None:
        env[FOLDER] = folder
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_folder_of_the_user_wins(tmp_path: Path) -> None:
    assert said(BEFORE_JAX, tmp_path, "mine") == "mine"
    assert not (tmp_path / "eqnet").exists()


def test_kept_in_the_cache_folder(tmp_path: Path) -> None:
    folder = Path(said(BEFORE_JAX, tmp_path))
    assert folder.is_dir()
    assert folder.parent == tmp_path / "eqnet"


def test_a_jax_that_runs_already_keeps_what_it_compiles_next(tmp_path: Path) -> None:
    folder = Path(said(AFTER_JAX, tmp_path))
    assert folder.parent == tmp_path / "eqnet"
    assert any(folder.iterdir())


def test_nothing_is_kept_where_no_folder_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert said(BEFORE_JAX, tmp_path / "file") == "None"
