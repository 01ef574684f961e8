"""In which units a file is, guessed from physics: evidence about each unit, and what explains it.

Every piece of evidence is a number that physics knows within a factor, measured from the file. In
other units than angstrom, eV, eV/A and eV/A^3 it is off by known powers of their conversion
factors. The units that explain all evidence best are told if they do so much better than ours.
Nothing is converted.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eqnet.data.frame import Frame
from eqnet.data.frame_pairs import LEAST_PAIRS, Works, forces_slope, stress_slope
from eqnet.data.items import Item, make_item

BOHR, HARTREE = 0.529177210903, 27.211386245988  # CODATA 2018
KCAL, KJ = 0.0433641043, 0.0103642697  # eV per molecule of kcal/mol, kJ/mol
GPA = 0.00624150907  # eV/A^3

# What one unit is in ours. The first of each kind is ours.
LENGTHS = {"A": 1.0, "bohr": BOHR, "nm": 10.0}
ENERGIES = {"eV": 1.0, "Hartree": HARTREE, "Rydberg": HARTREE / 2, "kcal/mol": KCAL, "kJ/mol": KJ}
FORCES = {
    "eV/A": 1.0,
    "Hartree/bohr": HARTREE / BOHR,
    "Rydberg/bohr": HARTREE / 2 / BOHR,
    "Hartree/A": HARTREE,
    "eV/bohr": 1 / BOHR,
    "kcal/mol/A": KCAL,
    "kJ/mol/A": KJ,
    "kJ/mol/nm": KJ / 10,
    "meV/A": 0.001,
}
STRESSES = {
    "eV/A^3": 1.0,
    "GPa": GPA,
    "kbar": 0.1 * GPA,
    "Hartree/bohr^3": HARTREE / BOHR**3,
}
KINDS = {"length": LENGTHS, "energy": ENERGIES, "forces": FORCES, "stress": STRESSES}

MARGIN = 8.0  # by which other units must explain the evidence better, in squares of deviations
CLOSE = 4.0  # units this much worse than the best are told as well
MOST_DOUBT = 16.0  # what a single piece of evidence may count; beyond, it is no evidence
UNUSUAL = 3.0  # forces in another unit than energy / length
# What is expected, and the standard deviation of its logarithm over public data sets.
CLOSEST, CLOSEST_WIDTH = 0.92, 0.15
ALL_ELECTRON_WIDTH = 0.04
BINDING, BINDING_WIDTH = 3.5, 0.8  # eV per atom
STIFFNESS, STIFFNESS_WIDTH = 0.6, 0.7
VIRIAL, VIRIAL_WIDTH = 0.18, 1.2
# Offsets B of Schlegel's rule in bohr, by rows of the periodic table (third: and all below).
SCHLEGEL = np.array([[-0.244, 0.352, 0.660], [0.352, 1.085, 1.522], [0.660, 1.522, 2.068]])
LEAST_CORRELATION = 0.8  # of energies and works; below it there are other reasons for differences
LEAST_BOND_CORRELATION = 0.2
FAR = 9.0  # angstrom; bonds in bohr are shorter
MOST_FRAMES = 300  # that are looked at, evenly spread
NOBLE = (2, 10, 18, 36, 54, 86)  # not bound


@dataclass(frozen=True)
class Evidence:
    """A measured number; `powers` of the units (length, energy, forces, stress) divide it."""

    what: str
    value: float  # measured / expected, in the units of the file
    width: float  # standard deviation of its logarithm
    powers: Mapping[str, int]

    def in_units(self, units: Mapping[str, str]) -> float:
        """The number if the file is in these units; about 1 if it is."""
        factors = (KINDS[kind][units[kind]] ** power for kind, power in self.powers.items())
        return self.value * math.prod(factors)

    def doubt(self, units: Mapping[str, str]) -> float:
        """Square of the deviation from 1 in widths, at most MOST_DOUBT."""
        return min((math.log(self.in_units(units)) / self.width) ** 2, MOST_DOUBT)


@dataclass(frozen=True)
class Guess:
    """The units that explain the evidence best; `better` by so much than ours, 0 if they are.

    `rivals` are other units than ours that explain it nearly as well, best first.
    """

    units: dict[str, str]
    better: float
    evidence: tuple[Evidence, ...]
    rivals: tuple[dict[str, str], ...] = ()

    @property
    def others(self) -> dict[str, str]:
        """Kind -> unit, of those that are not ours."""
        return {kind: unit for kind, unit in self.units.items() if unit != ours()[kind]}


def ours() -> dict[str, str]:
    """The units of eqnet by kind."""
    return {kind: next(iter(names)) for kind, names in KINDS.items()}


def guess(evidence: Sequence[Evidence]) -> Guess:
    """Units that explain the evidence best; ours unless others do so by MARGIN."""
    kinds = {kind for e in evidence for kind in e.powers}
    if "forces" in kinds:
        kinds.add("energy")  # most likely of the same system, if nothing else is known
    choices = [list(names) if kind in kinds else [ours()[kind]] for kind, names in KINDS.items()]
    all_units = [dict(zip(KINDS, names, strict=True)) for names in itertools.product(*choices)]
    doubts = [sum(e.doubt(u) for e in evidence) + _unusual(u) for u in all_units]
    first, *others = np.argsort(doubts, kind="stable")
    better = float(doubts[0] - doubts[first])
    if better < MARGIN:
        return Guess(ours(), 0.0, tuple(evidence))
    rivals = tuple(all_units[i] for i in others if doubts[i] < doubts[first] + CLOSE)
    return Guess(all_units[first], better, tuple(evidence), rivals)


def _unusual(units: Mapping[str, str]) -> float:
    """Units that are not one system are rarer, and so is each that is not ours."""
    natural = ENERGIES[units["energy"]] / LENGTHS[units["length"]]
    mixed = abs(math.log(FORCES[units["forces"]] / natural)) > 0.01
    return UNUSUAL * mixed + 0.5 * sum(units[kind] != unit for kind, unit in ours().items())


# --------------------------------------------------------------------------------- evidence


def gather(items: Sequence[Item], isolated: Mapping[int, float], pairs: Works) -> list[Evidence]:
    """All evidence that structures with their neighbours, and pairs of them, give.

    Args:
        items: the structures, with neighbours at least as far as bonds reach.
        isolated: energies of isolated atoms by atomic number.
        pairs: of the same structures.
    """
    step = max(1, len(items) // MOST_FRAMES)
    some = [_with_edges(item) for item in items[::step] if item.num_atoms > 1]
    some = [item for item in some if item.num_edges]
    frames = [item.frame for item in some]
    found = (
        _lengths(some),
        _all_electron(frames),
        _binding(frames, isolated),
        _stiffness(some),
        _energy_and_forces(pairs),
        _energy_and_stress(pairs),
        _virial(some),
    )
    return [evidence for evidence in found if evidence is not None]


def _with_edges(item: Item) -> Item:
    """The item with neighbours, however far: lengths in bohr look long."""
    return item if item.num_edges else make_item(item.frame, range(1, 119), FAR)


@functools.cache
def _radii() -> np.ndarray:
    from eqnet.data.elements import covalent_radius

    return np.array([covalent_radius(z) for z in range(119)])


def _lengths(items: Sequence[Item]) -> Evidence | None:
    """The closest atoms of a structure are about their covalent radii apart."""
    radii, closest = _radii(), []
    for item in items:
        numbers, edges = item.frame.numbers, item.neighbors
        if not np.isin(numbers, NOBLE).any():
            bonds = radii[numbers[edges.centers]] + radii[numbers[edges.neighbors]]
            closest.append(float((edges.distances / bonds).min()))
    if not closest:
        return None
    what = "shortest distance / sum of covalent radii"
    return Evidence(what, float(np.median(closest)) / CLOSEST, CLOSEST_WIDTH, {"length": 1})


def all_electron_energy(numbers: np.ndarray) -> np.ndarray:
    """Energy of neutral atoms in eV: the statistical atom (Englert and Schwinger 1985)."""
    z = np.asarray(numbers, dtype=np.float64)
    return HARTREE * (-0.768745 * z ** (7 / 3) + 0.5 * z**2 - 0.269900 * z ** (5 / 3))


def _all_electron(frames: Sequence[Frame]) -> Evidence | None:
    """Total energies of all-electron calculations are, within percent, those of the atoms.

    Other energies are no evidence, and Rydberg is not looked for: energies of valence electrons
    in eV are as large.
    """
    ratios = [
        f.energy / float(all_electron_energy(f.numbers).sum())
        for f in frames
        if f.energy is not None
    ]
    ratio = float(np.median(ratios)) if ratios else 0.0
    if ratio <= 0:
        return None
    evidence = Evidence("energy / all-electron energy", ratio, ALL_ELECTRON_WIDTH, {"energy": 1})
    others = [{**ours(), "energy": unit} for unit in ENERGIES if unit != "Rydberg"]
    fits = min(evidence.doubt(units) for units in others) < MOST_DOUBT
    return evidence if fits else None


def _binding(frames: Sequence[Frame], isolated: Mapping[int, float]) -> Evidence | None:
    """Solids and molecules are bound by a few eV per atom."""
    bound = [
        (sum(isolated[int(z)] for z in f.numbers) - f.energy) / len(f)
        for f in frames
        if f.energy is not None and set(f.numbers.tolist()) <= isolated.keys() - set(NOBLE)
    ]
    if not bound or np.median(bound) <= 0:
        return None
    value = float(np.median(bound)) / BINDING
    what = f"binding energy per atom / {BINDING:g} eV"
    return Evidence(what, value, BINDING_WIDTH, {"energy": 1})


def _stiffness(items: Sequence[Item]) -> Evidence | None:
    """Force against length of bonds: the slope is Schlegel's force constant within a factor."""
    found = [bonds for item in items if (bonds := _bonds(item)) is not None]
    if not found:
        return None
    kinds, lengths, forces, constants = (np.concatenate(x) for x in zip(*found, strict=True))
    _, kind = np.unique(kinds, return_inverse=True)
    times = np.bincount(kind)
    x, y = (v - (np.bincount(kind, v) / times)[kind] for v in (lengths, forces))
    x = x * constants
    slope, size = float(x @ y), float(np.sqrt((x @ x) * (y @ y)))
    if len(x) < LEAST_PAIRS or size == 0 or slope > -LEAST_BOND_CORRELATION * size:
        return None
    value = -slope / float(x @ x) / STIFFNESS
    powers = {"forces": 1, "length": -1}
    return Evidence("force constants of bonds / Schlegel's rule", value, STIFFNESS_WIDTH, powers)


