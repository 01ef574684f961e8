"""A training that is small: a Morse potential learns another one from a few molecules."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from morse import by_hand, model_of, morse_potential
from rich.console import Console

from eqnet.checkpoint import Checkpoints
from eqnet.data.batches import Loader
from eqnet.data.frame import Frame
from eqnet.data.part import take
from eqnet.data.store import items_of
from eqnet.fit import Fit
from eqnet.options import TrainOptions, check, resolve_choices
from eqnet.potential import Potential
from eqnet.progress import Progress
from eqnet.run_folder import History
from eqnet.training import Problem

WATER = np.array([[0.0, 0.0, 0.12], [0.0, 0.76, -0.48], [0.0, -0.76, -0.48]])


def frames(number: int, seed: int = 0) -> list[Frame]:
    """Water molecules with energies of a Morse potential and forces by central differences."""
    truth, rng = morse_potential(elements=(1, 8), dtype="float64"), np.random.default_rng(seed)
    numbers, open_cell, pbc = np.array([8, 1, 1]), np.zeros((3, 3)), np.zeros(3, bool)

    def energy(positions: np.ndarray) -> float:
        return by_hand(numbers, positions, open_cell, pbc, truth)

    found = []
    for index in range(number):
        positions = WATER + rng.normal(scale=0.08, size=(3, 3))
        forces, step = np.zeros((3, 3)), 1e-4
        for i in np.ndindex(3, 3):
            moved = np.zeros((3, 3))
            moved[i] = step
            forces[i] = -(energy(positions + moved) - energy(positions - moved)) / (2 * step)
        total = energy(positions)
        found.append(
            Frame(numbers, positions, open_cell, pbc, total, forces, file="w.xyz", index=index)
        )
    return found


def options(**values) -> TrainOptions:
    """Resolved options of a short run, some of them changed."""
    short = {"max_num_epochs": 4, "batch_size": 2, "valid_batch_size": 3, "lr": 0.01}
    chosen = TrainOptions().replace({**short, **values})
    check(chosen)
    return resolve_choices(chosen)


def other_potential(dtype: str = "float32") -> Potential:
    """The potential to train: not the one that made the labels."""
    potential = morse_potential(elements=(1, 8), dtype=dtype)
    model = model_of(potential)
    model.depth[...] = model.depth[...] * 1.3
    model.radius[...] = model.radius[...] + 0.05
    return potential


def fit(
    folder: Path, chosen: TrainOptions, *, train: int = 7, data: Sequence[Frame] | None = None
) -> Fit:
    """A fit in a folder, on `train` frames and four for validation."""
    structures = frames(train + 4) if data is None else data
    dtype = chosen.run.default_dtype
    potential = other_potential(dtype)
    learnt, kept = (
        items_of(take(structures, part), potential.elements, potential.cutoff)
        for part in (range(train), range(train, len(structures)))
    )
    common = {"reference_energy": potential.reference_energy, "dtype": np.dtype(dtype)}
    loader = Loader(learnt, chosen.run.batch_size, seed=chosen.run.seed, **common)
    valid = Loader(kept, chosen.run.valid_batch_size or 4, shuffle=False, **common)
    folder.mkdir(parents=True, exist_ok=True)
    progress = Progress(Console(file=io.StringIO()))
    return Fit(
        Problem(
            potential,
            chosen.loss,
            chosen.optimizer,
            loader.num_batches,
            stress=any(frame.stress is not None for frame in structures),
        ),
        replace(chosen),
        loader,
        valid,
        checkpoints=Checkpoints(folder / "checkpoints", tell=progress.tell),
        history=History(folder),
        progress=progress,
    )
