"""How much a potential depends on orientation: the same structures turned and mirrored.

An exact product leaves nothing but rounding. An approximate one (`--product cp --rank R`), or an
activation on a sphere (`--activation s2`), makes energies depend on the orientation of a structure,
which this measures in the units of its errors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from eqnet.data.frame import Frame
from eqnet.evaluation import Answer, evaluate
from eqnet.metrics import MILLI, number
from eqnet.potential import Potential
from eqnet.so3 import random_elements

TURNS = 8  # orientations of each structure, if they are small
MAX_ATOMS = 600  # in all turned structures together, unless that leaves less than two turns
ROUNDING = 1e-9  # declared relative errors below this are none
ROUNDING_OF_FORCES = 1e-6  # meV/A, of float64
SMALL = 0.1  # of the force error: what does not matter


def declared_error(potential: nnx.Module) -> float:
    """The largest relative equivariance error that a part of the model declares."""
    declared = [
        value.declaration.error
        for _, module in nnx.iter_modules(potential)
        for value in vars(module).values()
        if hasattr(value, "declaration")
    ]
    return max(declared, default=0.0)


def group_of(potential: nnx.Module) -> str:
    """What the model is meant to be invariant under: 'O3', or 'SO3' if its configuration says."""
    config = getattr(getattr(potential, "model", None), "config", None)
    return getattr(config, "group", "O3")


def orientations(frames: Sequence[Frame], group: str = "O3") -> list[np.ndarray]:
    """Random elements of a group, [3, 3] each, see `random_elements`; few for many atoms."""
    rng = np.random.default_rng(0)
    turns = max(2, min(TURNS, MAX_ATOMS // sum(map(len, frames))))
    return list(random_elements(rng, turns, group))


def turned(frame: Frame, element: np.ndarray) -> Frame:
    """The structure after a proper or improper rotation [3, 3], without labels."""
    return dataclasses.replace(
        frame,
        positions=frame.positions @ element.T,
        cell=frame.cell @ element.T,
        energy=None,
        forces=None,
        stress=None,
    )


def answers_and_error(
    potential: Potential, frames: Sequence[Frame]
) -> tuple[list[Answer], dict[str, float]]:
    """Answers in float64, and how much they change with the orientation of the structures.

    Args:
        potential: that `evaluate` takes.
        frames: at least one structure.

    Returns:
        One answer per frame, and the equivariance error: root mean square and largest difference
        of |E(Rx) - E(x)| in meV per atom (`energy_per_atom_rmse`, `energy_per_atom_max`) and of the
        components of F(Rx) - R F(x) in meV/A (`forces_rmse`, `forces_max`) over random R of the
        `group` of the model; the numbers of `structures` and `turns`; and `declared`, see
        `declared_error`.
    """
    group = group_of(potential)
    elements = orientations(frames, group)
    copies = [turned(frame, element) for element in elements for frame in frames]
    answers = evaluate(potential, [*frames, *copies], dtype="float64")
    found, rest = answers[: len(frames)], iter(answers[len(frames) :])
    energies, forces = [], []
    for element in elements:
        for frame, answer in zip(frames, found, strict=True):
            other = next(rest)
            energies.append(MILLI * (other.energy - answer.energy) / len(frame))
            forces.append(MILLI * (other.forces - answer.forces @ element.T).ravel())
    error = {
        "structures": len(frames),
        "turns": len(elements),
        "group": group,
        "declared": declared_error(potential),
    }
    for name, differences in (
        ("energy_per_atom", np.array(energies)),
        ("forces", np.concatenate(forces)),
    ):
        error[f"{name}_rmse"] = float(np.sqrt(np.mean(differences**2)))
        error[f"{name}_max"] = float(np.abs(differences).max())
    return found, error


def is_rounding(error: Mapping[str, Any]) -> bool:
    """Whether an error of `answers_and_error` is that of the arithmetic alone."""
    return error["declared"] < ROUNDING and error["forces_max"] < ROUNDING_OF_FORCES


def sentence(error: Mapping[str, Any], force_rmse: float | None) -> str:
    """The equivariance error for people, beside the error of the forces in meV/A."""
    energy, forces = (
        f"{number(error[f'{name}_rmse'])} {unit} (largest {number(error[f'{name}_max'])})"
        for name, unit in (("energy_per_atom", "meV per atom"), ("forces", "meV/Å"))
    )
    mirrored = error["group"] == "O3"
    turning = "turning and mirroring" if mirrored else "turning"
    change = (
        f"{turning} {error['structures']} structures {error['turns']} times changes their energies "
        f"by {energy} and the components of their forces by {forces}, root mean square"
        + ("" if mirrored else " (mirror images are told apart by choice)")
    )
    if is_rounding(error):
        return f"Equivariant to rounding: {change}."
    what = "This model is approximate, although its products are not"
    if error["declared"] >= ROUNDING:
        declared = number(error["declared"])
        what = f"This model is approximate, with a declared relative error of {declared}"
    text = f"{what}: {change}."
    if not force_rmse:
        return text
    share = error["forces_rmse"] / force_rmse
    if share <= SMALL:
        return f"{text} That is small beside the error of the forces, {number(force_rmse)} meV/Å."
    advice = "a larger rank or grid_resolution lowers it, and without rank and sphere there is none"
    return (
        f"{text} That is not small, {100 * share:.0f} % of the error of the forces, "
        f"{number(force_rmse)} meV/Å" + (f": {advice}." if error["declared"] >= ROUNDING else ".")
    )
