"""Splitting frames into training, validation and test sets, drawn by a seed and written down."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from eqnet.data.frame import Frame
from eqnet.data.part import take
from eqnet.errors import InputError, reason

T = TypeVar("T")
PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class Split:
    """Indices of the frames of each part, ascending; no frame is in two parts."""

    train: list[int]
    valid: list[int]
    test: list[int]

    def select(self, frames: Sequence[T]) -> tuple[Sequence[T], Sequence[T], Sequence[T]]:
        """The frames of the three parts."""
        train, valid, test = (take(frames, part) for part in self.parts())
        return train, valid, test

    def parts(self) -> tuple[list[int], list[int], list[int]]:
        """Training, validation and test indices."""
        return self.train, self.valid, self.test

    def save(self, path: str | Path) -> None:
        """Write the indices as JSON, so that `read_split` gives them back."""
        Path(path).write_text(json.dumps(asdict(self)) + "\n")


def split(
    frames: Sequence[Any],
    *,
    num_train: int | None = None,
    num_valid: int | None = None,
    num_test: int | None = None,
    valid_fraction: float | None = None,
    test_fraction: float | None = None,
    indices: Mapping[str, Sequence[int]] | Split | None = None,
    seed: int = 0,
) -> Split:
    """Draw validation, then test, then training frames without overlap.

    The draw depends on the number of frames and the seed only. The validation part is the same
    whatever is asked of the others.

    Args:
        frames: what is to be split; only their number matters.
        num_train: training frames; None takes all that are left.
        num_valid: validation frames, instead of `valid_fraction`; None with no fraction draws none.
        num_test: test frames, instead of `test_fraction`.
        valid_fraction: of all frames, rounded to the nearest number.
        test_fraction: likewise.
        indices: the parts themselves, instead of all of the above; a part may be left out.
        seed: of the draw.

    Raises:
        InputError: a part that was asked for would be empty, or there are too few frames.
    """
    total = len(frames)
    if indices is not None:
        return _given(indices, total)
    valid = _size("valid", num_valid, valid_fraction, total)
    test = _size("test", num_test, test_fraction, total)
    left = total - valid - test
    train = left if num_train is None else num_train
    if train < 1 or train > left:
        wanted = f"{train} training, " if num_train is not None else "at least 1 training, "
        raise InputError(
            f"{total} frames cannot be split into {wanted}{valid} validation and {test} test "
            "frames; ask for fewer, or give validation and test frames in files of their own"
        )
    order = np.random.default_rng(seed).permutation(total).tolist()
    return Split(
        train=sorted(order[valid + test : valid + test + train]),
        valid=sorted(order[:valid]),
        test=sorted(order[valid : valid + test]),
    )


def read_split(path: str | Path) -> Split:
    """Read the indices of a split from JSON: {"train": [...], "valid": [...], "test": [...]}.

    Raises:
        InputError: the file is missing or is something else.
    """
    try:
        content = json.loads(Path(path).read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise InputError(f"{path}: not a JSON file of indices ({reason(error)})") from None
    if not isinstance(content, dict):
        raise InputError(f'{path}: a JSON object {{"train": [...], "valid": [...]}} is wanted')
    try:
        return _given(content, None)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def fingerprint(frame: Frame) -> bytes:
    """The same for structures with the same atoms in the same places, to 1e-6 A."""
    parts = (frame.numbers, np.round(frame.positions, 6) + 0.0, np.round(frame.cell, 6) + 0.0)
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).digest()


def repetitions(frames: Mapping[str, Sequence[Frame]]) -> Iterator[str]:
    """Structures that are in two roles: their errors say nothing about new structures."""
    train = {fingerprint(frame) for frame in frames["train"]}
    for role in ("valid", "test"):
        again = [
            place for place, frame in enumerate(frames.get(role, ())) if fingerprint(frame) in train
        ]
        if again:
            yield (
                f"{len(again)} {role} structures are also among the training structures (first: "
                f"{frames[role][again[0]].name}); errors on them say little"
            )


def _size(part: str, number: int | None, fraction: float | None, total: int) -> int:
    if number is not None and fraction is not None:
        raise InputError(
            f"num_{part} and {part}_fraction say the same thing twice; give one of them"
        )
    if number is not None:
        if number < 0:
            raise InputError(f"num_{part} is {number}; give 0 or more")
        return number
    if fraction is None or fraction == 0:
        return 0
    if not 0 < fraction < 1:
        raise InputError(f"{part}_fraction is {fraction}; give a number between 0 and 1")
    size = round(fraction * total)
    if size == 0:
        raise InputError(
            f"{part}_fraction {fraction} of {total} frames is 0 frames; "
            f"give a larger fraction or num_{part}"
        )
    return size


def _given(indices: Mapping[str, Sequence[int]] | Split, total: int | None) -> Split:
    given = asdict(indices) if isinstance(indices, Split) else indices
    if not all(isinstance(part, Sequence | np.ndarray) for part in given.values()):
        raise InputError("the split must name a list of indices for each of its parts")
    parts = {name: list(part) for name, part in given.items()}
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise InputError(f"the split names {unknown[0]!r}; its parts are train, valid and test")
    seen: dict[int, str] = {}
    for name, part in parts.items():
        for index in part:
            whole = isinstance(index, int | np.integer) and not isinstance(index, bool)
            if not whole or index < 0 or (total is not None and index >= total):
                there = "" if total is None else f" of {total} frames, counted from 0"
                raise InputError(f"{name} of the split holds {index!r}, an index{there} is wanted")
            if int(index) in seen:
                raise InputError(
                    f"the split holds frame {index} in {seen[int(index)]} and in {name}; "
                    "a frame belongs to one part, once"
                )
            seen[int(index)] = name
    if not parts.get("train"):
        raise InputError("the split has no training frames; list at least one under train")
    return Split(*(sorted(int(i) for i in parts.get(name, [])) for name in PARTS))
