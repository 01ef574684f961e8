"""The fastest method of a product on this device: timed once, remembered on disk.

All methods of a product compute the same function, so that a choice changes results by rounding
only. A method must be clearly faster than the default to take its place, and what was chosen stays
chosen: the second program that asks gets the answer of the first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eqnet.graph import AtomGraph
from eqnet.irreps import IrrepsArray
from eqnet.ops import choices
from eqnet.ops.apart import default_device
from eqnet.ops.convolution import Convolution
from eqnet.ops.product import Kernel, NodePower, Product, Radial
from eqnet.ops.timing import Clock, take_turns
from eqnet.processor import processor_name

EDGES = 600  # of the convolution that is timed
NEIGHBORS = 20  # of an atom, where there are edges enough
WIDTH = 64  # hidden layer of the radial network
ATOMS = 200  # of the power that is timed
CLEARLY = 0.95  # of the time of the default: less is no reason to leave it
SECONDS = 15.0  # after which no further method is compiled

Energy = Callable[..., jax.Array]  # a scalar of the arrays that have gradients


def fastest(product: Product, kernels: Mapping[str, Kernel], dtype: Any = None) -> str:
    """The name of the fastest kernel for a convolution and its gradients, on JAX's device.

    Args:
        product: with one channel on the right.
        kernels: by name, the default first; those of one product.
        dtype: of features and weights; that of JAX's floats if None.

    Returns:
        A name of `kernels`: from the disk, or timed now, which takes some seconds. The default if
        none takes these irreps.
    """

    def energy(kernel: Kernel, x: jax.Array, y: jax.Array, radial: Radial) -> jax.Array:
        left, right = IrrepsArray(product.irreps_left, x), IrrepsArray(product.irreps_right, y)
        out = Convolution(kernel)(product, left, right, radial, ring(EDGES))
        return jnp.sum(out.array**2)

    energies = {name: partial(energy, kernel) for name, kernel in kernels.items()}
    return _fastest(product, energies, partial(_edge_arguments, product), dtype)


def fastest_power(power: NodePower, methods: Sequence[str], dtype: Any = None) -> str:
    """The fastest method for the powers of some atoms and their gradients; see `fastest`."""

    def energy(method: str, x: jax.Array, weights: jax.Array) -> jax.Array:
        return jnp.sum(power(IrrepsArray(power.irreps_in, x), weights, method).array ** 2)

    energies = {name: partial(energy, name) for name in methods}
    return _fastest(power, energies, partial(_power_arguments, power), dtype)


def _fastest(
    product: Product | NodePower,
    energies: Mapping[str, Energy],
    arguments: Callable[[Any], tuple[Any, ...]],
    dtype: Any,
) -> str:
    """A name of `energies`, functions of the arguments in a precision."""
    default = next(iter(energies))
    if len(energies) == 1:
        return default
    dtype = jnp.result_type(float) if dtype is None else jnp.dtype(dtype)
    device = default_device()
    key = _key(product, energies, dtype, device)
    found = choices.read(key)
    if found not in energies:
        # a thread of its own: the caller may be tracing a program, and this is none of it
        with ThreadPoolExecutor(1) as pool:
            times = pool.submit(_times, energies, arguments, dtype, device).result()
        if not times:
            return default  # it says what is wrong better than a clock
        first = next(iter(times))
        found = min(times, key=lambda name: times[name] * (1 if name == first else 1 / CLEARLY))
        choices.write(key, found, times)
    return found


def _key(product: Any, methods: Mapping[str, Any], dtype: Any, device: Any) -> str:
    """Everything the choice depends on: a home folder may be shared by different machines."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = [version(name) for name in ("eqnet", "jax", "jaxlib")]
    kind = processor_name() if device.platform == "cpu" else device.device_kind
    parts = (repr(product), tuple(methods), str(dtype), kind, cores, *versions)
    return " ".join(map(str, parts))


def _times(
    energies: Mapping[str, Energy],
    arguments: Callable[[Any], tuple[Any, ...]],
    dtype: Any,
    device: Any,
) -> dict[str, float]:
    """Milliseconds of the gradients; methods are left out when time is up or they cannot."""
    start, programs, calls = Clock.now(), {}, {}
    with jax.default_device(device), jax.enable_x64(dtype == np.float64):
        arrays = arguments(dtype)
        for name, energy in energies.items():
            gradients: Any = jax.jit(jax.grad(energy, tuple(range(len(arrays)))))
            with suppress(ValueError):  # a method that does not take these irreps
                programs[name] = gradients.lower(*arrays)
        # the default, then small programs before large ones, which compile for longer
        default = next(iter(programs), "")
        sizes = {name: len(program.as_text()) for name, program in programs.items()}
        for name in sorted(programs, key=lambda name: (name != default, sizes[name])):
            # the lesser clock: other work on the machine does not decide
            if calls and min(start.until_now()) > SECONDS:
                break
            calls[name] = partial(programs[name].compile(), *arrays)
        timings = take_turns(calls, seconds=0.2, most=20)
    return {name: 1e3 * timing.best(device.platform) for name, timing in timings.items()}


def _edge_arguments(product: Product, dtype: Any) -> tuple[jax.Array, jax.Array, Radial]:
    rows = ring(EDGES).neighbors.shape
    normal = _normal(dtype)
    shared = normal(product.num_shared) if product.num_shared else None
    radial = Radial(
        normal(*rows, WIDTH), (normal(WIDTH, product.num_weights) / WIDTH**0.5,), shared
    )
    return normal(rows[0], product.irreps_left.dim), normal(*rows, product.irreps_right.dim), radial


def _power_arguments(power: NodePower, dtype: Any) -> tuple[jax.Array, jax.Array]:
    normal = _normal(dtype)
    weights = normal(ATOMS, power.num_weights, list(power.irreps_in)[0].mul)
    return normal(ATOMS, power.irreps_in.dim), weights


def _normal(dtype: Any) -> Callable[..., jax.Array]:
    """Normal numbers of a shape."""
    rng = np.random.default_rng(0)
    return lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)


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
