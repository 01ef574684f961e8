"""What is wrong with data for a training, each in one sentence; fast enough for every start.

An error cannot be right, and `eqnet train` refuses it unless told otherwise; a warning would ruin a
training if it is what it looks like.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eqnet.data.frame import Frame
from eqnet.data.frame_pairs import LEAST_PAIRS, STRAINED, Works, forces_slope, stress_slope, works
from eqnet.data.items import Item, sizes_of
from eqnet.data.read import Dataset
from eqnet.data.reference_energies import BOUND, ReferenceReport, atomic_energies
from eqnet.data.unit_guess import KINDS, Evidence, Guess, gather, guess, ours
from eqnet.errors import InputError

ALLOWABLE = ("overlap", "forces_sign", "stress_sign", "zero_forces", "E0s")

OVERLAP = 0.3  # angstrom; the shortest bond, H2, has 0.74
OPPOSITE = -0.9  # correlation of labels that have the wrong sign
FAR_PAIR = 0.5  # angstrom; energies of structures further apart say nothing about signs
E0S_FACTOR = 10.0  # by which given E0s may leave more than fitted ones
E0S_SPREAD = 5.0  # eV per atom; binding energies of compounds differ by less
MOST_NAMED = 3


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        kind: what `--allow` calls it, or another word.
        level: "error" (refused by a training), "warning", or "note" of `eqnet check`.
        text: a sentence that names file, frame and key, and what to do.
    """

    kind: str
    level: str
    text: str


@dataclass(frozen=True)
class Findings:
    """All findings, and the numbers behind them."""

    found: tuple[Finding, ...]
    guess: Guess
    pairs: Works
    volume: tuple[float, int] | None  # correlation of pressure and volume, frames


def find(
    dataset: Dataset,
    frames: Mapping[str, Sequence[Frame]],
    items: Mapping[str, Sequence[Item]],
    references: ReferenceReport | None,
) -> Findings:
    """Look for what would ruin a training.

    Args:
        dataset: the training file.
        frames: by role; labels are looked at in those of "train".
        items: by role, the same structures with neighbours; distances are looked at in all.
        references: how the reference energies were found; None without energies.
    """
    train = frames["train"]
    pairs = works(train)
    units = guess(gather(items["train"], dataset.isolated, pairs))
    volume = volume_correlation(train)
    found = [*_overlaps(items), *_signs(dataset, train, pairs, volume), *_units(dataset, units)]
    if references is not None:
        found += _reference_energies(dataset, train, references)
    return Findings(tuple(found), units, pairs, volume)


def refuse(found: Findings, allow: str | None) -> list[str]:
    """Stop at the first error that is not allowed.

    Returns:
        The sentences of everything else, for people.

    Raises:
        InputError: the error, with the option that lets it pass.
    """
    for finding in found.found:
        if finding.level == "error" and finding.kind not in allowed(allow):
            raise InputError(f"{finding.text}; --allow {finding.kind} trains on it as it is")
    return [finding.text for finding in found.found]


def allowed(allow: str | None) -> set[str]:
    """Kinds of errors that `--allow a,b` names.

    Raises:
        InputError: there is no such kind.
    """
    names = {name.strip() for name in allow.split(",")} if allow is not None else set()
    unknown = sorted(names - set(ALLOWABLE))
    if unknown:
        raise InputError(f"--allow {unknown[0]} is unknown; it may be {', '.join(ALLOWABLE)}")
    return names


# --------------------------------------------------------------------------------- geometry


def closest(item: Item) -> tuple[float, int, int]:
    """Shortest distance of a structure with neighbours, and the two atoms."""
    edge = int(item.neighbors.distances.argmin())
    edges = item.neighbors
    return float(edges.distances[edge]), int(edges.centers[edge]), int(edges.neighbors[edge])


def _overlaps(items: Mapping[str, Sequence[Item]]) -> Iterator[Finding]:
    """Atoms so close that no electronic structure method means it."""
    near = [
        (role, int(place))
        for role, some in items.items()
        for place in np.flatnonzero(sizes_of(some).shortest < OVERLAP)
    ]
    if not near:
        return
    places = []
    for role, place in near[:MOST_NAMED]:
        item = items[role][place]
        distance, i, j = closest(item)
        places.append(f"{item.frame.name}: atoms {i} and {j} are {distance:.3f} A apart")
    more = f" (and {len(near) - len(places)} more frames)" if len(near) > len(places) else ""
    text = f"{'; '.join(places)}{more}; closer than {OVERLAP} A: correct or remove these frames"
    yield Finding("overlap", "error", text)


# ------------------------------------------------------------------------------------ signs


def _signs(
    dataset: Dataset, frames: Sequence[Frame], pairs: Works, volume: tuple[float, int] | None
) -> Iterator[Finding]:
    file, keys = dataset.report.file, {row.label: row.key for row in dataset.report.rows}
    forces = (frame.forces for frame in frames if frame.forces is not None and len(frame) > 1)
    same_cell = np.flatnonzero((pairs.strain < STRAINED) & (np.abs(pairs.energy) > 1e-3))
    if len(same_cell) and not any(f.any() for f in forces):
        where = _pair(pairs, int(same_cell[0]))
        yield Finding(
            "zero_forces", "error",
            f"{file}: all forces ({keys['forces']}) are 0, but energies differ between structures "
            f"of the same atoms and cell ({where}); name the key that holds the forces with "
            "--forces_key, or train on energies alone with --forces_weight 0 as well",
        )  # fmt: skip
    slope = forces_slope(pairs)
    if slope and slope.correlation < OPPOSITE and slope.distance < FAR_PAIR:
        yield Finding(
            "forces_sign", "error",
            f"{file}: the forces ({keys['forces']}) have the wrong sign: over {slope.pairs} pairs "
            f"of near structures (such as {_pair(pairs, int(pairs.distance.argmin()))}) the energy "
            f"rises along them (correlation {slope.correlation:.3f}); forces are -dE/dx",
        )  # fmt: skip
    yield from _stress_sign(file, keys.get("stress", ""), pairs, volume)


