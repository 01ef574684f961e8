"""The fastest method of a product on this device: timed once, remembered on disk.

All methods of a product compute the same function, so that a choice changes results by rounding
only. A method must be clearly faster than the default to take its place, and what was chosen stays
chosen: the second program that asks gets the answer of the first.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eqnet.graph import AtomGraph
from eqnet.irreps import IrrepsArray
from eqnet.ops.convolution import Convolution
from eqnet.ops.product import Kernel, Product, Radial
from eqnet.ops.timing import Clock, take_turns

EDGES = 600  # of the convolution that is timed
NEIGHBORS = 20  # of an atom, where there are edges enough
WIDTH = 64  # hidden layer of the radial network
CLEARLY = 0.95  # of the time of the default: less is no reason to leave it
SECONDS = 8.0  # after which no further method is compiled


def fastest(product: Product, kernels: Mapping[str, Kernel], dtype: Any = None) -> str:
    """The name of the fastest kernel for a convolution and its gradients, on JAX's device.

    Args:
        product: with one channel on the right.
        kernels: by name, the default first; those of one product.
        dtype: of features and weights; that of JAX's floats if None.

    Returns:
        A name of `kernels`: from the disk, or timed now, which takes some seconds.
    """
    if len(kernels) == 1:
        return next(iter(kernels))
    dtype = jnp.result_type(float) if dtype is None else jnp.dtype(dtype)
    device: Any = jax.config.values["jax_default_device"] or jax.devices()[0]
    key = _key(product, kernels, dtype, device)
    path = _file(key)
    found = _read(path, key) or ""
    if found not in kernels:
        # a thread of its own: the caller may be tracing a program, and this is none of it
        with ThreadPoolExecutor(1) as pool:
            times = pool.submit(_times, product, kernels, dtype, device).result()
        default = next(iter(times))
        found = min(times, key=lambda name: times[name] * (1 if name == default else 1 / CLEARLY))
        _write(path, {"key": key, "method": found, "milliseconds": times})
    return found


def _times(
    product: Product, kernels: Mapping[str, Kernel], dtype: Any, device: Any
) -> dict[str, float]:
    """Milliseconds of each kernel; later ones are left out when time is up or they cannot."""
    start, calls = Clock.now(), {}
    with jax.default_device(device), jax.enable_x64(dtype == np.float64):
        arguments = _arguments(product, dtype)
        for name, kernel in kernels.items():
            if calls and start.until_now().wall > SECONDS:
                break
            try:
                compiled = _gradients(product, kernel).lower(*arguments).compile()
            except ValueError:  # a method that does not take these irreps
                continue
            calls[name] = lambda compiled=compiled: compiled(*arguments)
        timings = take_turns(calls, seconds=0.2, most=20)
    return {name: 1e3 * timing.best(device.platform) for name, timing in timings.items()}


def _gradients(product: Product, kernel: Kernel) -> Any:
    convolve, graph = Convolution(kernel), ring(EDGES)

    def energy(x: jax.Array, y: jax.Array, radial: Radial) -> jax.Array:
        left, right = IrrepsArray(product.irreps_left, x), IrrepsArray(product.irreps_right, y)
        return jnp.sum(convolve(product, left, right, radial, graph).array ** 2)

    return jax.jit(jax.grad(energy, (0, 1, 2)))


def _arguments(product: Product, dtype: Any) -> tuple[jax.Array, jax.Array, Radial]:
    rng = np.random.default_rng(0)
    rows = ring(EDGES).neighbors.shape

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), dtype)

    shared = normal(product.num_shared) if product.num_shared else None
    radial = Radial(normal(*rows, WIDTH), normal(WIDTH, product.num_weights) / WIDTH**0.5, shared)
    return normal(rows[0], product.irreps_left.dim), normal(*rows, product.irreps_right.dim), radial


def ring(edges: int) -> AtomGraph:
    """A graph of at most so many edges: every atom sees the nearest ones on a ring, both ways.

    Raises:
        ValueError: fewer than 6 edges.
    """
    if edges < 6:
        raise ValueError(f"a convolution needs 6 edges or more, not {edges}")
    side = max(k for k in range(1, NEIGHBORS // 2 + 1) if 2 * k * (2 * k + 1) <= edges)
    atoms = edges // (2 * side)
    index = np.arange(atoms, dtype=np.int32)
    steps = np.concatenate([np.arange(-side, 0), np.arange(1, side + 1)])
    neighbors = (index[:, None] + steps) % atoms
    # the step back from a neighbour stands at the mirrored place of its row
    reverse = neighbors * len(steps) + np.arange(len(steps))[::-1]
    return AtomGraph(
        positions=np.zeros((atoms, 3), np.float32),
        species=np.zeros(atoms, np.int32),
        cell=np.zeros((1, 3, 3), np.float32),
        structure=np.zeros(atoms, np.int32),
        centers=index,
        rows=index[:, None],
        neighbors=neighbors.astype(np.int32),
        shifts=np.zeros((*neighbors.shape, 3), np.int32),
        neighbor_mask=np.ones(neighbors.shape, bool),
        reverse=reverse.astype(np.int32),
        atom_mask=np.ones(atoms, bool),
        structure_mask=np.ones(1, bool),
    )


# ------------------------------------------------------------------------------------ the disk


def _key(product: Product, kernels: Mapping[str, Kernel], dtype: Any, device: Any) -> str:
    """Everything the choice depends on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = [version(name) for name in ("eqnet", "jax", "jaxlib")]
    parts = (repr(product), tuple(kernels), str(dtype), device.device_kind, cores, *versions)
    return " ".join(map(str, parts))


def _file(key: str) -> Path | None:
    """In the user's cache folder; None where there can be none."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
        folder = base / "eqnet" / "methods"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def _read(path: Path | None, key: str) -> str | None:
    try:
        choice = json.loads(path.read_text(encoding="utf-8")) if path else {}
        return choice.get("method") if choice.get("key") == key else None
    except (OSError, ValueError, AttributeError):
        return None


def _write(path: Path | None, choice: dict[str, Any]) -> None:
    """The whole file or nothing; a folder that cannot be written costs only the next timing."""
    if path is None:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(choice, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
