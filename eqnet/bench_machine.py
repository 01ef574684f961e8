"""What the machine can do, and on how many cores a measurement may run."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from eqnet.errors import InputError
from eqnet.processor import processor_name

PACKAGES = ("eqnet", "jax", "jaxlib", "e3nn-jax", "cuequivariance-jax", "e3x", "mlip")


@dataclass(frozen=True)
class Machine:
    """The limits of a device, by the clock that times on it are taken with.

    Attributes:
        device: kind of device, as JAX names it.
        processor: of the host.
        cores: that this process may use.
        dtype: precision of the matrix products.
        matmul: operations per second of a large matrix product.
        bandwidth: bytes per second, read and written, of a large sum.
        versions: of what is installed.
    """

    device: str
    processor: str
    cores: int
    dtype: str
    matmul: float
    bandwidth: float
    versions: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def use_cores(number: int) -> None:
    """Let this process, and the JAX that starts in it, run on so many cores.

    Raises:
        InputError: there are not so many, JAX runs already, or the system cannot do it.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise InputError(f"--threads has no effect on {platform.system()}: leave it out")
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= number <= len(cores):
        raise InputError(f"--threads must be from 1 to {len(cores)}, the cores here, not {number}")
    if "jax" in sys.modules:
        raise InputError("--threads has no effect once JAX runs: start a process of its own")
    os.sched_setaffinity(0, set(cores[:number]))
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(number)
    if number == 1:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def measure_machine(dtype: str) -> Machine:
    """Time large matrix products and sums on JAX's default device (and in numpy on a CPU)."""
    import jax
    import jax.numpy as jnp
    import numpy as np  # loaded after the number of its threads is set

    from eqnet.device import find_device
    from eqnet.ops.timing import take_turns

    device = find_device(None)
    cpu = device.platform == "cpu"
    side, length = (1024, 2**24) if cpu else (8192, 2**28)
    with jax.enable_x64(dtype == "float64"):
        a, v = jnp.ones((side, side), dtype), [jnp.ones(length, dtype)]
        matmul = jax.jit(lambda a: jnp.dot(a, a, precision="highest"))
        add = jax.jit(lambda v: v + 1, donate_argnums=0)  # in place: no time for new pages

        def stream() -> jax.Array:
            v[0] = add(v[0])
            return v[0]

        calls: dict[str, Callable[[], Any]] = {"matmul": lambda: matmul(a), "add": stream}
        if cpu:
            host = np.ones((side, side), dtype)
            calls["numpy"] = lambda: host @ host
        timings = take_turns(calls, 0.5)
    best = {name: timing.best(device.platform) for name, timing in timings.items()}
    return Machine(
        device=device.device_kind,
        processor=processor_name(),
        cores=cores(),
        dtype=dtype,
        matmul=2 * side**3 / min(best["matmul"], best.get("numpy", np.inf)),
        bandwidth=2 * v[0].nbytes / best["add"],
        versions=versions(),
    )


def versions() -> dict[str, str]:
    """Versions of the packages that take part, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
