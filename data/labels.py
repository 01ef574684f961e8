"""Labels: which key of a file holds energies, forces and stresses, and what they are.

The order is: the key asked for; REF_*; what ASE attached to the structure; well-known names. What
was chosen is told in a `LabelReport`, because labels that are silently not read ruin a training.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from eqnet.data.frame import Frame, from_atoms
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


@dataclass(frozen=True)
class LabelRow:
    """One line of the table shown before training."""

    label: str
    key: str
    source: str
    count: int
    minimum: float
    maximum: float
    unit: str


@dataclass(frozen=True)
class LabelReport:
    """What was read from a file: a row per label, and notes a person should see."""

    file: str
    num_frames: int
    rows: list[LabelRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)  # keys that look like labels, and are not read


Values = dict[tuple[str, str], Any]  # (place, key) -> value of one structure


def label_frames(
    images: Sequence[Atoms], keys: Keys, require: Sequence[str], file: str
) -> tuple[list[Frame], dict[str, Source | None], list[str]]:
    """Turn ASE structures into frames with labels.

    Args:
        images: structures in file order.
        keys: names asked for.
        require: labels of which at least one frame must have a value.
        file: name used in errors.

    Returns:
        The frames, where each label was found, and notes for the person.

    Raises:
        InputError: a key asked for or a label required is absent; a value is not what it should be.
    """
    values = [values_of(atoms) for atoms in images]
    sources = {label: _choose(label, keys, values, file) for label in UNITS}
    notes: list[str] = []
    for label in require:
        if sources[label] is None:
            raise InputError(_absent(label, values, file))
    energy = sources["energy"]
    if keys.energy is None and energy is not None and energy == Source("energy", CALCULATOR):
        sources["energy"] = _force_consistent(values, energy, notes)
    frames = [
        _frame(atoms, index, file, len(images), values[index], sources)
        for index, atoms in enumerate(images)
    ]
    return _drop_stress(frames, notes), sources, notes


def make_report(
    file: str, frames: Sequence[Frame], sources: dict[str, Source | None], notes: list[str]
) -> LabelReport:
    """Say what the frames hold; labels absent in some frames are noted."""
    rows = [r for label in UNITS if (r := _row(label, sources[label], frames)) is not None]
    missing = []
    for row in rows:
        if row.count < len(frames):
            first = next(f.index for f in frames if getattr(f, row.label) is None)
            missing.append(
                f"{row.label} is missing in {len(frames) - row.count} of {len(frames)} frames "
                f"(first: frame {first}); there it weighs nothing"
            )
    return LabelReport(file, len(frames), rows, [*notes, *missing])


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


def unused_labels(images: Sequence[Atoms], sources: dict[str, Source | None]) -> list[str]:
    """Keys whose names and numbers look like labels, but which no label was read from."""
    used = {(source.place, source.key) for source in sources.values() if source is not None}
    used |= {(STRUCTURE, name) for name in WEIGHTS.values()}
    found: Values = {}
    for atoms in images:
        found |= values_of(atoms)
    return sorted(
        f"{key} ({place})"
        for (place, key), value in found.items()
        if (place, key) not in used and LOOKS.search(key) and np.asarray(value).dtype.kind in "iuf"
    )


def _choose(label: str, keys: Keys, values: list[Values], file: str) -> Source | None:
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
            place = _place(key, values)
            if place is None:
                raise InputError(_absent_key(kind, key, values, file))
            return Source(key, place, kind == "virials")
    there = [source for source in _candidates(label) if _anywhere(source, values)]
    if there:
        _refuse_mixture(label, there, values, file)
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


def _anywhere(source: Source, values: list[Values]) -> bool:
    return any((source.place, source.key) in v for v in values)


def _refuse_mixture(label: str, there: list[Source], values: list[Values], file: str) -> None:
    """Frames with the label under another key than the one chosen would silently lose it."""
    chosen, *others = there
    for index, found in enumerate(values):
        if (chosen.place, chosen.key) in found:
            continue
        for other in others:
            if (other.place, other.key) in found:
                options = "--stress_key or --virials_key" if label == "stress" else f"--{label}_key"
                raise InputError(
                    f"{file}, frame {index} of {len(values)} has its {label} as {other.key} "
                    f"({other.place}), other frames have it as {chosen.key} ({chosen.place}); "
                    f"give all of them one key, or choose one with {options}"
                )


def _place(key: str, values: list[Values]) -> str | None:
    for place in (ATOMS, STRUCTURE, CALCULATOR):
        if any((place, key) in v for v in values):
            return place
    return None


def _names(values: list[Values]) -> list[str]:
    return sorted({key for v in values for _, key in v})


def _absent_key(kind: str, key: str, values: list[Values], file: str) -> str:
    names = _names(values)
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    there = ", ".join(names) or "none"
    return f"{file}: no frame has the {kind} key {key}{hint} (keys that are there: {there})"


def _absent(label: str, values: list[Values], file: str) -> str:
    there = ", ".join(_names(values)) or "none"
    without = "" if label == "stress" else f", or do without it by --{label}_weight 0"
    return (
        f"{file}: no frame has {label}: looked for REF_{label}, for what ASE reads as {label} and "
        f"for well-known names; say which key holds it with --{label}_key"
        f"{without} (keys that are there: {there})"
    )


def _force_consistent(values: list[Values], energy: Source, notes: list[str]) -> Source:
    """Take free_energy when it stands beside a different energy: forces are its gradient."""
    free = (CALCULATOR, "free_energy")
    both = [v for v in values if free in v and (CALCULATOR, "energy") in v]
    try:
        gap = max((abs(float(v[free]) - float(v[CALCULATOR, "energy"])) for v in both), default=0.0)
    except (TypeError, ValueError):  # not numbers: the check of the energies says so
        return energy
    if len(both) < sum((CALCULATOR, "energy") in v for v in values) or not gap > 1e-6:
        return energy
    notes.append(
        f"energy and free_energy differ by up to {gap:.3g} eV; free_energy is used because forces "
        "are its gradient (--energy_key energy takes the other)"
    )
    return Source("free_energy", CALCULATOR)


def _frame(
    atoms: Atoms,
    index: int,
    file: str,
    total: int,
    values: Values,
    sources: dict[str, Source | None],
) -> Frame:
    where = f"{file}, frame {index} of {total}"
    frame = from_atoms(atoms, file=file, index=index)
    found: dict[str, Any] = {}
    used: set[str] = {"config_type", "config_weight", *WEIGHTS.values()}
    for label, source in sources.items():
        if source is None:
            continue
        used.add(source.key)
        raw = values.get((source.place, source.key))
        if raw is not None:
            found[label] = _value(label, raw, source, atoms, f"{where}: {source.key}")
    weight = _weight(values, "config_weight", where)
    return replace(
        frame,
        **found,
        config_type=str(values.get((STRUCTURE, "config_type"), "Default")),
        **{f"{k}_weight": weight * _weight(values, name, where) for k, name in WEIGHTS.items()},
        info={k: v for k, v in atoms.info.items() if k not in used},
        arrays={k: v for k, v in atoms.arrays.items() if k not in used | {"numbers", "positions"}},
    )


def _weight(values: Values, name: str, where: str) -> float:
    raw = values.get((STRUCTURE, name), 1.0)
    weight = finite_numbers(raw, f"{where}: {name}")
    if weight.size != 1 or weight.item() < 0:
        raise InputError(f"{where}: {name} is {raw}, a number of 0 or more is wanted")
    return float(weight.item())


def finite_numbers(raw: Any, where: str) -> np.ndarray:
    """The value as finite float64 numbers, or a sentence."""
    array = np.asarray(raw)
    if array.dtype.kind not in "iuf":
        raise InputError(f"{where} is {str(raw)[:40]!r}, which is not a number; correct the file")
    array = array.astype(np.float64)
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        at = f" of atom {bad[0][0]}, column {bad[0][1]}," if array.ndim == 2 else ""
        text = f"{where}{at} is {array[tuple(bad[0])]}, a finite number is wanted"
        raise InputError(f"{text}; correct or remove this frame")
    return array


def _value(label: str, raw: Any, source: Source, atoms: Atoms, where: str) -> Any:
    numbers = finite_numbers(raw, where)
    if label == "energy":
        if numbers.size != 1:
            raise InputError(f"{where} has shape {numbers.shape}, one number in eV is wanted")
        return float(numbers.item())
    if label == "forces":
        if numbers.shape != (len(atoms), 3):
            wanted = f"({len(atoms)}, 3), three numbers in eV/A per atom, is wanted"
            raise InputError(f"{where} has shape {numbers.shape}, {wanted}")
        return numbers
    return _stress(numbers, source, atoms, where)


def _stress(numbers: np.ndarray, source: Source, atoms: Atoms, where: str) -> np.ndarray:
    """Stress as a symmetric 3 x 3 tensor from 6 (xx yy zz yz xz xy), 9 or 3 x 3 numbers."""
    if numbers.shape == (6,):
        xx, yy, zz, yz, xz, xy = numbers
        tensor = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    elif numbers.shape in ((9,), (3, 3)):
        tensor = numbers.reshape(3, 3)
    else:
        raise InputError(
            f"{where} has shape {numbers.shape}, 6 numbers (xx yy zz yz xz xy), 9 or 3 x 3 "
            "are wanted"
        )
    asymmetry = np.abs(tensor - tensor.T).max()
    if asymmetry > 0.01 * np.abs(tensor).max() + 1e-4:
        raise InputError(
            f"{where} is not symmetric (by up to {asymmetry:.3g}); a stress is a symmetric "
            "tensor, check the order of its numbers"
        )
    tensor = 0.5 * (tensor + tensor.T)
    volume = abs(float(np.linalg.det(atoms.cell.array)))
    if source.virial:
        return -tensor / volume if volume > 0 else np.zeros((3, 3))
    return tensor


def _drop_stress(frames: list[Frame], notes: list[str]) -> list[Frame]:
    """Without three periodic directions there is no volume, and a stress means nothing."""
    bad = [f.index for f in frames if f.stress is not None and not f.pbc.all()]
    if not bad:
        return frames
    notes.append(
        f"stress is ignored in {len(bad)} frames that are not periodic in three directions "
        f"(first: frame {bad[0]})"
    )
    return [replace(f, stress=None) if not f.pbc.all() else f for f in frames]


def _row(label: str, source: Source | None, frames: Sequence[Frame]) -> LabelRow | None:
    values = [v for f in frames if (v := getattr(f, label)) is not None]
    if source is None or not values:
        return None
    name = f"{source.place}, -virial/volume" if source.virial else source.place
    low, high = min(np.min(v) for v in values), max(np.max(v) for v in values)
    return LabelRow(label, source.key, name, len(values), float(low), float(high), UNITS[label])
