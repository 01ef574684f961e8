"""Energies of isolated atoms (E0s), subtracted from total energies before training.

A potential learns what is left. Where the energies come from, and how much they leave, is shown,
because wrong ones ruin a training silently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eqnet.data.frame import Frame
from eqnet.errors import InputError

METHODS = ("auto", "isolated", "least_squares", "average")
_RANK = 1e-6  # singular values below this part of the largest are directions the data do not know
BOUND = (-15.0, 5.0)  # eV per atom; no compound is bound more, or less, than this


@dataclass(frozen=True)
class ReferenceReport:
    """How the reference energies came about and what they leave of the energies."""

    method: str
    elements: tuple[int, ...]
    energies: tuple[float, ...]  # eV
    num_frames: int  # frames with an energy
    mean: float  # of what is left, eV per atom
    rms: float  # of what is left around its mean, meV per atom
    notes: list[str]


def atomic_energies(
    how: str | Mapping[Any, float],
    frames: Sequence[Frame],
    isolated: Mapping[int, float],
    elements: Sequence[int],
) -> tuple[np.ndarray, ReferenceReport]:
    """Reference energies of the elements.

    Args:
        how: "isolated" takes the energies of isolated atoms; "average" gives every element the mean
            energy per atom; "least_squares" fits one energy per element to the energies per atom;
            "auto" is "isolated" where every element has one, else "least_squares"; or a mapping
            from atomic numbers or symbols to eV.
        frames: the training frames.
        isolated: atomic number -> eV, from frames of isolated atoms.
        elements: atomic numbers in the order of the answer.

    Returns:
        Energies in eV, float64, one per element; what they leave of the energies.

    Raises:
        InputError: an unknown name, a missing element, or no energies to fit.
    """
    name = how if isinstance(how, str) else "given"
    known = name.lower().replace("isolatedatom", "isolated")
    if known == "auto":
        known = "isolated" if all(z in isolated for z in elements) else "least_squares"
    notes: list[str] = []
    if not isinstance(how, str):
        known, energies = "given", _pick(_by_number(how), elements, "the given energies")
    elif known == "isolated":
        energies = _pick(isolated, elements, "the frames with config_type=IsolatedAtom")
    elif known in ("average", "least_squares"):
        energies = _fit(known, frames, elements, notes)
    else:
        raise InputError(
            f"E0s {how!r} is unknown; give {', '.join(METHODS)} or energies per element"
        )
    return energies, _report(known, energies, frames, elements, notes)


def _by_number(given: Mapping[Any, float]) -> dict[int, float]:
    from ase.data import atomic_numbers

    energies = {}
    for key, value in given.items():
        number = atomic_numbers.get(str(key), key) if isinstance(key, str) else key
        if isinstance(number, str) and number.isdigit():
            number = int(number)
        if not isinstance(number, int | np.integer) or not 1 <= number <= 118:
            raise InputError(f"E0s name {key!r}, which is neither an atomic number nor a symbol")
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise InputError(f"E0s give {value!r} for {key}; a number in eV is wanted")
        if not np.isfinite(value):
            raise InputError(f"E0s give {value} for {key}; a finite number in eV is wanted")
        energies[int(number)] = float(value)
    return energies


def _pick(known: Mapping[int, float], elements: Sequence[int], source: str) -> np.ndarray:
    from ase.data import chemical_symbols as symbols

    missing = [symbols[z] for z in elements if z not in known]
    if missing:
        raise InputError(
            f"E0s: {source} have no energy for {', '.join(missing)}; add it, or use least_squares"
        )
    return np.array([known[z] for z in elements], dtype=np.float64)


def _composition(frames: Sequence[Frame], elements: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Composition as fractions [F, Z] and energy per atom [F] of the frames with an energy."""
    order, kind = np.asarray(elements), np.dtype((np.float64, len(elements) + 1))
    rows = (
        np.append((frame.numbers[:, None] == order).mean(axis=0), frame.energy / len(frame))
        for frame in frames
        if frame.energy is not None
    )
    table = np.fromiter(rows, dtype=kind)
    return table[:, :-1], table[:, -1]


def _fit(
    method: str, frames: Sequence[Frame], elements: Sequence[int], notes: list[str]
) -> np.ndarray:
    """Average, or the least-squares solution nearest to it where the data leave a choice."""
    fractions, per_atom = _composition(frames, elements)
    if not len(per_atom):
        raise InputError(f"E0s by {method} need frames with energies, and there are none")
    energies = np.full(len(elements), per_atom.mean())
    if method == "average":
        return energies
    correction, _, rank, _ = np.linalg.lstsq(fractions, per_atom - per_atom.mean(), rcond=_RANK)
    if rank == 1 and len(elements) > 1:
        notes.append(
            "all frames have one composition, which cannot tell the elements apart: every element "
            "has the mean energy per atom"
        )
    elif rank < len(elements):
        notes.append(
            f"the compositions tell only {rank} of {len(elements)} elements apart: of all fits "
            "the one nearest to the mean energy per atom is taken"
        )
    return energies + correction


def _report(
    method: str,
    energies: np.ndarray,
    frames: Sequence[Frame],
    elements: Sequence[int],
    notes: list[str],
) -> ReferenceReport:
    fractions, per_atom = _composition(frames, elements)
    left = per_atom - fractions @ energies
    mean = float(left.mean()) if len(left) else 0.0
    rms = 1000 * float(np.sqrt(((left - mean) ** 2).mean())) if len(left) else 0.0
    if len(left) and not BOUND[0] < mean < BOUND[1]:
        notes.append(
            f"the reference energies leave {mean:.1f} eV per atom on average, more than chemical "
            "binding explains; do they come from the same method as the total energies?"
        )
    return ReferenceReport(
        method=method,
        elements=tuple(int(z) for z in elements),
        energies=tuple(float(e) for e in energies),
        num_frames=len(per_atom),
        mean=mean,
        rms=rms,
        notes=notes,
    )
