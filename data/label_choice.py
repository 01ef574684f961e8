"""Choice of labels: which keys of a file hold energies, forces and stresses.

The order is: the key asked for; REF_*; what ASE attached to the structure; well-known names. What
was chosen is told in a `LabelReport`, because labels that are silently not read ruin a training.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from eqnet.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

UNITS = {"energy": "eV", "forces": "eV/A", "stress": "eV/A^3"}
CALCULATOR = "ASE calculator"
STRUCTURE = "structure"
ATOMS = "atoms"

REFERENCE = {
    "energy": ["REF_energy"],
    "forces": ["REF_forces", "REF_force"],
    "stress": ["REF_stress"],
    "virials": ["REF_virials", "REF_virial"],
}
# Spelling variants seen in published data, in order of preference.
WELL_KNOWN = {
    "energy": "energy dft_energy DFT_energy energy_dft energy_DFT ref_energy total_energy "
    "TotEnergy potential_energy Energy".split(),
    "forces": "forces dft_forces DFT_forces dft_force DFT_force forces_dft forces_DFT ref_forces "
    "force Forces".split(),
    "stress": "stress dft_stress DFT_stress stress_dft stress_DFT ref_stress Stress".split(),
    "virials": "virials virial dft_virials dft_virial DFT_virials DFT_virial ref_virials".split(),
}
LOOKS = re.compile("energ|forc|stress|viri|grad", re.IGNORECASE)
WEIGHTS = {label: f"config_{label}_weight" for label in UNITS}


@dataclass(frozen=True)
class Keys:
    """Names of the labels in a file; None looks in REF_*, ASE's calculator, well-known names."""

    energy: str | None = None
    forces: str | None = None
    stress: str | None = None
    virials: str | None = None


class Source(NamedTuple):
    """Where a label was found."""

    key: str
    place: str  # CALCULATOR, STRUCTURE or ATOMS
    virial: bool = False


Values = dict[tuple[str, str], Any]  # (place, key) -> value of one structure


def values_of(atoms: Atoms) -> Values:
    """All values of one structure by place and key."""
    found: Values = {}
    if atoms.calc is not None:
        found |= {(CALCULATOR, k): v for k, v in atoms.calc.results.items() if v is not None}
    for group in (atoms.info.get("data"), atoms.info.get("key_value_pairs"), atoms.info):
        if isinstance(group, dict):
            found |= {(STRUCTURE, str(k)): v for k, v in group.items()}
    arrays = atoms.arrays.items()
    return found | {(ATOMS, k): v for k, v in arrays if k not in ("numbers", "positions")}


def without_labels(atoms: Atoms) -> Atoms:
    """The structure without labels under the names known here, REF_* and answers of models.

    All else stays: momenta, constraints, config_type, weights, labels under names of one's own.
    """
    bare = atoms.copy()  # without the calculator
    for group in (bare.info.get("data"), bare.info.get("key_value_pairs"), bare.info, bare.arrays):
        if isinstance(group, dict):
            for key in [key for key in group if _is_label(str(key))]:
                del group[key]
    return bare


def _is_label(key: str) -> bool:
    return key.startswith(("REF_", "eqnet_")) or any(key in keys for keys in WELL_KNOWN.values())


class Seen:
    """Which labels some structures have, and where: all that the choice of labels needs of them.

    Attributes:
        totals: structures of each file.
        last: the last value of each key that looks like a label.
    """

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}
        self.last: Values = {}
        self._first: dict[frozenset[tuple[str, str]], tuple[str, int]] = {}  # of each combination
        self._energies = self._free = 0
        self._gap = 0.0

    def add(self, atoms: Atoms, file: str, index: int) -> None:
        """Look at the next structure, number `index` of a file."""
        values = values_of(atoms)
        self.totals[file] = index + 1
        self._first.setdefault(frozenset(values), (file, index))
        self.last |= {place: value for place, value in values.items() if LOOKS.search(place[1])}
        energy, free = values.get((CALCULATOR, "energy")), values.get((CALCULATOR, "free_energy"))
        self._energies += energy is not None
        if energy is not None and free is not None:
            self._free += 1
            try:
                self._gap = max(self._gap, abs(float(free) - float(energy)))
            except (TypeError, ValueError):  # not numbers: the check of the energies says so
                self._gap = np.nan

    @property
    def names(self) -> list[str]:
        """All keys, sorted."""
        return sorted({key for found in self._first for _, key in found})

    def __contains__(self, place: tuple[str, str]) -> bool:
        return any(place in found for found in self._first)

    def other(self, chosen: Source, others: Sequence[Source]) -> tuple[Source, str, int] | None:
        """First structure without the chosen source but with another: that, file and index."""
        for found, place in self._first.items():
            if (chosen.place, chosen.key) not in found:
                for other in others:
                    if (other.place, other.key) in found:
                        return other, *place
        return None

    def where(self, file: str, index: int) -> str:
        """How errors name a structure."""
        return f"{file}, frame {index} of {self.totals[file]}"

    @property
    def energy_gap(self) -> float:
        """Largest difference of free_energy and energy, 0 if not all structures have both."""
        return self._gap if self._free == self._energies else 0.0


