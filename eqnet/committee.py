"""The models behind a calculator: one, or a committee whose members' spread says how sure it is."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eqnet.data.elements import symbol
from eqnet.data.frame import Frame
from eqnet.device import Device, computing
from eqnet.errors import InputError, OutOfDomain
from eqnet.files import digest
from eqnet.model_file import open_model
from eqnet.potential import Potential
from eqnet.replay import Example, Found
from eqnet.uncertainty import Uncertainty

Source = str | os.PathLike[str] | Potential
VARIANCES = ["energy_variance", "forces_variance", "stress_variance"]


class Member(NamedTuple):
    """One model."""

    potential: Potential
    path: Path | None = None
    digest: str = ""  # of the file
    examples: Sequence[Example] = ()  # of the file, to replay
    uncertainty: Uncertainty | None = None


def open_member(path: Path, *, dtype: str, method: str, device: Device, examples: bool) -> Member:
    """The model of a file, its weights in a precision."""
    with computing(device, double=dtype == "float64", what=f"loading {path}"):
        opened = open_model(path, dtype=dtype, method=method, examples=examples)
    return Member(
        opened.potential, path.resolve(), digest(path), opened.examples, opened.uncertainty
    )


def check_members(members: Sequence[Member]) -> None:
    """Refuse models that cannot answer together.

    Raises:
        InputError: none, or they know different elements.
    """
    if not members:
        raise InputError("a calculator needs at least one model")
    first = members[0].potential.elements
    for member in members[1:]:
        if member.potential.elements != first:
            other = member.potential.elements
            raise InputError(
                f"the members of a committee must know the same elements, but {members[0].path} "
                f"knows {', '.join(map(symbol, first))} and {member.path} "
                f"{', '.join(map(symbol, other))}"
            )


def results_of(members: Sequence[Member], frame: Frame, found: Sequence[Found]) -> dict[str, Any]:
    """ASE's results: means over the members and, from two on, their unbiased variances.

    Energies are summed here, in float64. With the uncertainty of a model file: `novelty` of each
    atom (the largest of the members') and, of a single model, `energy_uncertainty`.
    """
    species = np.searchsorted(members[0].potential.elements, frame.numbers)
    energies, parts = [], []
    for member, numbers in zip(members, found, strict=True):
        potential = member.potential
        constants = np.array(potential.atomic_energies) + np.array(potential.shift)
        energies.append(float(numbers.node_energy.sum()) + potential.reference_energy(species))
        parts.append(numbers.node_energy + constants[species])
    each: dict[str, Any] = {"energy": energies, "forces": [numbers.forces for numbers in found]}
    if found[0].stress is not None:
        each["stress"] = [voigt(numbers.stress) for numbers in found if numbers.stress is not None]
    results = {name: np.mean(values, axis=0) for name, values in each.items()}
    if len(members) > 1:
        for name, values in each.items():
            results[f"{name}_variance"] = np.var(values, axis=0, ddof=1)
    for name in ("energy", "energy_variance"):
        if name in results:
            results[name] = float(results[name])
    results |= {"free_energy": results["energy"], "energies": np.mean(parts, axis=0)}
    return results | _trust(members, species, found)


def voigt(stress: np.ndarray) -> np.ndarray:
    """[..., 3, 3] -> [..., 6], in the order xx yy zz yz xz xy."""
    return stress[..., [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]


def _trust(
    members: Sequence[Member], species: np.ndarray, found: Sequence[Found]
) -> dict[str, Any]:
    """What the files' uncertainties say."""
    known = [
        (member.uncertainty, numbers.features)
        for member, numbers in zip(members, found, strict=True)
        if member.uncertainty is not None and numbers.features is not None
    ]
    if not known:
        return {}
    results: dict[str, Any] = {
        "novelty": np.max([sure.novelty(f, species) for sure, f in known], axis=0)
    }
    if len(members) == 1:
        uncertainty, features = known[0]
        energy = uncertainty.energy(features)
        if energy is not None:
            results["energy_uncertainty"] = energy
    return results


def warn_outside(novelty: np.ndarray, frame: Frame) -> None:
    """Warn of the atom that is least like those of the training."""
    atom = int(np.argmax(novelty))
    where = f"{frame.name}: " if frame.file else ""
    warnings.warn(
        f"{where}atom {atom} ({symbol(int(frame.numbers[atom]))}) is {novelty[atom]:.1f} times "
        "as far from the structures the model was trained on as any atom it was validated on; the "
        "answer may be wrong (results['novelty'] has all atoms; the next warning comes after a "
        "structure without such atoms)",
        OutOfDomain,
        stacklevel=5,
    )
