"""Relaxing many structures side by side, each by an ASE optimiser of its own.

    ends = relax(EqnetCalculator("model.eqnet", dtype="float64", skin=0.3), structures, fmax=0.01)

Optimisers take their steps in turn, and one call of the model computes where all have arrived. When
a quarter of the room for moving atoms is free, the next structures move in, so that the memory does
not depend on the number of structures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_properties
from ase.calculators.singlepoint import SinglePointCalculator
from ase.cell import Cell
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE, LBFGS

from eqnet.calculator import EqnetCalculator, check_volume
from eqnet.data.frame import from_atoms
from eqnet.side_by_side import NoAnswer, SideBySide
from eqnet.verlet_list import check_structure

# Atoms that move at a time: a CPU gains no more from a hundred, and loses by places left empty.
ROOM = {"cpu": 150}
ROOM_ELSEWHERE = 4000
OPTIMIZERS: dict[str, Any] = {"bfgs": BFGS, "lbfgs": LBFGS, "fire": FIRE}


class Place(NamedTuple):
    """Where atoms had an answer, and the answer by ASE's names of properties."""

    positions: np.ndarray
    cell: Cell
    results: dict[str, Any]


def place_of(atoms: Atoms) -> Place:
    """Where atoms are, with what their calculator has found there."""
    assert isinstance(atoms.calc, Calculator)
    found = atoms.calc.results.items()
    results = {name: value for name, value in found if name in all_properties}
    return Place(atoms.positions.copy(), atoms.cell.copy(), results)


def put_back(atoms: Atoms, place: Place) -> None:
    """Move atoms to a place; their calculator has the answer there and no other."""
    atoms.set_cell(place.cell)
    atoms.positions[:] = place.positions
    atoms.calc = SinglePointCalculator(atoms, **place.results)


class Relaxation:
    """The way of one structure, whose atoms (and cell, if `cell`) are moved in place.

    Attributes:
        index: of the structure, as errors name it.
        atoms: the structure; at the end with its energy, forces and, if there is one, stress;
            `atoms.info["converged"]` is `converged`.
        steps: taken so far.
        largest: force left on an atom or the cell, eV/angstrom.
        converged: whether it is below `fmax`.
        error: why there is no answer at the step after the last, or at the first; '' if there is.
    """

    def __init__(self, index: int, atoms: Atoms, optimizer: str, fmax: float, cell: bool) -> None:
        self.index, self.atoms, self.fmax = index, atoms, fmax
        target: Any = FrechetCellFilter(atoms) if cell else atoms
        self.optimizer = OPTIMIZERS[optimizer](target, logfile=None)
        self.largest = float("inf")
        self.error = ""
        self.converged = atoms.info["converged"] = False
        atoms.calc = None  # what a file says is no answer of this model
        self._last_good: Place | None = None

    @property
    def steps(self) -> int:
        """Steps taken so far."""
        return self.optimizer.nsteps

    def advance(self, steps: int) -> bool:
        """Take a step if there is more to do: forces are large, and `steps` are not used up."""
        problem = self.optimizer.optimizable
        try:
            gradient = problem.get_gradient()
        except NoAnswer as error:
            self.error = str(error)
            self.step_back()
            return False
        self.largest = float(problem.gradient_norm(gradient))
        self.converged = bool(problem.converged(gradient, self.fmax))
        self.atoms.info["converged"] = self.converged
        if self.converged or self.steps == steps:
            return False
        self._last_good = place_of(self.atoms)
        self.optimizer.step()
        self.optimizer.nsteps += 1
        return True

    def step_back(self) -> None:
        """To the last place with an answer, if atoms are at none; without one, no calculator."""
        calc = self.atoms.calc
        if isinstance(calc, Calculator) and calc.results and not calc.check_state(self.atoms):
            return
        self.atoms.calc = None
        if self._last_good is not None:
            self.optimizer.nsteps -= 1
            put_back(self.atoms, self._last_good)


def relax(
    calculator: EqnetCalculator,
    structures: Sequence[Atoms],
    *,
    optimizer: Literal["bfgs", "lbfgs", "fire"] = "bfgs",
    fmax: float = 0.01,
    steps: int = 1000,
    cell: bool = False,
    room: int | None = None,
    name: str = "structures",
    indices: Sequence[int] | None = None,
    show: Callable[[Sequence[Relaxation]], None] | None = None,
) -> list[Relaxation]:
    """Relax structures side by side, as ASE would one after the other; they are moved in place.

    Args:
        calculator: the model; with a skin, neighbours are seldom searched.
        structures: the structures; their constraints are kept.
        optimizer: the name of ASE's optimiser.
        fmax: largest force left on an atom (and, with `cell`, on the cell), eV/angstrom.
        steps: most steps of each.
        cell: whether lattice vectors are relaxed too; three periodic directions.
        room: atoms that move at a time, larger structures alone; if None, 150 on a CPU, else 4000.
        name: how errors call the structures, before the word frame and the index.
        indices: of the structures in errors, [S]; 0, 1, ... if None.
        show: called with all relaxations, those to come too, after each sweep.

    Raises:
        InputError: a structure that no model of these elements knows, see `check_structure`; the
            model or the device have no answers at all. When one structure has none, that ends its
            relaxation only (`Relaxation.error`).

    Structures without an answer, and all that moved when there was an error or an interruption, go
    back to the last place with an answer.
    """
    if room is None:
        room = ROOM.get(calculator.device.platform, ROOM_ELSEWHERE)
    named = list(
        zip(range(len(structures)) if indices is None else indices, structures, strict=True)
    )
    for i, atoms in named:
        frame = from_atoms(atoms, file=name, index=i)
        check_structure(frame, calculator.members[0].potential.elements)
        if cell:
            check_volume(frame)
    ways = [Relaxation(i, atoms, optimizer, fmax, cell) for i, atoms in named]
    try:
        for _ in _sweeps(calculator, ways, room, steps, name):
            if show is not None:
                show(ways)
    except BaseException:  # an interruption among them: some have moved and have no answer yet
        for way in ways:
            way.step_back()
        raise
    return ways


def _sweeps(
    calculator: EqnetCalculator, ways: Sequence[Relaxation], room: int, steps: int, name: str
) -> Iterator[None]:
    """Let all relaxations advance, as many at a time as have room."""
    waiting = sorted(ways, key=lambda way: len(way.atoms))  # the largest first: the rest has room
    moving: list[Relaxation] = []
    while waiting or moving:
        size = sum(len(way.atoms) for way in moving)
        joined = False
        if 4 * size <= 3 * room:
            while waiting and (not moving or size + len(waiting[-1].atoms) <= room):
                moving.append(waiting.pop())
                size += len(moving[-1].atoms)
                joined = True
        if joined:
            indices = [way.index for way in moving]
            SideBySide(calculator, [way.atoms for way in moving], name=name, indices=indices)
        moving = [way for way in moving if way.advance(steps)]
        yield
