"""Pairs of nearly equal structures, and the work that leads from one to the other.

Between two near structures a and b of the same atoms the labels must agree with each other:

    E_b - E_a = -(F_a + F_b)/2 . dx + (V_a sigma_a + V_b sigma_b)/2 : strain + O(dx^3),

the trapezoidal rule, which is exact where the energy is quadratic. Units, signs and keys that do
not belong together show here, whatever made the labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from eqnet.data.frame import Frame

RUN = 10  # frames that follow each other are near in trajectories: they are looked at in runs
MOST_FRAMES = 400  # of the same atoms
MOST_NUMBERS = 3_000_000  # coordinates of pairs that are compared, for one group of frames
MOST_PAIRS = 1500  # of all groups
STRAINED = 1e-8  # strain above which a pair counts as strained
LARGEST_STRAIN = 0.15
STRAIN_LENGTH = 2.5  # angstrom; a strain moves neighbouring atoms by so much times itself
LEAST_PAIRS = 8


class Works(NamedTuple):
    """What the labels say of P pairs; all [P], in the units of the file."""

    first: np.ndarray  # position of frame a in its file
    second: np.ndarray  # of frame b
    energy: np.ndarray  # E_b - E_a
    forces: np.ndarray  # -(F_a + F_b)/2 . dx
    stress: np.ndarray  # (V_a sigma_a + V_b sigma_b)/2 : strain, NaN without stress
    virial: np.ndarray  # -(sigma_a + sigma_b)/2 : strain, what it is if the label is the virial
    strain: np.ndarray  # norm of the strain
    distance: np.ndarray  # root mean square displacement of an atom, strain included


def works(frames: Sequence[Frame]) -> Works:
    """Energies and works between near structures, each with the one nearest to it.

    Args:
        frames: structures with energy and forces; those of the same atoms in the same order are
            compared, molecules after the best rotation, crystals by fractional coordinates.
    """
    found: list[tuple[float, ...]] = []
    for group in _groups(frames):
        found += _of_group(group)
        if len(found) > MOST_PAIRS:
            break
    columns = zip(*found, strict=True) if found else ([] for _ in Works._fields)
    return Works(*(np.array(column, dtype=np.float64) for column in columns))


class Slope(NamedTuple):
    """Energy differences over a work: 1 where labels and units belong together.

    Both are divided by the distance, so that all pairs count, and compared by their root mean
    squares, because both have errors.
    """

    value: float
    correlation: float  # -1 to 1
    pairs: int
    distance: float  # median root mean square displacement of these pairs

    @property
    def width(self) -> float:
        """Uncertainty of the logarithm of the value."""
        return 0.1 + math.sqrt(max(1 - self.correlation**2, 0.0))


def forces_slope(found: Works) -> Slope | None:
    """Energies against the work of the forces, over the nearer half of the pairs of one cell."""
    near = _nearer(found, found.strain < STRAINED)
    distance = found.distance[near]
    return _slope(found.energy[near] / distance, found.forces[near] / distance, distance)


def stress_slope(found: Works, *, virial: bool = False) -> Slope | None:
    """Energies, without the part of the forces, against the work of the stress.

    Args:
        found: pairs.
        virial: as if the label were the virial.
    """
    near = _nearer(found, (found.strain > STRAINED) & np.isfinite(found.stress))
    if len(near) < LEAST_PAIRS:
        return None
    distance = found.distance[near]
    energy, forces = found.energy[near] / distance, found.forces[near] / distance
    work = (found.virial if virial else found.stress)[near] / distance
    part = np.linalg.lstsq(np.stack([forces, work], axis=1), energy, rcond=None)[0][0]
    return _slope(energy - part * forces, work, distance)


def _nearer(found: Works, wanted: np.ndarray) -> np.ndarray:
    """Indices of the nearer half of some pairs, where the trapezoidal rule is better."""
    places = np.flatnonzero(wanted)
    order = places[np.argsort(found.distance[places], kind="stable")]
    return order[: max(2 * LEAST_PAIRS, len(order) // 2)]


def _slope(energy: np.ndarray, work: np.ndarray, distance: np.ndarray) -> Slope | None:
    sizes = float(energy @ energy), float(work @ work)
    if len(energy) < LEAST_PAIRS or min(sizes) <= 0:
        return None
    correlation = float(energy @ work) / math.sqrt(sizes[0] * sizes[1])
    value = math.copysign(math.sqrt(sizes[0] / sizes[1]), correlation)
    return Slope(value, correlation, len(energy), float(np.median(distance)))


def _groups(frames: Sequence[Frame]) -> Iterator[list[Frame]]:
    """The largest groups of frames with the same atoms, in short runs spread over the group."""
    groups: dict[bytes, list[int]] = {}
    for place, frame in enumerate(frames):
        if frame.energy is None or frame.forces is None or len(frame) < 2:
            continue
        if frame.pbc.all() or not frame.pbc.any():
            key = frame.pbc.tobytes() + frame.numbers.tobytes()
            groups.setdefault(key, []).append(place)
    largest = sorted((g for g in groups.values() if len(g) > 1), key=len, reverse=True)
    for group in largest:
        fits = int(np.sqrt(2 * MOST_NUMBERS / (3 * len(frames[group[0]]))))
        yield [frames[place] for place in _runs(group, max(2, min(MOST_FRAMES, fits)))]


def _runs(group: list[int], most: int) -> list[int]:
    """At most so many frames: runs of neighbours in the file at even distances."""
    if len(group) <= most:
        return group
    length = min(RUN, most)
    starts = np.linspace(0, len(group) - length, most // length).astype(int)
    return [group[i] for i in sorted({s + k for s in starts for k in range(length)})]


def _of_group(group: list[Frame]) -> Iterator[tuple[float, ...]]:
    periodic = group[0].pbc.all()
    squares = _crystal_distances(group) if periodic else _molecule_distances(group)
    np.fill_diagonal(squares, np.inf)
    nearest = squares.argmin(axis=1)
    for i, j in sorted({(min(i, int(k)), max(i, int(k))) for i, k in enumerate(nearest)}):
        if 1e-12 < squares[i, j] < np.inf:
            work = (_crystal_work if periodic else _molecule_work)(group[i], group[j])
            energy = (group[j].energy or 0.0) - (group[i].energy or 0.0)
            yield (
                group[i].index, group[j].index, energy, *work, float(np.sqrt(squares[i, j]))
            )  # fmt: skip


# --------------------------------------------------------------------------------- molecules


def _molecule_distances(group: list[Frame]) -> np.ndarray:
    """Mean square displacements of an atom after turning all frames to the first, [M, M]."""
    centred = np.array([f.positions - f.positions.mean(axis=0) for f in group])
    turned = centred @ _rotations(centred, centred[:1])
    flat = turned.reshape(len(group), -1)
    norms = (flat**2).sum(axis=1)
    squares = norms[:, None] + norms - 2 * flat @ flat.T
    return np.maximum(squares, 0.0) / len(group[0])


def _rotations(moved: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Rotations R that bring moved @ R nearest to target, both [M, n, 3] (Kabsch 1976)."""
    u, _, vt = np.linalg.svd(moved.transpose(0, 2, 1) @ target)
    u[:, :, 2] *= np.sign(np.linalg.det(u @ vt))[:, None]
    return u @ vt


