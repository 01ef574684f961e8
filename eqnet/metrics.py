"""Errors of a potential against labels, in the units people quote.

Energies in meV per structure and in meV per atom, forces in meV/A over all Cartesian components,
stress in meV/A^3 over all nine components of the 3 x 3 tensor (an off-diagonal component counts
twice, as it does in the tensor's norm). MAE is the mean of |predicted - label|, RMSE the root of
the mean square. A structure without a label takes no part in that error, and where nobody has the
label the key is absent: an error is never 0 for want of data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from eqnet.data.part import take

if TYPE_CHECKING:
    from rich.table import Table

    from eqnet.data.read import Frame
    from eqnet.evaluation import Answer

MILLI = 1000.0  # eV -> meV

#: Quantity -> (words for people, unit).
QUANTITIES = {
    "energy": ("energy", "meV"),
    "energy_per_atom": ("energy per atom", "meV"),
    "forces": ("forces", "meV/Å"),
    "stress": ("stress", "meV/Å³"),
}


def errors(frames: Sequence[Frame], answers: Sequence[Answer]) -> dict[str, Any]:
    """MAE and RMSE of the answers, for all frames and for each `config_type`.

    Returns `{quantity}_mae` and `{quantity}_rmse` for the quantities energy (meV per structure),
    energy_per_atom (meV), forces (meV/A) and stress (meV/A^3), as far as there are labels, and
    `num_structures`; the same under `config_types[name]`.
    """
    if len(frames) != len(answers):
        raise ValueError(f"{len(frames)} frames but {len(answers)} answers")
    result = _errors(frames, answers)
    members: dict[str, list[int]] = {}
    for index, frame in enumerate(frames):
        members.setdefault(frame.config_type, []).append(index)
    result["config_types"] = {
        name: _errors(take(frames, chosen), [answers[i] for i in chosen])
        for name, chosen in sorted(members.items())
    }
    return result


def _errors(frames: Sequence[Frame], answers: Sequence[Answer]) -> dict[str, Any]:
    result: dict[str, Any] = {"num_structures": len(frames)}
    for quantity in QUANTITIES:
        deviations = _deviations(quantity, frames, answers)
        if deviations.size:
            result[f"{quantity}_mae"] = float(np.abs(deviations).mean())
            result[f"{quantity}_rmse"] = float(np.sqrt(np.square(deviations).mean()))
    return result


def _deviations(quantity: str, frames: Sequence[Frame], answers: Sequence[Answer]) -> np.ndarray:
    """Predicted minus label of one quantity, all labelled components in one line, meV units."""
    predicted, labels = paired(quantity, frames, answers)
    return MILLI * (predicted - labels)


def paired(
    quantity: str, frames: Sequence[Frame], answers: Sequence[Answer]
) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and labels of one quantity where both exist, flat, float64, eV units."""
    predicted: list[Any] = []
    labels: list[Any] = []
    for frame, answer in zip(frames, answers, strict=True):
        if quantity.startswith("energy"):
            if frame.energy is None:
                continue
            divisor = len(frame.numbers) if quantity == "energy_per_atom" else 1
            predicted.append(np.float64(answer.energy) / divisor)
            labels.append(np.float64(frame.energy) / divisor)
        else:
            label, value = getattr(frame, quantity), getattr(answer, quantity)
            if label is None or value is None:
                continue
            predicted.append(np.asarray(value, np.float64))
            labels.append(np.asarray(label, np.float64))
    if not labels:
        return np.zeros(0), np.zeros(0)
    return (
        np.concatenate([np.ravel(value) for value in predicted]),
        np.concatenate([np.ravel(label) for label in labels]),
    )


def force_errors_by_element(
    frames: Sequence[Frame], answers: Sequence[Answer]
) -> dict[int, dict[str, float | int]]:
    """Atomic number -> `forces_mae`, `forces_rmse` (meV/A) and `num_atoms` of that element."""
    result: dict[int, dict[str, float | int]] = {}
    for number, (predicted, labels) in forces_by_element(frames, answers).items():
        deviations = MILLI * (predicted - labels)
        result[number] = {
            "num_atoms": len(labels),
            "forces_mae": float(np.abs(deviations).mean()),
            "forces_rmse": float(np.sqrt(np.square(deviations).mean())),
        }
    return result


