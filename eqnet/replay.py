"""Structures with answers that travel in the model file and are computed again when it is opened.

A new device, precision, method or library version must reproduce them, or the model is refused: a
wrong kernel is found before the first simulation, not after it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from eqnet.data.check import check_cell
from eqnet.data.frame import Frame
from eqnet.data.items import make_items
from eqnet.data.packing import pack
from eqnet.device import program
from eqnet.errors import InputError, reason
from eqnet.potential import Potential

#: Largest disagreement of a replayed energy per atom (eV), force (eV/angstrom) and stress times
#: volume per atom (eV), relative to the largest of 1 and the values themselves. float32 has seven
#: digits, of which sums over neighbours and channels cost two or three; float64 agrees to rounding
#: unless something is wrong.
TOLERANCE = {"float32": 1e-4, "float64": 1e-9}


class Example(NamedTuple):
    """One structure of n atoms with its answers in float64."""

    frame: Frame  # no labels
    energy: float  # eV, total
    forces: np.ndarray  # [n, 3] eV/angstrom
    node_energy: np.ndarray  # [n] eV, reference energies included
    stress: np.ndarray | None = None  # [3, 3] eV/angstrom^3, where three axes are periodic


def to_json(examples: Sequence[Example]) -> bytes:
    """Examples as text; numbers keep all digits of float64."""
    entries = []
    for example in examples:
        entry = {
            "numbers": example.frame.numbers.tolist(),
            "positions": np.asarray(example.frame.positions, float).tolist(),
            "cell": np.asarray(example.frame.cell, float).tolist(),
            "pbc": [bool(axis) for axis in example.frame.pbc],
            "energy": float(example.energy),
            "forces": np.asarray(example.forces, float).tolist(),
            "node_energy": np.asarray(example.node_energy, float).tolist(),
        }
        if example.stress is not None:
            entry["stress"] = np.asarray(example.stress, float).tolist()
        entries.append(entry)
    return json.dumps(entries, allow_nan=False).encode()


def from_json(path: Path, entries: Any) -> list[Example]:
    """Examples of the file at `path` (for messages) from parsed JSON.

    Raises:
        InputError: not what `to_json` writes.
    """
    try:
        return [_example(entry, index) for index, entry in enumerate(entries)]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{path}: examples.json is damaged ({reason(error)})") from None


def _example(entry: dict[str, Any], index: int) -> Example:
    numbers = np.array(entry["numbers"], dtype=int)
    n = len(numbers)

    def array(key: str, *shape: int) -> np.ndarray:
        values = np.array(entry[key], dtype=np.float64)
        if values.shape != shape or not np.isfinite(values).all():
            raise ValueError(f"example {index}: {key} must be finite and of shape {shape}")
        return values

    if numbers.shape != (n,) or n == 0:
        raise ValueError(f"example {index}: no atoms")
    frame = Frame(
        numbers=numbers,
        positions=array("positions", n, 3),
        cell=array("cell", 3, 3),
        pbc=array("pbc", 3).astype(bool),
        energy=None,
        forces=None,
        stress=None,
    )
    check_cell(frame.cell, frame.pbc, f"example {index}")
    stress = array("stress", 3, 3) if "stress" in entry else None
    if stress is not None and not frame.pbc.all():
        raise ValueError(f"example {index}: a stress without three periodic axes")
    return Example(
        frame, float(array("energy")), array("forces", n, 3), array("node_energy", n), stress
    )


class Found(NamedTuple):
    """What a program says of the n atoms of an example, as float64 on the host."""

    node_energy: np.ndarray  # [n] eV, without reference energies
    forces: np.ndarray  # [n, 3] eV/angstrom
    stress: np.ndarray | None  # [3, 3] eV/angstrom^3; None where it does not exist
    features: np.ndarray | None = None  # [n, D] eV, where the uncertainty needs them


def replay(
    potential: Potential, examples: Sequence[Example], *, dtype: str, path: Path | str
) -> float:
    """Compute the examples again, all in one program; see `compare`."""
    if not examples:
        return 0.0
    frames = [dataclasses.replace(example.frame, index=i) for i, example in enumerate(examples)]
    try:
        items = make_items(frames, potential.elements, potential.cutoff)
    except InputError as error:
        raise InputError(f"{path}: its examples cannot be replayed: {error}") from None
    graphdef, state = nnx.split(potential)
    wanted = any(example.stress is not None for example in examples)
    with jax.enable_x64(dtype == "float64"):
        predict = program(
            lambda state, graph: nnx.merge(graphdef, state).predict(graph, stress=wanted)
        )
        answer = predict(state, pack(items, dtype=np.dtype(dtype)))
    found, start = [], 0
    for index, example in enumerate(examples):
        atoms = slice(start, start + len(example.frame))
        start = atoms.stop
        node_energy, forces = (
            np.asarray(v[atoms], np.float64) for v in (answer.node_energy, answer.forces)
        )
        stress = np.asarray(answer.stress[index], np.float64) if wanted else None
        found.append(Found(node_energy, forces, stress))
    return compare(potential, examples, found, dtype=dtype, path=path)


def compare(
    potential: Potential,
    examples: Sequence[Example],
    found: Sequence[Found],
    *,
    dtype: str,
    path: Path | str,
) -> float:
    """The largest relative disagreement of what was found with the answers in the file.

    Raises:
        InputError: it exceeds `TOLERANCE[dtype]`.
    """
    worst = 0.0
    for index, (example, answer) in enumerate(zip(examples, found, strict=True)):
        disagreement = _disagreement(potential, example, answer)
        if not disagreement <= TOLERANCE[dtype]:  # NaN disagrees
            raise InputError(
                f"{path}: example {index} of {len(examples)} gives other numbers here than where "
                f"the model was trained (relative difference {disagreement:.1e}, {dtype} allows "
                f"{TOLERANCE[dtype]:.0e}); try another device, method or dtype"
            )
        worst = max(worst, disagreement)
    return worst


def _disagreement(potential: Potential, example: Example, found: Found) -> float:
    """Largest of the disagreements that `TOLERANCE` names; infinite if not a number."""
    species = np.searchsorted(potential.elements, example.frame.numbers)
    energy = float(found.node_energy.sum()) + potential.reference_energy(species)
    # What the model itself adds: reference energies are exact and may be thousands of eV.
    learned = np.abs(found.node_energy).max()
    numbers = [
        abs(energy - example.energy) / len(species) / max(1.0, learned),
        _deviation(found.forces, example.forces),
    ]
    if example.stress is not None and found.stress is not None:
        volume = abs(np.linalg.det(example.frame.cell)) / len(species)
        numbers.append(_deviation(volume * found.stress, volume * example.stress))
    return float(max(numbers)) if np.isfinite(numbers).all() else np.inf


def _deviation(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference relative to the largest of 1 and what is expected."""
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))
