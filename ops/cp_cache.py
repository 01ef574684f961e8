"""Fits of stacked Clebsch-Gordan tensors, made once and kept in the user's cache folder.

A fit of degree 3 takes seconds, one of degree 4 minutes. Each is a file named by everything it was
made from; it is written whole or not at all, and believed only if its checksum is right and its
factors have the error it states. Otherwise it is made again.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path

import numpy as np

from eqnet.files import cache_folder, replacing
from eqnet.ops.cp_fit import EXACT, LARGEST_SUM, Factors, fit
from eqnet.ops.cp_tensor import StackedTensor

FORMAT = 3  # a new number when the fits of the same arguments change
# Above this many entries of the tensor (all degrees to 4) no exact fit is searched for.
LARGEST = 25**3
# Exact ranks for all degrees to L on all sides found in long searches, {(d, couplings): rank}:
# with all couplings, and with the even ones only (natural parity).
KNOWN_RANKS = {
    **{(4, 5): 8, (9, 15): 30, (16, 34): 90, (25, 65): 216},
    **{(4, 4): 6, (9, 11): 18, (16, 23): 52, (25, 42): 122},
}

SMALL = 0.05  # errors that a model could be trained with


@dataclass(frozen=True)
class Fit:
    """Factors of a tensor and how good they are.

    Attributes:
        factors: of rank R.
        error: |sum of terms - T| / |T|.
        equivariance_error: relative root mean square, see `StackedTensor.equivariance_error`.
        cancellation: see `Factors.cancellation`.
    """

    factors: Factors
    error: float
    equivariance_error: float
    cancellation: float

    @classmethod
    def of(cls, factors: Factors, stacked: StackedTensor) -> Fit:
        """With its errors computed."""
        return cls(
            factors,
            factors.error(stacked.values),
            stacked.equivariance_error(factors.tensor()),
            factors.cancellation(stacked.values),
        )

    @property
    def degenerate(self) -> bool:
        """Whether a small error is bought by cancellation: it would fall on, if terms could grow.

        So it is just below some exact ranks, where one term more is all that is missing.
        """
        return self.cancellation > 0.9 * LARGEST_SUM and self.error < SMALL


@cache
def fit_of_rank(stacked: StackedTensor, rank: int) -> Fit:
    """The best fit of a rank, from the cache or made now."""
    if rank >= trivial_rank(stacked):
        return Fit.of(trivial_factors(stacked), stacked)
    return _kept(stacked, f"rank {rank}", lambda: fit(stacked.values, rank))


@cache
def smallest_fit(stacked: StackedTensor, tolerance: float) -> Fit:
    """The smallest fit, not degenerate, that was found with at most this relative error.

    Ranks are searched by bisection with a few starts each, below the rank of a generic tensor of
    this shape, d1 d2 d3 / (d1 + d2 + d3 - 2), or from the known exact rank down to it. Tensors too
    large to fit to rounding get the trivial factors.
    """
    if tolerance <= EXACT and stacked.values.size > LARGEST:
        return Fit.of(trivial_factors(stacked), stacked)
    return _kept(stacked, f"tolerance {tolerance!r}", lambda: _search(stacked, tolerance))


def trivial_rank(stacked: StackedTensor) -> int:
    """Product of the two shorter sides: every tensor has a decomposition of this rank."""
    shape = sorted(stacked.values.shape)
    return shape[0] * shape[1]


def trivial_factors(stacked: StackedTensor) -> Factors:
    """One term for each pair of components of the two shorter sides, exact."""
    tensor = stacked.values
    a, b, long = np.argsort(tensor.shape, kind="stable")
    first, second = tensor.shape[a], tensor.shape[b]
    factors: list = [None, None, None]
    factors[a] = np.repeat(np.eye(first), second, axis=1)
    factors[b] = np.tile(np.eye(second), (1, first))
    factors[long] = tensor.transpose(long, a, b).reshape(tensor.shape[long], -1)
    return Factors(*factors)


def _search(stacked: StackedTensor, tolerance: float) -> Factors:
    tensor = stacked.values
    shape, trivial = tensor.shape, trivial_rank(stacked)

    def attempt(rank: int, starts: int) -> Factors | None:
        found = Fit.of(fit(tensor, rank, tolerance, starts), stacked)
        return found.factors if found.error <= tolerance and not found.degenerate else None

    known = KNOWN_RANKS.get((max(shape), len(stacked.couplings)), 0) if len(set(shape)) == 1 else 0
    # with a tolerance this tight no smaller rank than the exact one is enough
    if known and tolerance <= 1e-5:
        found = attempt(known, 16)
        if found:
            return found
    low = _impossible_rank(tensor, tolerance)
    high = known or min(max(ceil(tensor.size / (sum(shape) - 2)), low + 1), trivial)
    best = attempt(high, 8)
    while best is None:
        low, high = high, min(ceil(1.1 * high) + 1, trivial)
        best = trivial_factors(stacked) if high == trivial else attempt(high, 8)
    while high - low > 1:
        middle = (low + high) // 2
        found = attempt(middle, 4)
        if found is None:
            low = middle
        else:
            best, high = found, middle
    return best


def _impossible_rank(tensor: np.ndarray, tolerance: float) -> int:
    """The largest rank that cannot have this error, because matrices of that rank cannot.

    Unfolded to a matrix, R terms are a matrix of rank R, which misses at least the singular values
    beyond the first R.
    """
    low = 0
    for n in range(3):
        unfolded = np.moveaxis(tensor, n, 0).reshape(tensor.shape[n], -1)
        squares = np.linalg.svd(unfolded, compute_uv=False) ** 2
        missed = np.sqrt(np.cumsum(squares[::-1])[::-1] / squares.sum())
        low = max(low, int((missed > max(tolerance, EXACT)).sum()) - 1)
    return low


def _kept(stacked: StackedTensor, what: str, make: Callable[[], Factors]) -> Fit:
    """From the cache folder if there is a sound file, otherwise made and written there."""
    parts = (FORMAT, stacked.left, stacked.right, stacked.out, stacked.group, what)
    key = hashlib.sha256(repr(parts).encode() + stacked.values.tobytes()).hexdigest()[:32]
    folder = cache_folder("cp")
    found = _read(folder / f"{key}.npz", stacked) if folder else None
    if found is None:
        found = Fit.of(make(), stacked)
        if folder:
            _write(folder / f"{key}.npz", found)
    return found


def _digest(arrays: dict[str, np.ndarray]) -> np.ndarray:
    sha = hashlib.sha256()
    for name in sorted(arrays):
        sha.update(f"{name} {arrays[name].shape}".encode() + arrays[name].tobytes())
    return np.frombuffer(sha.digest(), np.uint8)


def _write(path: Path, found: Fit) -> None:
    """The whole file or nothing; a folder that cannot be written costs only the next fit."""
    errors = np.array([found.error, found.equivariance_error, found.cancellation])
    arrays = {**found.factors._asdict(), "errors": errors}
    with suppress(OSError), replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays, sha256=_digest(arrays))  # pyright: ignore[reportArgumentType]


def _read(path: Path, stacked: StackedTensor) -> Fit | None:
    try:
        # numpy leaves a file open that it cannot read, if it has opened it itself
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in (*Factors._fields, "errors")}
            sound = np.array_equal(file["sha256"], _digest(arrays))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if not sound:
        return None
    factors = Factors(*(arrays[name] for name in Factors._fields))
    dims = tuple(f.shape[0] for f in factors)
    if dims != stacked.values.shape or len({f.shape[1:] for f in factors}) != 1:
        return None
    found = Fit.of(factors, stacked)
    return found if abs(found.error - arrays["errors"][0]) <= 1e-3 * found.error + EXACT else None
