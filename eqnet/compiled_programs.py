"""Compiled programs that outlive the process, so that only the first start compiles."""

from __future__ import annotations

import os
import sys

from eqnet.files import cache_folder
from eqnet.processor import processor_key

FOLDER, SECONDS = "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


def keep_compiled_programs() -> None:
    """Let JAX keep compiled programs in the user's cache folder, unless the user has set that up.

    Programs are kept per kind of processor: those of another one may not run here, and a home may
    be shared. Before JAX is imported it is told by its environment variables.
    """
    jax = sys.modules.get("jax")
    if FOLDER in os.environ or (jax and jax.config.values["jax_compilation_cache_dir"]):
        return
    folder = cache_folder(f"jax-{processor_key()}")
    if folder is None or not os.access(folder, os.W_OK | os.X_OK):  # then every start compiles
        return
    if jax is None:
        os.environ[FOLDER] = str(folder)
        os.environ.setdefault(SECONDS, "0.5")
        return
    from jax.experimental.compilation_cache import compilation_cache

    jax.config.update("jax_compilation_cache_dir", str(folder))
    if SECONDS not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    compilation_cache.reset_cache()  # or what was compiled before would have decided
