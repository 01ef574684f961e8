"""What is in files of structures: labels, energies per element, outliers, cells, neighbours."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from eqnet.data.findings import Finding, closest
from eqnet.data.frame import Frame
from eqnet.data.items import Item, sizes_of
from eqnet.data.packing import histogram
from eqnet.data.read import Dataset
from eqnet.data.reference_energies import atomic_energies
from eqnet.data.split import fingerprint, repetitions

Frames = Mapping[str, Sequence[Frame]]  # by role
Items = Mapping[str, Sequence[Item]]

OUTLIER = 10.0  # robust standard deviations
NET_FORCE = 1e-2  # eV/A per atom; converged calculations have less
CROWDED = 2000  # neighbours of an atom
VACUUM = 8.0  # angstrom without atoms along a periodic axis
FLAT = 0.35  # height of a cell along a vector / the vector's length
MOST_OUTLIERS = 5


def label_statistics(datasets: Mapping[str, Dataset]) -> list[dict[str, Any]]:
    """Source, count, range, mean and standard deviation of each label of each file."""
    rows = []
    for role, data in datasets.items():
        for row in data.report.rows:
            mean, std = _mean_and_std(data.frames, row.label)
            rows.append(
                {
                    "role": role, "file": data.report.file, "label": row.label, "key": row.key,
                    "source": row.source, "frames": row.count, "of": len(data.frames),
                    "lowest": row.minimum, "highest": row.maximum, "mean": mean, "std": std,
                    "unit": row.unit,
                }
            )  # fmt: skip
    return rows


def _mean_and_std(frames: Sequence[Frame], label: str) -> tuple[float, float]:
    """Of all numbers of a label, frame by frame (Chan, Golub and LeVeque 1979)."""
    number, mean, squares = 0, 0.0, 0.0
    for frame in frames:
        value = getattr(frame, label)
        if value is not None:
            size, own = np.size(value), float(np.mean(value))
            away, number = own - mean, number + size
            mean += away * size / number
            squares += float(np.var(value)) * size + away**2 * size * (number - size) / number
    return mean, math.sqrt(squares / number)


def element_energies(frames: Sequence[Frame], elements: Sequence[int]) -> dict[str, Any] | None:
    """Energies per element by least squares, what they leave, and what cannot be told."""
    if not any(frame.energy is not None for frame in frames):
        return None
    energies, report = atomic_energies("least_squares", frames, {}, elements)
    return {"energies": energies.tolist(), "rms_mev": report.rms, "notes": report.notes}


# -------------------------------------------------------------------------------- outliers


def robust_z(values: np.ndarray) -> np.ndarray:
    """Deviations from the median in standard deviations that outliers do not move.

    0.6745 (x - median) / MAD; 0 where half of the values are equal.
    """
    away = values - np.median(values)
    spread = np.median(np.abs(away))
    return 0.6745 * away / spread if spread > 0 else np.zeros(len(values))


def outliers(frames: Frames, elements: Sequence[int], energies: Sequence[float]) -> dict[str, Any]:
    """Frames whose energy per atom beyond its elements, or largest force, is far from the others.

    Forces are compared by their logarithms, because their distribution is skewed.
    """
    by_element = dict(zip(elements, energies, strict=True)) if energies else {}
    energy: list[tuple[str, int, float]] = []  # file, frame and value
    force: list[tuple[str, int, float]] = []
    for f in (frame for some in frames.values() for frame in some):
        if f.energy is not None and by_element:
            beyond = f.energy - sum(by_element[int(z)] for z in f.numbers)
            energy.append((f.file, f.index, beyond / len(f)))
        if f.forces is not None and f.forces.any():
            force.append((f.file, f.index, float(np.sqrt((f.forces**2).sum(axis=1).max()))))
    return {
        "energy_per_atom": _outliers(energy, np.array([x for *_, x in energy]), both=True),
        "largest_force": _outliers(force, np.log([x for *_, x in force]), both=False),
    }


def _outliers(
    found: Sequence[tuple[str, int, float]], scale: np.ndarray, *, both: bool
) -> list[dict[str, Any]]:
    """Those far above the others (or below them too), the worst first."""
    if len(found) < 3:
        return []
    z = robust_z(scale)
    size = np.abs(z) if both else z
    worst = [int(i) for i in np.argsort(-size) if size[i] > OUTLIER]
    return [
        {"file": file, "frame": frame, "value": value, "z": float(z[i])}
        for i in worst
        for file, frame, value in [found[i]]
    ]


def outlier_findings(found: Mapping[str, Any]) -> Iterator[Finding]:
    """One sentence for each kind, with the worst frames."""
    words = {"energy_per_atom": "eV per atom beyond its elements", "largest_force": "eV/A at most"}
    for kind, rows in found.items():
        if rows:
            worst = ", ".join(
                f"{r['file']}, frame {r['frame']} ({r['value']:.4g} {words[kind]}, z {r['z']:.0f})"
                for r in rows[:MOST_OUTLIERS]
            )
            name = kind.replace("_", " ")
            text = f"frames far from the others in {name}: {len(rows)}, the worst {worst}"
            yield Finding(kind, "note", text)


def net_forces(frames: Frames) -> Iterator[Finding]:
    """Forces that do not add up to zero, and torques on molecules."""
    worst: dict[str, tuple[float, str]] = {}
    high, number = Counter[str](), Counter[str]()
    for frame in (f for some in frames.values() for f in some):
        if frame.forces is None or len(frame) < 2:
            continue
        kinds = {"net force": net_force(frame)}
        if not frame.pbc.any():
            kinds["net torque / radius"] = net_torque(frame)
        for kind, value in kinds.items():
            number[kind] += 1
            high[kind] += value > NET_FORCE
            if value > worst.get(kind, (-1.0, ""))[0]:
                worst[kind] = (value, frame.name)
    for kind, (value, name) in worst.items():
        if high[kind]:
            yield Finding(
                "net_force", "note",
                f"{high[kind]} of {number[kind]} frames have a {kind} above {NET_FORCE} eV/A per "
                f"atom (most: {value:.3g} in {name}); no potential can learn that",
            )  # fmt: skip


def net_force(frame: Frame) -> float:
    """Length of the sum of the forces per atom, eV/A."""
    assert frame.forces is not None
    return float(np.linalg.norm(frame.forces.sum(axis=0))) / len(frame)


def net_torque(frame: Frame) -> float:
    """Torque around the centroid, per atom and radius of gyration, eV/A."""
    assert frame.forces is not None
    arms = frame.positions - frame.positions.mean(axis=0)
    torque = np.cross(arms, frame.forces - frame.forces.mean(axis=0)).sum(axis=0)
    return float(np.linalg.norm(torque) / np.sqrt((arms**2).sum() * len(frame)))


# ------------------------------------------------------------------------------ structures


def duplicates(frames: Frames) -> Iterator[Finding]:
    """The same structure twice, within a file and between them."""
    for role, some in frames.items():
        first: dict[bytes, int] = {}
        again = [
            (place, known)
            for place, frame in enumerate(some)
            if (known := first.setdefault(fingerprint(frame), place)) != place
        ]
        if again:
            frame, known = (some[place] for place in again[0])
            yield Finding(
                "duplicates", "note",
                f"{len(again)} {role} structures are there before (first: {frame.name} is frame "
                f"{known.index} again)",
            )  # fmt: skip
    yield from (Finding("duplicates", "note", text) for text in repetitions(frames))


def neighbour_counts(items: Items) -> dict[str, Any]:
    """Neighbours of an atom and the shortest distance over all structures."""
    sizes = [sizes_of(some) for some in items.values()]
    times = histogram(counts for some in sizes for counts in some.counts)
    there = np.flatnonzero(times)
    found: dict[str, Any] = {
        "lowest": int(there[0]), "mean": float(times @ np.arange(len(times)) / times.sum()),
        "highest": int(there[-1]), "alone": int(times[0]), "shortest": None,
    }  # fmt: skip
    shortest = np.concatenate([some.shortest for some in sizes])
    if np.isfinite(shortest).any():
        item = _nth(items, int(shortest.argmin()))
        distance, i, j = closest(item)
        found["shortest"] = {
            "distance": distance, "file": item.frame.file, "frame": item.frame.index,
            "atoms": [i, j],
        }  # fmt: skip
    return found


def _nth(items: Items, place: int) -> Item:
    """An item by its place among those of all roles."""
    for some in items.values():
        if place < len(some):
            return some[place]
        place -= len(some)
    raise IndexError(place)


def crowded(items: Items, r_max: float) -> Iterator[Finding]:
    """Atoms with so many neighbours that a training takes forever."""
    most = [int(counts.max()) for some in items.values() for counts in sizes_of(some).counts]
    if max(most) > CROWDED:
        worst = _nth(items, most.index(max(most)))
        yield Finding(
            "neighbours", "warning",
            f"{worst.frame.name}: an atom has {max(most)} neighbours within r_max = "
            f"{r_max:g} A, more than {CROWDED}; is the cell right? else lower --r_max",
        )  # fmt: skip


def cells(frames: Frames, r_max: float) -> Iterator[Finding]:
    """Cells that are allowed, but often a mistake; each kind once, with its first frame."""
    found, first = Counter[str](), dict[str, str]()
    for frame in (frame for some in frames.values() for frame in some):
        for words in _oddities(frame, r_max):
            found[words] += 1
            first.setdefault(words, frame.name)
    every = sum(map(len, frames.values()))
    for words, number in found.items():
        text = f"{number} of {every} frames {words} (first: {first[words]})"
        yield Finding("cell", "note", text)


def _oddities(frame: Frame, r_max: float) -> Iterator[str]:
    cell, pbc = frame.cell, frame.pbc
    if cell.any() and not pbc.any():
        yield "have a lattice, but are not periodic: the lattice is ignored"
    if not pbc.any():
        return
    if pbc.all() and np.linalg.det(cell) < 0:
        yield "have a left-handed cell, which is allowed"
    whole = np.where(pbc[:, None], cell, _complement(cell, pbc))
    inverse = np.linalg.inv(whole)
    heights = 1 / np.linalg.norm(inverse, axis=0)
    lengths = np.linalg.norm(whole, axis=1)
    if (heights / lengths)[pbc].min() < FLAT:
        yield f"have a very skewed cell (height / length below {FLAT}), which is allowed"
    if heights[pbc].min() < r_max:
        yield f"have a cell lower than r_max = {r_max:g} A, where atoms see their own images"
    places = (frame.positions @ inverse)[:, pbc]
    if places.min() < -1 or places.max() > 2:
        yield "have atoms more than a cell outside, which is allowed"
    inside = np.sort(places % 1, axis=0)
    gaps = np.diff(inside, axis=0, append=inside[:1] + 1).max(axis=0) * heights[pbc]
    if len(frame) > 1 and gaps.max() > VACUUM:
        yield f"are periodic across more than {VACUUM:g} A of vacuum"


def _complement(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Unit vectors perpendicular to the periodic ones, in the rows that are not periodic."""
    rows = np.zeros((3, 3))
    rows[~pbc] = np.linalg.svd(cell[pbc])[2][pbc.sum() :]
    return rows
