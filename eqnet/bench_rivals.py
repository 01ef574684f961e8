"""Other libraries at the tasks of a benchmark: which there are, and their orders of storage."""

from __future__ import annotations

from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np

from eqnet.bench_tasks import Task
from eqnet.irreps import Irreps, IrrepsArray, regrouped
from eqnet.ops.clebsch_gordan import ClebschGordan
from eqnet.ops.product import Path

LIBRARIES = {
    "e3nn-jax": "e3nn_jax",
    "cuequivariance-jax": "cuequivariance_jax",
    "e3x": "e3x",
    "mlip": "mlip",
}


def installed() -> tuple[str, ...]:
    """The libraries that can be imported here."""
    specs = {name: find_spec(module) for name, module in LIBRARIES.items()}
    return tuple(name for name, spec in specs.items() if spec is not None and spec.origin)


def paths(task: Task) -> tuple[Path, ...]:
    """The Clebsch-Gordan paths of a task, channels left out."""
    return ClebschGordan(task.harmonics, task.harmonics, task.irreps_target).paths


def path_irreps(task: Task) -> Irreps:
    """One channel of output for each path."""
    return regrouped(Irreps([(1, path.out) for path in paths(task)]))


def channels_first(x: IrrepsArray, channels: int) -> jax.Array:
    """[..., irreps of C channels] -> [..., C, irreps of one channel]."""
    return x.array.reshape((*x.array.shape[:-1], -1, channels)).swapaxes(-1, -2)


def channels_last(array: jax.Array, irreps: Irreps) -> IrrepsArray:
    """[..., C, irreps of e3nn] -> array of irreps, copies of an irrep slow and channels fast."""
    channels, blocks, start = array.shape[-2], [], 0
    for mul, ir in irreps:
        part = array[..., start : start + mul * ir.dim]
        part = part.reshape((*array.shape[:-1], mul, ir.dim))
        part = jnp.moveaxis(part, (-3, -1), (-1, -3))  # [..., dim, mul, C]
        blocks.append(part.reshape((*part.shape[:-2], mul * channels)))
        start += mul * ir.dim
    return IrrepsArray.from_blocks(irreps * channels, blocks)


def each_once(irreps: Irreps) -> Irreps:
    """One channel of each irrep."""
    return Irreps([(1, ir) for _, ir in irreps])


def summing(task: Task) -> np.ndarray:
    """1 / sqrt(number of paths to its irrep) of each path, so that sums have unit variance."""
    return np.concatenate([np.full(mul, mul**-0.5) for mul, _ in path_irreps(task)]).astype(
        task.dtype
    )


def check_e3x(task: Task) -> None:
    """Refuse what e3x has no layout for.

    Raises:
        ValueError: with the reason.
    """
    if task.pattern == "simo":
        raise ValueError("e3x takes all degrees up to the highest: --pattern mimo")
    if task.l_out > 2 * task.l_max:
        raise ValueError("e3x gives no degree beyond twice that of its inputs")


def degrees_middle(x: IrrepsArray, task: Task) -> jax.Array:
    """[..., irreps] -> [..., d, C]."""
    return x.array.reshape((*x.array.shape[:-1], -1, task.channels))


def from_e3x(out: jax.Array, task: Task) -> IrrepsArray:
    """[..., P, d, C] with parities (+, -) of e3x -> array of irreps."""
    starts = [l * l for l in range(task.l_out + 2)]
    blocks, kept = [], []
    for ir in [ir for _, ir in task.irreps_target]:
        parity = 0 if out.shape[-3] == 1 or ir.p > 0 else 1
        blocks.append(out[..., parity, starts[ir.l] : starts[ir.l + 1], :])
        kept.append((task.channels, ir))
    return IrrepsArray.from_blocks(Irreps(kept), blocks)
