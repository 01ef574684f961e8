"""What is in files of structures: labels, energies per element, outliers, cells, neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from eqnet.data.findings import Finding, closest
from eqnet.data.frame import Frame
from eqnet.data.items import Item
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
            values = [v for f in data.frames if (v := getattr(f, row.label)) is not None]
            flat = np.concatenate([np.ravel(v) for v in values])
            rows.append(
                {
                    "role": role, "file": data.report.file, "label": row.label, "key": row.key,
                    "source": row.source, "frames": row.count, "of": len(data.frames),
                    "lowest": row.minimum, "highest": row.maximum, "mean": float(flat.mean()),
                    "std": float(flat.std()), "unit": row.unit,
                }
            )  # fmt: skip
    return rows


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
    every = [frame for some in frames.values() for frame in some]
    by_element = dict(zip(elements, energies, strict=True))
    energy = [
        (f, (f.energy - sum(by_element[int(z)] for z in f.numbers)) / len(f))
        for f in every
        if f.energy is not None and energies
    ]
    force = [
        (f, float(np.sqrt((f.forces**2).sum(axis=1).max())))
        for f in every
        if f.forces is not None and f.forces.any()
    ]
    return {
        "energy_per_atom": _outliers(energy, np.array([x for _, x in energy]), both=True),
        "largest_force": _outliers(force, np.log([x for _, x in force]), both=False),
    }


def _outliers(
    found: Sequence[tuple[Frame, float]], scale: np.ndarray, *, both: bool
) -> list[dict[str, Any]]:
    """Those far above the others (or below them too), the worst first."""
    if len(found) < 3:
        return []
    z = robust_z(scale)
    size = np.abs(z) if both else z
    worst = [int(i) for i in np.argsort(-size) if size[i] > OUTLIER]
    return [
        {"file": f.file, "frame": f.index, "value": value, "z": float(z[i])}
        for i in worst
        for f, value in [found[i]]
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
    every = [f for some in frames.values() for f in some if f.forces is not None and len(f) > 1]
    molecules = [f for f in every if not f.pbc.any()]
    kinds = (("net force", every, net_force), ("net torque / radius", molecules, net_torque))
    for kind, some, measure in kinds:
        values = np.array([measure(frame) for frame in some])
        count = int((values > NET_FORCE).sum())
        if count:
            worst = int(values.argmax())
            yield Finding(
                "net_force", "note",
                f"{count} of {len(some)} frames have a {kind} above {NET_FORCE} eV/A per atom "
                f"(most: {values[worst]:.3g} in {some[worst].name}); no potential can learn that",
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
        first: dict[bytes, Frame] = {}
        again = [
            (frame, known)
            for frame in some
            if (known := first.setdefault(fingerprint(frame), frame)) is not frame
        ]
        if again:
            frame, known = again[0]
            yield Finding(
                "duplicates", "note",
                f"{len(again)} {role} structures are there before (first: {frame.name} is frame "
                f"{known.index} again)",
            )  # fmt: skip
    yield from (Finding("duplicates", "note", text) for text in repetitions(frames))


def neighbour_counts(items: Items) -> dict[str, Any]:
    """Neighbours of an atom and the shortest distance over all structures."""
    every = [item for some in items.values() for item in some]
    counts = np.concatenate([item.counts for item in every])
    near = [item for item in every if item.num_edges]
    found: dict[str, Any] = {
        "lowest": int(counts.min()), "mean": float(counts.mean()), "highest": int(counts.max()),
        "alone": int((counts == 0).sum()), "shortest": None,
    }  # fmt: skip
    if near:
        item = min(near, key=lambda item: float(item.neighbors.distances.min()))
        distance, i, j = closest(item)
        found["shortest"] = {
            "distance": distance, "file": item.frame.file, "frame": item.frame.index,
            "atoms": [i, j],
        }  # fmt: skip
    return found


def crowded(items: Items, r_max: float) -> Iterator[Finding]:
    """Atoms with so many neighbours that a training takes forever."""
    worst = max((i for some in items.values() for i in some), key=lambda i: int(i.counts.max()))
    if int(worst.counts.max()) > CROWDED:
        yield Finding(
            "neighbours", "warning",
            f"{worst.frame.name}: an atom has {int(worst.counts.max())} neighbours within r_max = "
            f"{r_max:g} A, more than {CROWDED}; is the cell right? else lower --r_max",
        )  # fmt: skip


def cells(frames: Frames, r_max: float) -> Iterator[Finding]:
    """Cells that are allowed, but often a mistake; each kind once, with its first frame."""
    found: dict[str, list[Frame]] = {}
    every = [frame for some in frames.values() for frame in some]
    for frame in every:
        for words in _oddities(frame, r_max):
            found.setdefault(words, []).append(frame)
    for words, some in found.items():
        text = f"{len(some)} of {len(every)} frames {words} (first: {some[0].name})"
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