def _stress_sign(
    file: str, key: str, pairs: Works, volume: tuple[float, int] | None
) -> Iterator[Finding]:
    """The sign of the stress, from energies of strained structures, or from volumes alone."""
    slope, virial = stress_slope(pairs), stress_slope(pairs, virial=True)
    if slope and slope.correlation < OPPOSITE and slope.distance < FAR_PAIR:
        advice = "positive is stretched, (1/V) dE/dstrain; VASP prints the opposite"
        if virial and virial.correlation > -OPPOSITE and 0.75 < virial.value < 1.33:
            advice = f"they are virials: --virials_key {key} reads them"
        yield Finding(
            "stress_sign", "error",
            f"{file}: the stress ({key}) has the wrong sign: over {slope.pairs} pairs of strained "
            f"structures the energy falls where it says that it rises (correlation "
            f"{slope.correlation:.3f}); {advice}",
        )  # fmt: skip
    elif volume and volume[0] < OPPOSITE and not (slope and slope.correlation > -OPPOSITE):
        yield Finding(
            "volume", "warning",
            f"{file}: the stress ({key}) falls with the volume (correlation {volume[0]:.2f} over "
            f"{volume[1]} frames of one composition), it should rise: is its sign right? positive "
            "is stretched; virials are read by --virials_key",
        )  # fmt: skip


def _pair(pairs: Works, place: int) -> str:
    return f"frames {int(pairs.first[place])} and {int(pairs.second[place])}"


def volume_correlation(frames: Sequence[Frame]) -> tuple[float, int] | None:
    """Correlation of mean stress and volume over the largest set of frames of one composition.

    Returns:
        Correlation and number of frames; None with fewer than LEAST_PAIRS frames, or volumes that
        differ by less than 3 % or by more than 30 %, as those of surfaces do.
    """
    groups: dict[bytes, list[tuple[float, float]]] = {}
    for frame in frames:
        if frame.stress is not None:
            key = np.sort(frame.numbers).tobytes()
            groups.setdefault(key, []).append((frame.volume, float(np.trace(frame.stress))))
    largest = max(groups.values(), key=len, default=[])
    if len(largest) < LEAST_PAIRS:
        return None
    volumes, traces = np.array(largest).T
    if not 1.03 < volumes.max() / volumes.min() < 1.3 or traces.std() == 0:
        return None
    return float(np.corrcoef(volumes, traces)[0, 1]), len(largest)


# ------------------------------------------------------------------------- units and energies


def _units(dataset: Dataset, units: Guess) -> Iterator[Finding]:
    if units.others:
        rivals = "".join(f" or {unit_words(rival)}" for rival in units.rivals[:2])
        if len(units.rivals) > 2:
            rivals += f" or {len(units.rivals) - 2} more combinations nearly as well"
        reasons = "; ".join(evidence_words(e, units.units) for e in telling(units))
        yield Finding(
            "units", "warning",
            f"{dataset.report.file} is not in eV and angstrom, it seems, but has "
            f"{unit_words(units.units)}{rivals}: {reasons}. Nothing is converted: convert the file "
            "if that is so",
        )  # fmt: skip


def telling(units: Guess) -> list[Evidence]:
    """The evidence that the guessed units explain better than ours."""
    return [e for e in units.evidence if e.doubt(ours()) > e.doubt(units.units) + 1]


def unit_words(units: Mapping[str, str]) -> str:
    """`energy in Hartree (x 27.2114 = eV)`, for every unit that is not ours."""
    return ", ".join(
        f"{kind} in {unit} (x {KINDS[kind][unit]:.6g} = {ours()[kind]})"
        for kind, unit in units.items()
        if unit != ours()[kind]
    )


def evidence_words(evidence: Evidence, units: Mapping[str, str]) -> str:
    """The number as it stands, and what it would be in other units; 1 is expected."""
    return f"{evidence.what} is {evidence.value:.3g}, would be {evidence.in_units(units):.3g}"


def _reference_energies(
    dataset: Dataset, frames: Sequence[Frame], report: ReferenceReport
) -> Iterator[Finding]:
    """E0s that explain far less than fitted ones, and no binding energy accounts for it."""
    sources = {"given": "given E0s", "isolated": "energies of the isolated atoms"}
    if report.method not in sources or report.num_frames < 2:
        return
    _, fitted = atomic_energies("least_squares", frames, {}, report.elements)
    left = math.hypot(report.mean, report.rms / 1000)
    unbound = not BOUND[0] < report.mean < BOUND[1] or report.rms / 1000 > E0S_SPREAD
    if unbound and left > E0S_FACTOR * fitted.rms / 1000:
        yield Finding(
            "E0s", "error",
            f"{dataset.report.file}: the {sources[report.method]} leave {report.mean:.4g} eV per "
            f"atom on average, {report.rms / 1000:.3g} around it, of the energies, fitted ones "
            f"{fitted.rms / 1000:.3g}: more than chemical binding; take E0s of the same method, or "
            "--E0s least_squares",
        )  # fmt: skip