def choose(
    seen: Seen, keys: Keys, require: Sequence[str], file: str
) -> tuple[dict[str, Source | None], list[str]]:
    """Where each label is found, and notes for the person.

    Args:
        seen: has looked at all structures.
        keys: names asked for.
        require: labels of which at least one frame must have a value.
        file: name used in errors.

    Raises:
        InputError: a key asked for or a label required is absent, or frames differ in their keys.
    """
    sources = {label: _choose(label, keys, seen, file) for label in UNITS}
    notes: list[str] = []
    for label in require:
        if sources[label] is None:
            raise InputError(_absent(label, seen, file))
    energy = sources["energy"]
    if keys.energy is None and energy is not None and energy == Source("energy", CALCULATOR):
        sources["energy"] = _force_consistent(seen, energy, notes)
    return sources, notes


def unused_labels(seen: Seen, sources: dict[str, Source | None]) -> list[str]:
    """Keys whose names and numbers look like labels, but which no label was read from."""
    used = {(source.place, source.key) for source in sources.values() if source is not None}
    used |= {(STRUCTURE, name) for name in WEIGHTS.values()}
    return sorted(
        f"{key} ({place})"
        for (place, key), value in seen.last.items()
        if (place, key) not in used and np.asarray(value).dtype.kind in "iuf"
    )


def _choose(label: str, keys: Keys, seen: Seen, file: str) -> Source | None:
    """Where the label is found in this file, by the order of the module's first lines."""
    if label == "stress" and keys.stress and keys.virials:
        raise InputError(
            f"{file}: both a stress key ({keys.stress}) and a virials key ({keys.virials}) are "
            "given, but they say the same thing; give one of them"
        )
    kinds = ("stress", "virials") if label == "stress" else (label,)
    for kind in kinds:
        key = getattr(keys, kind)
        if key:
            place = _place(key, seen)
            if place is None:
                raise InputError(_absent_key(kind, key, seen, file))
            return Source(key, place, kind == "virials")
    there = [source for source in _candidates(label) if (source.place, source.key) in seen]
    if there:
        _refuse_mixture(label, there, seen)
    return there[0] if there else None


def _candidates(label: str) -> Iterator[Source]:
    """Where a label may be if nobody says where, in order of preference."""
    kinds = ("stress", "virials") if label == "stress" else (label,)
    places = (ATOMS, STRUCTURE, CALCULATOR)
    for kind in kinds:
        for key in REFERENCE[kind]:
            yield from (Source(key, place, kind == "virials") for place in places)
    yield Source(label, CALCULATOR)
    for kind in kinds:
        for key in WELL_KNOWN[kind]:
            yield from (Source(key, place, kind == "virials") for place in places)


def _refuse_mixture(label: str, there: list[Source], seen: Seen) -> None:
    """Frames with the label under another key than the one chosen would silently lose it."""
    chosen, *others = there
    found = seen.other(chosen, others)
    if found is None:
        return
    other, file, index = found
    options = "--stress_key or --virials_key" if label == "stress" else f"--{label}_key"
    raise InputError(
        f"{seen.where(file, index)} has its {label} as {other.key} ({other.place}), other frames "
        f"have it as {chosen.key} ({chosen.place}); give all of them one key, or choose one with "
        f"{options}"
    )


def _place(key: str, seen: Seen) -> str | None:
    return next((place for place in (ATOMS, STRUCTURE, CALCULATOR) if (place, key) in seen), None)


def _absent_key(kind: str, key: str, seen: Seen, file: str) -> str:
    near = difflib.get_close_matches(key, seen.names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    there = ", ".join(seen.names) or "none"
    return f"{file}: no frame has the {kind} key {key}{hint} (keys that are there: {there})"


def _absent(label: str, seen: Seen, file: str) -> str:
    there = ", ".join(seen.names) or "none"
    without = "" if label == "stress" else f", or do without it by --{label}_weight 0"
    return (
        f"{file}: no frame has {label}: looked for REF_{label}, for what ASE reads as {label} and "
        f"for well-known names; say which key holds it with --{label}_key"
        f"{without} (keys that are there: {there})"
    )


def _force_consistent(seen: Seen, energy: Source, notes: list[str]) -> Source:
    """Take free_energy when it stands beside a different energy: forces are its gradient."""
    if not seen.energy_gap > 1e-6:
        return energy
    notes.append(
        f"energy and free_energy differ by up to {seen.energy_gap:.3g} eV; free_energy is used "
        "because forces are its gradient (--energy_key energy takes the other)"
    )
    return Source("free_energy", CALCULATOR)
