"""The validation of a training: sums of errors over structures that are always the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import numpy as np

from eqnet.data.batches import Loader, Targets
from eqnet.graph import AtomGraph
from eqnet.losses import Sums
from eqnet.pieces import more_pieces
from eqnet.team import Team
from eqnet.training import Program, Task, Weights, told_of, validation_step

RESIDENT_BYTES = 1 << 29  # batches up to this size stay on the device


class Validation:
    """What a training validates on.

    Attributes:
        loader: batches, always in the same order.
        program: from weights and a batch to its sums.

    Args:
        problem: what is learned.
        loader: batches, always in the same order.
        team: the processes that train together; loaders have their parts of the batches.
        tell: takes a line for a person.
    """

    def __init__(
        self, problem: Task, loader: Loader, *, team: Team, tell: Callable[[str], None]
    ) -> None:
        self.loader, self._problem, self._team, self._tell = loader, problem, team, tell
        announce = told_of("validation", tell)
        self.program = Program(self._function(), announce=announce, place=team.shares)
        self._kept: list[tuple[AtomGraph, Targets]] | None = None
        self._resident = team.count == 1

    def _function(self) -> Callable[..., Sums]:
        step = validation_step(self._problem, self._team.add, self.loader.pieces)
        return self._team.together(step)

    def sums(self, weights: Weights) -> list[Sums]:
        """Of each batch, in more pieces where the device has no memory for all of it.

        Raises:
            InputError: there is no memory for one structure.
        """
        while True:
            try:
                found = [self.program(weights, *pair) for pair in self._batches()]
                return jax.block_until_ready(found)
            except jax.errors.JaxRuntimeError as error:
                pieces = more_pieces(self.loader, error, what="validation", tell=self._tell)
            self.divide(pieces)

    def divide(self, pieces: int) -> None:
        """Take batches in so many pieces."""
        if pieces != self.loader.pieces:
            self.loader, self._kept = self.loader.in_pieces(pieces), None
            self.program.become(self._function())

    def leave_device(self) -> None:
        """Keep no batches there from now on."""
        self._kept, self._resident = None, False

    def names(self, batch: int) -> list[str]:
        """Where the structures of a batch are from."""
        return [self.loader.items[i].frame.name for i in self.loader.order(0)[batch]]

    def _batches(self) -> Iterator[tuple[AtomGraph, Targets]]:
        """The batches; small sets stay, on the device if one process has all of them."""
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[tuple[AtomGraph, Targets]] = []
        size = 0
        for batch in self.loader.batches(0):
            size += sum(np.asarray(x).nbytes for x in jax.tree.leaves(batch))
            if size <= RESIDENT_BYTES and self._resident:
                batch = jax.device_put(batch)
            kept = [*kept, batch] if size <= RESIDENT_BYTES else []
            yield batch
        if len(kept) == self.loader.num_batches:
            self._kept = kept
