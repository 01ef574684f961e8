"""When a run ends, lowers its learning rate and begins its second stage, by its position alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from eqnet.optimizer import Plateau
from eqnet.options import TrainOptions


@dataclass(frozen=True)
class Position:
    """Where a run is, as the host counts it."""

    step: int = 0
    epoch: int = 0  # whole epochs
    batch: int = 0  # steps into the next one
    stage: int = 1
    lr: float = 0.0  # before the course within the stage
    best_loss: float = math.inf  # of the present stage
    best_epoch: int = 0
    plateau_loss: float = math.inf
    plateau_epoch: int = 0
    seconds: float = 0.0  # of all processes that worked on the run
    loop_wall: float = 0.0  # seconds of them in the loop, without compilation
    loop_cpu: float = 0.0  # CPU seconds of all threads meanwhile
    pieces: int = 1  # of a batch, one after the other, that the memory of the device asks for
    valid_pieces: int = 1  # of a batch of the validation

    @property
    def begun(self) -> int:
        """Epochs that have begun; what a validation within an epoch is counted as."""
        return self.epoch + (self.batch > 0)


class Stop(NamedTuple):
    """Why a run ends."""

    reason: str  # in words
    complete: bool  # whether nothing is left to do


@dataclass(frozen=True)
class Plan:
    """The course of a run.

    Attributes:
        options: resolved.
        steps_per_epoch: batches of an epoch.
    """

    options: TrainOptions
    steps_per_epoch: int

    @property
    def epochs(self) -> int:
        """All that there will be."""
        return self.options.run.max_num_epochs or 1

    def finished(self, position: Position) -> Stop | None:
        """Whether the limits of epochs, steps and patience leave nothing to do."""
        run = self.options.run
        if position.epoch >= self.epochs:
            return Stop(f"{self.epochs} epochs", True)
        if run.max_num_steps is not None and position.step >= run.max_num_steps:
            return Stop(f"{run.max_num_steps} steps", True)
        if position.batch == 0 and not self._first_of_two(position):
            if self._out_of_patience(position):
                waited = position.epoch - position.best_epoch
                return Stop(f"no better validation loss for {waited} epochs", True)
        return None

    def ends(self, position: Position) -> bool:
        """Whether the epoch whose last step was just made is the last one."""
        most = self.options.run.max_num_steps
        return position.begun == self.epochs or (most is not None and position.step >= most)

    def at_plateau(self, position: Position, epoch: int, loss: float) -> Position:
        """After a validation, with a lower learning rate if the loss has stopped falling."""
        options = self.options.optimizer
        if options.scheduler != "plateau" or options.lr_factor is None:
            return position
        patience = options.scheduler_patience or 0
        plateau = Plateau(
            options.lr_factor, patience, position.plateau_loss, position.plateau_epoch
        )
        plateau, lower = plateau.update(epoch, loss)
        lr = position.lr * options.lr_factor if lower else position.lr
        return replace(position, plateau_loss=plateau.best, plateau_epoch=plateau.best_epoch, lr=lr)

    def stage_length(self, position: Position) -> int:
        """Steps of the stage that begins at a position."""
        last = self.epochs
        if position.stage == 1:
            last = self.options.stage_two.start_stage_two or last
        length = (last - position.epoch) * self.steps_per_epoch
        most = self.options.run.max_num_steps
        return length if most is None else min(length, most - position.step)

    def second_stage_begins(self, position: Position) -> bool:
        """Whether it is time, at the end of an epoch."""
        if not self._first_of_two(position) or self.finished(position):
            return False
        start = self.options.stage_two.start_stage_two
        return (start is not None and position.epoch >= start) or self._out_of_patience(position)

    def second_stage(self, position: Position) -> Position:
        """Its beginning."""
        return replace(
            position,
            stage=2,
            lr=self.options.stage_two.stage_two_lr or position.lr,
            best_loss=math.inf,
            best_epoch=position.epoch,
            plateau_loss=math.inf,
            plateau_epoch=position.epoch,
        )

    def _first_of_two(self, position: Position) -> bool:
        """Whether a second stage is to come."""
        return self.options.stage_two.stage_two and position.stage == 1

    def _out_of_patience(self, position: Position) -> bool:
        """Whether the validation of this epoch, if there was one, ends the wait."""
        run = self.options.run
        if run.patience is None or position.epoch % run.eval_interval:
            return False
        return position.epoch - position.best_epoch >= run.patience
