"""Whether the atoms of `eqnet md` are still like those that the model knows."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from eqnet.answers import Answers
from eqnet.committee import Member
from eqnet.data.elements import symbol
from eqnet.data.frame import Frame, from_atoms
from eqnet.errors import InputError
from eqnet.simulate import Simulation
from eqnet.trajectory import Block
from eqnet.uncertainty import NOVEL

SHARE = 0.05  # of the time of the simulation that may be spent on it
FIRST = 10.0  # seconds of steps before it is worth the compilation of a program


class Watch:
    """Looks at the last step of every structure now and then, at a small share of the time.

    Args:
        member: the model, with the uncertainty of its file or without.
        simulation: what moves.
        tell: takes a sentence when an atom of a structure gets far from what was validated, and
            again only after all of them have come back.

    Attributes:
        largest: novelty that was seen, see `eqnet.uncertainty`, or None without an uncertainty.
    """

    def __init__(self, member: Member, simulation: Simulation, tell: Callable[[str], None]) -> None:
        self.simulation, self.tell = simulation, tell
        self.largest: float | None = None
        self._answers = None
        if member.uncertainty is not None:
            one = member._replace(examples=())  # they have been replayed
            self._answers = Answers(
                [one], dtype=simulation.dtype, device=simulation.device, mesh=None, skin=0.3
            )
        self._outside: set[int] = set()  # structures
        self._compiled = 0  # programs of the simulation
        self._rest = FIRST  # seconds of steps until it looks again

    def look(self, block: Block) -> None:
        """After each block: look, if it is time."""
        if self.simulation.compilations == self._compiled:
            self._rest -= block.seconds
        self._compiled = self.simulation.compilations
        if self._answers is None or self._rest > 0:
            return
        started, compiled = time.monotonic(), self._answers.compilations
        try:
            self._look()
        except InputError as error:  # no reason to end the simulation
            self.tell(f"note: whether atoms are like those of the training is not known: {error}")
            self._answers = None
            return
        if self._answers.compilations == compiled:  # else it would be a long rest
            self._rest = (time.monotonic() - started) / SHARE

    def _look(self) -> None:
        assert self._answers is not None
        simulation = self.simulation
        last = [simulation.last(number) for number in range(simulation.num_structures)]
        frames = [from_atoms(simulation.atoms_of(snapshot)) for snapshot in last]
        answers = self._answers.of(frames)
        for number, (frame, answer) in enumerate(zip(frames, answers, strict=True)):
            if isinstance(answer, dict):  # else the simulation will say what is wrong
                self.judge(last[number].step, number, frame, answer["novelty"])

    def judge(self, step: int, number: int, frame: Frame, novelty: np.ndarray) -> None:
        """Tell of a structure's atom that is far from all that was validated."""
        atom, most = int(np.argmax(novelty)), float(novelty.max())
        self.largest = max(most, self.largest or 0.0)
        if most > NOVEL and number not in self._outside:
            where = f" of structure {number}" if self.simulation.num_structures > 1 else ""
            self.tell(
                f"note: at step {step} atom {atom} ({symbol(int(frame.numbers[atom]))}){where} is "
                f"{most:.1f} times as far from the structures the model was trained on as any atom "
                "it was validated on: what follows may be wrong"
            )
        self._outside -= {number}
        self._outside |= {number} if most > NOVEL else set()