def _molecule_work(a: Frame, b: Frame) -> tuple[float, ...]:
    x, y = (f.positions - f.positions.mean(axis=0) for f in (a, b))
    turn = _rotations(y[None], x[None])[0]
    mean = 0.5 * (_forces(a) + _forces(b) @ turn)
    return -float((mean * (y @ turn - x)).sum()), np.nan, np.nan, 0.0


def _forces(frame: Frame) -> np.ndarray:
    assert frame.forces is not None  # by `_groups`
    return frame.forces - frame.forces.mean(axis=0)


# ---------------------------------------------------------------------------------- crystals


def _crystal_distances(group: list[Frame]) -> np.ndarray:
    """Mean square displacements, strain included, [M, M]; infinite for large strains."""
    cells = np.array([f.cell for f in group])
    places = np.array([f.positions for f in group]) @ np.linalg.inv(cells)
    squares = np.full((len(group), len(group)), np.inf)
    for i in range(len(group) - 1):
        rest = slice(i + 1, None)
        strain = np.linalg.inv(cells[i]) @ cells[rest] - np.eye(3)
        moved = _shortest(places[rest] - places[i]) @ cells[i]
        square = (moved**2).sum(axis=2).mean(axis=1)
        square += STRAIN_LENGTH**2 * (strain**2).sum(axis=(1, 2))
        large = np.abs(strain).max(axis=(1, 2)) > LARGEST_STRAIN
        squares[i, rest] = squares[rest, i] = np.where(large, np.inf, square)
    return squares


def _shortest(shift: np.ndarray) -> np.ndarray:
    """Fractional displacements [..., n, 3] to the nearest image, without a common translation."""
    shift = shift - np.round(shift)
    return shift - shift.mean(axis=-2, keepdims=True)


def _crystal_work(a: Frame, b: Frame) -> tuple[float, ...]:
    middle = 0.5 * (a.cell + b.cell)
    shift = _shortest(b.positions @ np.linalg.inv(b.cell) - a.positions @ np.linalg.inv(a.cell))
    forces = -0.5 * float(((_forces(a) + _forces(b)) * (shift @ middle)).sum())
    strain = np.linalg.inv(middle) @ (b.cell - a.cell)
    strain = 0.5 * (strain + strain.T)
    size = float(np.sqrt((strain**2).sum()))
    if a.stress is None or b.stress is None:
        return forces, np.nan, np.nan, size
    stress = 0.5 * float(((a.volume * a.stress + b.volume * b.stress) * strain).sum())
    virial = -0.5 * float(((a.stress + b.stress) * strain).sum())
    return forces, stress, virial, size
