"""Which device and which precision a calculation uses, chosen per object and never per process."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from eqnet.errors import Forked, InputError, reason
from eqnet.ops.apart import platform
from eqnet.ops.blocks import ROWS

Device = Any  # jax.Device, which is no type to type checkers
PRECISIONS = ("float32", "float64")
_home: int | None = None  # the process that computes


def refuse_fork() -> None:
    """From now on a fork of this process cannot use its devices, and this one must be no such fork.

    Raises:
        Forked: it is.
    """
    global _home
    if _home is None:
        _home = os.getpid()
    if _home != os.getpid():
        raise Forked(
            "this process was forked from one that had computed with JAX, whose threads a fork "
            "does not have: use spawn, as in multiprocessing.get_context('spawn'), or fork before "
            "anything is computed"
        )


def find_device(device: str | Device | None) -> Device:
    """A device from None (JAX's default), a name ('cpu', 'gpu', 'cuda:1', 'tpu') or itself.

    Raises:
        InputError: there is no such device here; a CPU never stands in for a GPU. Or the process
            was forked from one that had computed, and would wait for its threads forever.
    """
    refuse_fork()
    if isinstance(device, jax.Device):
        return device
    if device is None:
        return next(iter(jnp.zeros(()).devices()))
    kind, _, number = device.partition(":")
    try:
        return jax.local_devices(backend=kind)[int(number or 0)]
    except (RuntimeError, ValueError, IndexError):
        there = ", ".join(
            sorted(
                {
                    f"{d.platform}:{d.id}"
                    for d in [*jax.local_devices(), *jax.local_devices(backend="cpu")]
                }
            )
        )
        raise InputError(f"device {device!r} is not available here; there is {there}") from None


def shared_cores(number: int) -> Mesh | None:
    """A mesh of CPU devices, one for each core, over which convolutions share their rows.

    Raises:
        InputError: JAX has started with fewer devices; it takes their number only before that.
    """
    if number < 1:
        raise InputError(f"cores must be 1 or more, not {number}")
    if number == 1:
        return None
    with suppress(RuntimeError):  # it has started
        jax.config.update("jax_num_cpu_devices", number)
    there = len(jax.devices("cpu"))
    if there < number or jax.default_backend() != "cpu":
        raise InputError(
            f"cores = {number}: JAX has started with {there} CPU device(s) and computes on "
            f"{jax.default_backend()}; ask for the cores before anything else of JAX runs, or set "
            f"JAX_NUM_CPU_DEVICES={number} and JAX_PLATFORMS=cpu"
        )
    kinds = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((number,), (ROWS,), kinds, devices=jax.devices("cpu")[:number])


def everywhere(mesh: Mesh | None, device: Device) -> Any:
    """Where arrays go that every device of the mesh needs; the device if there is no mesh."""
    return device if mesh is None else NamedSharding(mesh, PartitionSpec())


def within(mesh: Mesh | None) -> Any:
    """The context in which programs are made for the mesh."""
    return nullcontext() if mesh is None else jax.set_mesh(mesh)


def program(function: Callable[..., Any], **options: Any) -> Any:
    """`jax.jit` for large programs.

    On a CPU LLVM's optimisation at level 1 takes a sixth less time to compile than at 2, and the
    programs are as fast.
    """
    refuse_fork()
    level = {"xla_backend_optimization_level": 1} if platform() == "cpu" else None
    return jax.jit(function, compiler_options=level, **options)


def give_memory_back() -> None:
    """Return to the system what a compilation has freed, some 300 MB; glibc alone keeps it."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:  # another C library than glibc
            trim(0)


def find_dtype(dtype: str) -> np.dtype:
    """The numpy type of a precision's name.

    Raises:
        InputError: neither 'float32' nor 'float64'.
    """
    if dtype not in PRECISIONS:
        raise InputError(f"dtype {dtype!r} is unknown, choose {' or '.join(PRECISIONS)}")
    return np.dtype(dtype)


def out_of_memory(error: BaseException) -> bool:
    """Whether it says that the device or the host has no more memory."""
    full = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    return full or isinstance(error, MemoryError)


@contextmanager
def computing(device: Device, *, double: bool, what: str | Callable[[], str]) -> Iterator[None]:
    """Calculations inside run on `device`, with 64-bit types if `double`, for this thread only.

    Args:
        device: where.
        double: whether float64 exists inside; arrays keep the types they have.
        what: words for the size of the task, or what makes them, used when memory runs out.

    Raises:
        InputError: the device ran out of memory; or the process is a fork, as in `find_device`.
    """
    refuse_fork()
    try:
        with jax.default_device(device), jax.enable_x64(double):
            yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        where = "the host" if isinstance(error, MemoryError) else f"{device.platform}:{device.id}"
        task = what if isinstance(what, str) else what()
        raise InputError(
            f"{where} ran out of memory for {task}; use a smaller skin, float32, fewer atoms or a "
            f"larger device ({reason(error)})"
        ) from None