def _bonds(item: Item) -> tuple[np.ndarray, ...] | None:
    """Kind, length, force along it and expected force constant of the bonds of a structure.

    H. B. Schlegel, Theor. Chim. Acta 66, 333 (1984): k = 1.734 / (r - B)^3 in atomic units.
    """
    if item.frame.forces is None:
        return None
    numbers, edges, radii = item.frame.numbers, item.neighbors, _radii()
    bond = radii[numbers[edges.centers]] + radii[numbers[edges.neighbors]]
    near = (edges.distances < 1.25 * bond) & (edges.centers < edges.neighbors)
    i, j, length = edges.centers[near], edges.neighbors[near], edges.distances[near]
    vectors = item.positions[j] + edges.shifts[near] @ item.cell - item.positions[i]
    forces = item.frame.forces
    along = 0.5 * ((forces[j] - forces[i]) * vectors).sum(axis=1) / length
    low, high = np.minimum(numbers[i], numbers[j]), np.maximum(numbers[i], numbers[j])
    row = np.searchsorted((2, 10), numbers)
    offset = SCHLEGEL[row[i], row[j]]
    constants = 1.734 / (bond[near] / BOHR - offset) ** 3 * HARTREE / BOHR**2
    return 200 * low + high, length, along, constants


def _energy_and_forces(pairs: Works) -> Evidence | None:
    slope = forces_slope(pairs)
    if slope is None or abs(slope.correlation) < LEAST_CORRELATION:
        return None
    what = "energy differences / work of the forces, near structures"
    powers = {"energy": 1, "forces": -1, "length": -1}
    return Evidence(what, abs(slope.value), slope.width, powers)


def _energy_and_stress(pairs: Works) -> Evidence | None:
    slope = stress_slope(pairs)
    if slope is None or abs(slope.correlation) < LEAST_CORRELATION:
        return None
    what = "energy differences / work of the stress, strained structures"
    powers = {"energy": 1, "stress": -1, "length": -3}
    return Evidence(what, abs(slope.value), slope.width, powers)


def _virial(items: Sequence[Item]) -> Evidence | None:
    """Stress times volume is of the order of forces times distances."""
    found = []
    for item in items:
        frame = item.frame
        if frame.stress is not None and frame.forces is not None and frame.forces.any():
            force = float(np.sqrt((frame.forces**2).sum(axis=1).mean()))
            stress = float(np.sqrt((frame.stress**2).sum() / 3))
            distance = float(item.neighbors.distances.min())
            found.append(stress * frame.volume / len(frame) / (force * distance))
    if not found or np.median(found) <= 0:
        return None
    value = float(np.median(found)) / VIRIAL
    what = f"(stress x volume per atom) / (force x distance) / {VIRIAL:g}"
    return Evidence(what, value, VIRIAL_WIDTH, {"stress": 1, "length": 2, "forces": -1})
