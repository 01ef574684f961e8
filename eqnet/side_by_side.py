"""ASE calculators of several structures whose answers come from one call of one program.

    group = SideBySide(EqnetCalculator("model.eqnet", skin=0.3), structures)
    forces = [atoms.get_forces() for atoms in structures]  # one call: the first asks for all

ASE's optimisers and `ase.mep.NEB` work on such structures as on any others. When one of them is
asked for what is not known yet, all that have moved meanwhile are computed with it, in one graph.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from eqnet.calculator import EqnetCalculator, frame_of
from eqnet.data.frame import Frame
from eqnet.errors import InputError
from eqnet.verlet_list import same_kind


class NoAnswer(InputError):
    """One structure has no answer; the others of its group may have theirs."""


class SideBySide:
    """Structures that are computed together; each gets a calculator (`atoms.calc`) of its own.

    They may differ in elements, number of atoms, cell and boundary conditions. Answers are those
    of `calculator` alone, to rounding. A structure that rests is not computed again; once it is so
    with more than half of those in the graph, the others have a graph to themselves.

    Args:
        calculator: the model; with a skin, neighbours are seldom searched.
        structures: at least one, each an object of its own.
        name: how errors call them, before the word frame and the index.
        indices: of the structures in errors, [S]; 0, 1, ... if None.

    Attributes:
        structures: those given.
        sweeps: calls of the program so far.

    Raises:
        InputError: no structures, one of them twice, or a calculator with tensors; from a structure
            that is asked, that the model or the device have no answers at all.
        NoAnswer: from a structure that is asked, what `EqnetCalculator` says of it. The others are
            not troubled by that.
    """

    def __init__(
        self,
        calculator: EqnetCalculator,
        structures: Sequence[Atoms],
        *,
        name: str = "structures",
        indices: Sequence[int] | None = None,
    ) -> None:
        self.structures = list(structures)
        if not self.structures:
            raise InputError("there are no structures to compute side by side")
        if len({id(atoms) for atoms in self.structures}) < len(self.structures):
            raise InputError("one structure is there twice; give copies, atoms.copy()")
        if calculator.tensors is not None:
            raise InputError("tensors are not computed side by side; ask their calculator itself")
        self.calculator = calculator
        self.sweeps = 0
        self._name = name
        self._indices = list(range(len(self.structures)) if indices is None else indices)
        self._known: dict[int, tuple[Frame, dict[str, Any] | InputError]] = {}
        self._in_graph: list[int] = []
        self._lock = threading.RLock()
        for i, atoms in enumerate(self.structures):
            atoms.calc = OneOfSeveral(self, i)

    def answer(self, i: int, atoms: Atoms | None, properties: Sequence[str]) -> dict[str, Any]:
        """The results of structure i where `atoms` are now, with the properties asked for.

        Raises:
            NoAnswer: it has none.
            InputError: the model or the device have no answers at all, or there are no `atoms`.
            PropertyNotImplementedError: stress is asked for, and there is no volume.
        """
        with self._lock:
            frame = self._frame(i, atoms, properties)
            if self._moved(i, frame):
                self._sweep(i, frame)
            answer = self._known[i][1]
        if isinstance(answer, InputError):
            raise NoAnswer(*answer.args)
        return answer

    def _frame(self, i: int, atoms: Atoms | None, properties: Sequence[str] = ()) -> Frame:
        return frame_of(atoms, properties, file=self._name, index=self._indices[i])

    def _moved(self, i: int, frame: Frame) -> bool:
        """Whether the structure is not where it was computed."""
        if i not in self._known:
            return True
        old, _ = self._known[i]
        return not (same_kind(old, frame) and np.array_equal(old.positions, frame.positions))

    def _sweep(self, asked: int, frame: Frame) -> None:
        """Compute the structure that was asked and all others that have moved."""
        frames = {i: self._frame(i, atoms) for i, atoms in enumerate(self.structures)}
        frames[asked] = frame
        moved = [i for i, now in frames.items() if self._moved(i, now)]
        if not set(moved) <= set(self._in_graph) or 2 * len(moved) < len(self._in_graph):
            self._in_graph = moved
        answers = self.calculator.answers([frames[i] for i in self._in_graph])
        self.sweeps += 1
        for i, answer in zip(self._in_graph, answers, strict=True):
            self._known[i] = frames[i], answer
        self._in_graph = [i for i in self._in_graph if isinstance(self._known[i][1], dict)]


class OneOfSeveral(Calculator):
    """The calculator of one structure of a group; see `SideBySide`."""

    ignored_changes = EqnetCalculator.ignored_changes

    def __init__(self, group: SideBySide, index: int) -> None:
        super().__init__()
        known = group.calculator.implemented_properties
        # stresses of atoms come from a program of one structure
        self.implemented_properties = [name for name in known if name != "stresses"]
        self._group, self._index = group, index

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Fill `results`, with a sweep if the group has not computed this structure here."""
        self.results = {}
        super().calculate(atoms, list(properties), list(system_changes))
        self.results = dict(self._group.answer(self._index, self.atoms, properties))
