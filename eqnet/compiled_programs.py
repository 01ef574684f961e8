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
    if FOLDER in os.environ:
        return
    folder = cache_folder(f"jax-{processor_key()}")
    if folder is None or not os.access(folder, os.W_OK | os.X_OK):  # then every start compiles
        return
    if "jax" not in sys.modules:
        os.environ[FOLDER] = str(folder)
        os.environ.setdefault(SECONDS, "0.5")
        return
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
        compilation_cache.reset_cache()  # or what was compiled before would have decided
