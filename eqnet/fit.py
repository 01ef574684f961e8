"""The loop of a training: epochs, validations, stages, checkpoints, and when to stop.

A run is a function of its options and data alone. What the loop knows besides the arrays of
`TrainState` is a `Position`; both are saved together at any step, and a run that goes on from there
makes the same numbers as one that was never interrupted (bit for bit on a CPU).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eqnet import losses, training
from eqnet.checkpoint import Checkpoints
from eqnet.data.batches import Loader
from eqnet.errors import InputError
from eqnet.interrupt import Interrupt
from eqnet.ops.timing import Clock
from eqnet.options import TrainOptions
from eqnet.pieces import more_pieces
from eqnet.plan import Plan, Position, Stop
from eqnet.progress import Pace, Progress
from eqnet.run_folder import History
from eqnet.team import Team
from eqnet.training import Outcome, Program, Task, TrainState, Weights, told_of
from eqnet.validation import Validation

LOOK_SECONDS = 2.0  # between looks into a long epoch: progress, and whether the loss is finite
AGREE = 10  # steps between the moments when several processes agree whether to stop


class Fit:
    """One training.

    Args:
        problem: what to learn, loss and optimiser.
        options: resolved; max_num_epochs is a number.
        train: batches to learn from.
        valid: batches to validate on, always in the same order.
        checkpoints: where the state is kept.
        history: where validations are recorded.
        progress: what a person sees.
        started: time.monotonic() that max_minutes counts from.
        team: the processes that train together; loaders have their parts of the batches.
    """

    def __init__(
        self,
        problem: Task,
        options: TrainOptions,
        train: Loader,
        valid: Loader,
        *,
        checkpoints: Checkpoints,
        history: History,
        progress: Progress,
        started: float | None = None,
        team: Team | None = None,
    ):
        self.problem, self.options = problem, options
        self.team = team = team or Team()
        self.train = train
        self.checkpoints, self.history, self.progress = checkpoints, history, progress
        self.begun = time.monotonic()
        self.started = self.begun if started is None else started
        self.dtype = np.dtype(options.run.default_dtype)
        self.plan = Plan(options, problem.steps_per_epoch)
        self.position = Position(lr=options.optimizer.lr)
        tell = progress.tell
        self.validation = Validation(problem, valid, team=team, tell=tell)
        announce = told_of("training", tell)
        self.step = Program(self._training(), donate=True, announce=announce, place=team.shares)
        state = training.first_state(problem, self._stage(), options.run.seed)
        self.state: TrainState = team.from_first(state)
        self.best: Weights = training.copied(self.state.params)
        self._like = jax.device_get({"state": self.state, "best": self.best})
        self._saved, self._looked = self.begun, 0.0
        self._before = self.position
        self._loop = Clock.now()
        self._pace = Pace()

    def _training(self) -> Callable[..., TrainState]:
        step = training.train_step(self.problem, self.team.add, self.train.pieces)
        return self.team.together(step)

    # ------------------------------------------------------------------------------ the whole

    def run(self) -> Outcome:
        """Train to the end, or to the first limit, signal or fault.

        Raises:
            InputError: the loss became infinite or NaN, no checkpoint can be written, or the device
                has no memory for one structure.
        """
        self._restore()
        self._loop = Clock.now()
        end = None
        with Interrupt() as interrupt, self.progress.start(self.plan.epochs):
            while end is None:
                pieces = self.position.pieces
                try:
                    end = self._to_the_end(interrupt)
                except jax.errors.JaxRuntimeError as error:
                    tell = self.progress.tell
                    pieces = more_pieces(self.train, error, what="training", tell=tell)
                if end is None:  # what the error held in memory is free by now
                    self._go_on_in(pieces)
        stop, number = end
        return Outcome(
            best=self.team.alone(self.best),
            last=self.team.alone(training.copied(self._candidate())),
            position=self.position,
            history=self.history.rows,
            reason=stop.reason,
            complete=stop.complete,
            signal=number or None,
        )

    def _to_the_end(self, interrupt: Interrupt) -> tuple[Stop, int]:
        """Train until there is a reason to stop; also the signal that was it, or 0."""
        stop = self.plan.finished(self.position)
        while stop is None:
            stop = self._epoch(interrupt) or self.plan.finished(self.position)
        self.save()
        unseen = self.position.batch > 0 or not self.history.rows
        number = self.team.most(interrupt.signal or 0)
        if self.team.any(self.team.leads and unseen) and not number:
            self._validate()  # after the checkpoint: the run may go on from there
        return stop, number

    def _restore(self) -> None:
        """Go on from the newest intact checkpoint, or make sure that one can be kept."""
        if not self._load():
            self.save()
            if self.team.leads:
                self._read_back()
            self.history.restart(0)
            return
        self._before = self.position
        self._divide(self.position.pieces)
        self.validation.divide(self.position.valid_pieces)
        if self.position.step:
            self.progress.tell(
                f"going on from step {self.position.step} "
                f"(epoch {self.position.epoch} of {self.plan.epochs})"
            )

    def _load(self) -> bool:
        """Take state and position from the newest intact checkpoint; whether there is one."""
        found = self.checkpoints.restore(self._like) if self.team.leads else None
        if not self.team.any(found is not None):
            return False
        _, tree, position = found or (0, self._like, {})
        tree = self.team.from_first(tree)
        position = json.loads(self.team.text_from_first(json.dumps(position)))
        self.state, self.best = tree["state"], tree["best"]
        self.position = Position(**position)
        self._pace.epoch(self.position.step * self.train.batch_size, self._working())
        self.history.restart(self.position.epoch)
        return True

    def _read_back(self) -> None:
        """Restore the first checkpoint: what cannot be read is better known before the training."""
        found = self.checkpoints.restore(self._like)
        if found is None or not _equal(found[1], {"state": self.state, "best": self.best}):
            raise RuntimeError("the first checkpoint does not give back what was saved")

    def save(self) -> None:
        """Write a checkpoint of the present step."""
        self._check_finite()
        spent, before = self._loop.until_now(), self._before
        compiling = [self.step, self.validation.program]
        self.position = replace(
            self.position,
            valid_pieces=self.validation.loader.pieces,
            seconds=self._seconds(),
            loop_wall=before.loop_wall + spent.wall - sum(p.seconds for p in compiling),
            loop_cpu=before.loop_cpu + spent.cpu - sum(p.cpu_seconds for p in compiling),
        )
        if self.team.leads:
            self.history.sync()
            tree = {"state": self.state, "best": self.best}
            self.checkpoints.save(self.position.step, tree, asdict(self.position))
        self._saved = time.monotonic()

    # ------------------------------------------------------------------------------ one epoch

    def _epoch(self, interrupt: Interrupt) -> Stop | None:
        """The rest of the present epoch; why to stop within it, if so."""
        for graph, targets in self.train.batches(self.position.epoch, self.position.batch):
            self.state = self.step(self.state, graph, targets)
            self.position = replace(
                self.position, step=self.position.step + 1, batch=self.position.batch + 1
            )
            if stop := self._stop(interrupt):
                return stop
            self._now_and_then()
        self._end_epoch()
        return None

    def _stop(self, interrupt: Interrupt) -> Stop | None:
        """Whether to stop after this step, for a signal or a limit."""
        run, minutes = self.options.run, (time.monotonic() - self.started) / 60
        if self._may_agree():
            if number := self.team.most(interrupt.signal or 0):
                return Stop(f"signal {number}", False)
            if self.team.any(run.max_minutes is not None and minutes > run.max_minutes):
                return Stop(f"{run.max_minutes:g} minutes", False)
        if run.max_num_steps is not None and self.position.step >= run.max_num_steps:
            if self.position.batch < self.train.num_batches:
                return Stop(f"{run.max_num_steps} steps", True)
        return None

    def _may_agree(self) -> bool:
        """Whether several processes ask each other after this step; one alone always may."""
        return self.team.count == 1 or self.position.step % AGREE == 0

    def _now_and_then(self) -> None:
        """Within a long epoch: look at the loss, save; by the clock of the first process."""
        if not self._may_agree():
            return
        now, worked, leads = time.monotonic(), self._working(), self.team.leads
        if self.team.any(leads and worked - self._looked > LOOK_SECONDS):
            loss = float(self._check_finite()) / self.position.batch
            self.progress.within_epoch(
                self.position.epoch + 1,
                self.position.batch,
                self.train.num_batches,
                loss,
                self._pace.rate(self.position.step * self.train.batch_size, worked),
            )
            self._looked = self._working()
        if self.team.any(leads and now - self._saved > self.options.run.checkpoint_interval):
            self.save()

    def _end_epoch(self) -> None:
        """Count the epoch, validate, and begin the second stage if it is time."""
        epoch = self.position.epoch + 1
        if epoch % self.options.run.eval_interval == 0 or self.plan.ends(self.position):
            self._validate()
        else:
            self._check_finite()
        self.position = replace(self.position, epoch=epoch, batch=0)
        zero = self.team.same(jnp.zeros((), self.state.loss_sum.dtype))
        self.state = replace(self.state, loss_sum=zero)
        if self.plan.second_stage_begins(self.position):
            self._begin_second_stage()

    # ------------------------------------------------------------------------------ a full device

    def _go_on_in(self, pieces: int) -> None:
        """Train on from the last checkpoint, which has what the failed step has lost."""
        del self.state, self.best
        self._divide(pieces)  # gives memory back before any is taken
        self._pace = Pace()
        self._load()
        self.position = replace(self.position, pieces=pieces)
        self.save()

    def _divide(self, pieces: int) -> None:
        """Take the batches of the training in so many pieces."""
        if pieces != self.train.pieces:
            self.train = self.train.in_pieces(pieces)
            self.step.become(self._training())
            self.validation.leave_device()

    # ------------------------------------------------------------------------------ validation

    def _candidate(self) -> Weights:
        """The weights that are validated and kept."""
        return self.state.ema if self.options.optimizer.ema else self.state.params

    def _validate(self) -> None:
        """Validate, record the row, keep the best weights, drive the plateau."""
        weights, batch = self._candidate(), self.position.batch
        epoch = self.position.begun
        loss_sum, done = float(self._check_finite()), self.position.step * self.train.batch_size
        speed = self._pace.rate(done, self._working())
        found = self.validation.sums(weights)
        rate, stage_weights = jax.device_get((self.state.rate, self.state.stage.weights))
        sums = training.add_up(found)
        loss = losses.total_on_host(sums, stage_weights)
        if not math.isfinite(loss):
            self._refuse_validation(found)
        self._pace.epoch(done, self._working())
        row = {
            "epoch": epoch,
            "step": self.position.step,
            "wall_s": round(self._seconds(), 3),
            "train_loss": loss_sum / batch if batch else math.nan,
            "valid_loss": loss,
            "lr": float(rate),
            **self.problem.errors(sums),
            "structures_per_s": round(speed, 1),
            "compilations": self.step.compilations + self.validation.program.compilations,
            "stage": self.position.stage,
        }
        best = loss < self.position.best_loss
        if best:
            self.best = training.copied(weights)
            self.position = replace(self.position, best_loss=loss, best_epoch=epoch)
        self.history.append(row)
        self._drive_plateau(epoch, loss)
        left = self._pace.left(
            self.plan.epochs - epoch, self.train.num_batches, self.train.batch_size
        )
        self.progress.validated(row, best=best, left=left)
        self._looked = self._working()

    def _refuse_validation(self, found: list[losses.Sums]) -> None:
        """Name the structures of the first batch whose loss is not finite."""
        bad = next(i for i, sums in enumerate(found) if not np.isfinite(sums.loss).all())
        self.save()
        raise InputError(
            f"the validation loss is not a finite number after step {self.position.step}, with the "
            f"batch of {_shorten(self.validation.names(bad))}; look at these structures, or lower "
            "--lr"
        )

    def _drive_plateau(self, epoch: int, loss: float) -> None:
        before, self.position = self.position.lr, self.plan.at_plateau(self.position, epoch, loss)
        if self.position.lr != before:
            rate = self.team.same(jnp.asarray(self.position.lr, self.dtype))
            self.state = replace(self.state, stage=replace(self.state.stage, lr=rate))

    # ------------------------------------------------------------------------------ stages

    def _stage(self) -> training.StageState:
        """The numbers of the stage that begins at the present position."""
        position, second = self.position, self.position.stage == 2
        weights = self.problem.term_weights(self.options, second=second)
        length = self.plan.stage_length(position)
        return training.stage_state(position.lr, position.step, length, weights, self.dtype)

    def _begin_second_stage(self) -> None:
        self.position = self.plan.second_stage(self.position)
        self.state = replace(self.state, stage=self.team.same(self._stage()))
        self.progress.tell(f"second stage from epoch {self.position.epoch + 1}")

    # ------------------------------------------------------------------------------ faults, times

    def _check_finite(self) -> np.ndarray:
        """The sum of the losses of this epoch; waits for the device.

        Raises:
            InputError: a step gave no finite loss or gradient; the state before it is saved.
        """
        loss_sum, bad = jax.device_get((self.state.loss_sum, self.state.bad_step))
        if bad < 0:
            return loss_sum
        behind = self.position.step - int(bad)  # steps since then changed nothing
        batch = self.position.batch - behind
        indices = self.train.order(self.position.epoch)[batch]
        self.position = replace(self.position, step=int(bad), batch=batch)
        none = self.team.same(jnp.full((), -1, jnp.int32))
        self.state = replace(self.state, bad_step=none)
        self.save()
        frames = [self.train.items[i].frame.name for i in indices]
        raise InputError(
            f"the loss or its gradient is not a finite number at step {int(bad)} (epoch "
            f"{self.position.epoch + 1}), with the batch of {_shorten(frames)}; look at these "
            "structures, lower --lr or --clip_grad; the last good state is saved"
        )

    def _seconds(self) -> float:
        return self._before.seconds + time.monotonic() - self.begun

    def _working(self) -> float:
        """Seconds of this process that were not spent compiling."""
        compiling = self.step.seconds + self.validation.program.seconds
        return time.monotonic() - self.begun - compiling


def _shorten(names: list[str], most: int = 8) -> str:
    rest = len(names) - most
    return "; ".join(names[:most]) + (f"; and {rest} more" if rest > 0 else "")


def _equal(one: Any, other: Any) -> bool:
    same: Callable[[Any, Any], bool] = lambda a, b: bool(np.array_equal(a, b))  # noqa: E731
    return jax.tree.all(jax.tree.map(same, jax.device_get(one), jax.device_get(other)))