def forces_by_element(
    frames: Sequence[Frame], answers: Sequence[Answer]
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Predicted and labelled forces of each element, atomic number -> ([n, 3], [n, 3]) in eV/A."""
    chosen = [
        (frame.numbers, answer.forces, frame.forces)
        for frame, answer in zip(frames, answers, strict=True)
        if frame.forces is not None
    ]
    if not chosen:
        return {}
    numbers, predicted, labels = (
        np.concatenate([np.asarray(item[i]) for item in chosen]) for i in range(3)
    )
    return {
        int(number): (
            predicted[numbers == number].astype(np.float64),
            labels[numbers == number].astype(np.float64),
        )
        for number in np.unique(numbers)
    }


def frame_errors(frames: Sequence[Frame], answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Errors of every frame, in order: where it stands, and what is wrong with it.

    Keys: file, index, config_type, num_atoms; `energy_per_atom` (signed, meV), `forces_rmse` and
    `forces_max` (largest component of the error, meV/A), each only where the frame has the label.
    """
    result: list[dict[str, Any]] = []
    for frame, answer in zip(frames, answers, strict=True):
        row: dict[str, Any] = {
            "file": frame.file,
            "index": frame.index,
            "config_type": frame.config_type,
            "num_atoms": len(frame.numbers),
        }
        if frame.energy is not None:
            row["energy_per_atom"] = MILLI * (answer.energy - frame.energy) / len(frame.numbers)
        if frame.forces is not None:
            deviations = MILLI * (np.asarray(answer.forces, np.float64) - frame.forces)
            row["forces_rmse"] = float(np.sqrt(np.square(deviations).mean()))
            row["forces_max"] = float(np.abs(deviations).max())
        result.append(row)
    return result


def rows(measured: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The blocks of an error table: every config_type; all of them last if there are several."""
    groups = list(measured["config_types"].items())
    return groups if len(groups) == 1 else [*groups, ("all", measured)]


def table(measured: dict[str, Any], naive: dict[str, Any] | None = None) -> Table:
    """The errors as a table for the terminal, one block per config_type.

    Args:
        measured: result of `errors`.
        naive: the same for a predictor that knows only the composition, shown beside it.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    sources = [measured] if naive is None else [measured, naive]
    result = Table(box=SIMPLE_HEAD, pad_edge=False)
    result.add_column("config_type", overflow="fold", min_width=11)
    result.add_column("frames", justify="right", no_wrap=True)
    result.add_column("", no_wrap=True)
    for title in ("MAE", "RMSE", "naive\nMAE", "naive\nRMSE")[: 2 * len(sources)]:
        style = "dim" if "naive" in title else None
        result.add_column(title, justify="right", style=style, no_wrap=True)
    for blocks in zip(*map(rows, sources), strict=True):
        name, group = blocks[0]
        head = (name, f"{group['num_structures']:,}")
        present = [quantity for quantity in QUANTITIES if f"{quantity}_mae" in group]
        for quantity in present:
            values = [
                number(source.get(f"{quantity}_{kind}"))
                for _, source in blocks
                for kind in ("mae", "rmse")
            ]
            words = ", ".join(QUANTITIES[quantity]).replace(" per ", "/")
            result.add_row(*head, words, *values)
            head = ("", "")
        if not present:
            result.add_row(*head, "no labels")
        result.add_section()
    return result


def number(value: float | None) -> str:
    """Three digits or more for people: 0.0123, 1.23, 12.3, 1,234; a dash where there is none."""
    if value is None:
        return "–"
    if value == 0 or not np.isfinite(value):
        return f"{value:g}"
    if abs(value) < 1e-4:
        return f"{value:.1e}"
    digits = 2 - int(np.floor(np.log10(abs(value))))
    return f"{value:,.{max(digits, 0)}f}"
