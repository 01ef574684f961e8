"""One step of training and one of validation: pure functions of a state, compiled ahead of time.

What a step changes is one pytree on the device, donated to the step. The host sends batches and
fetches numbers once per epoch; everything a step decides (learning rate, whether the loss is
finite) is decided on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from eqnet import losses
from eqnet.device import give_memory_back, program
from eqnet.graph import AtomGraph
from eqnet.ops.timing import Clock
from eqnet.optimizer import course, ema_decay, optimizer
from eqnet.options import LossOptions, OptimizerOptions, TrainOptions
from eqnet.pieces import piece_by_piece
from eqnet.plan import Position
from eqnet.potential import Potential

if TYPE_CHECKING:
    from eqnet.data.batches import Targets

Module = TypeVar("Module", bound=nnx.Module)
Weights = tuple[jax.Array, ...]  # of a potential, in the order of jax.tree.leaves


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StageState:
    """What the host sets at the start of a stage, and at a plateau; a step only reads it."""

    lr: jax.Array  # [] learning rate before the course within the stage
    start: jax.Array  # [] int32, first step of the stage
    length: jax.Array  # [] int32, steps of the stage
    weights: jax.Array  # of the terms in the loss, [3] of energy, forces and stress


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes."""

    params: Weights
    ema: Weights  # moving average of params; empty without one
    opt_state: Any
    step: jax.Array  # [] int32, steps done
    stage: StageState
    loss_sum: jax.Array  # [] sum of the losses of the steps of this epoch
    rate: jax.Array  # [] learning rate of the last step
    bad_step: jax.Array  # [] int32, first step without a finite loss and gradient, or -1
    key: jax.Array  # [2] uint32, for models that draw random numbers: fold_in(key, step)


@dataclass(frozen=True)
class Outcome:
    """The end of a fit, or of a part of it.

    Attributes:
        best: weights with the lowest validation loss of the last stage.
        last: weights of the last step (their average, with ema).
        position: where it ended.
        history: rows of metrics.jsonl.
        reason: why it ended, in words.
        complete: whether nothing is left to do; not so after a wall-clock limit or a signal.
        signal: number of the signal that ended it, or None.
    """

    best: Weights
    last: Weights
    position: Position
    history: list[dict[str, Any]]
    reason: str
    complete: bool
    signal: int | None = None


class Task(Protocol):
    """What a step and the loop know of what is learned: `Problem`, or one for tensors."""

    @property
    def optimizer(self) -> OptimizerOptions:
        """Resolved options of the optimiser."""
        ...

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        ...

    def weights(self) -> Weights:
        """The first weights."""
        ...

    def term_weights(self, options: TrainOptions, *, second: bool) -> tuple[float, ...]:
        """Weight of each term of the loss, in the first or the second stage."""
        ...

    def labels(self, graph: AtomGraph, targets: Targets) -> jax.Array:
        """How many labels of each term a batch has."""
        ...

    def sums(self) -> Callable[[Weights, AtomGraph, Targets], losses.Sums]:
        """The pure function from weights and a batch to the sums of its errors, by term."""
        ...

    def errors(self, sums: losses.Sums) -> dict[str, float]:
        """Errors of a validation by the names of the history."""
        ...


def weights_of(module: nnx.Module) -> Weights:
    """The weights of a module."""
    return tuple(jax.tree.leaves(nnx.state(module)))


def with_weights(module: Module, weights: Weights) -> Module:
    """A copy of a module with other weights."""
    graphdef, params = nnx.split(module)
    return nnx.merge(graphdef, jax.tree.unflatten(jax.tree.structure(params), weights))


@dataclass(frozen=True)
class Problem:
    """A potential and what to minimise: all that a step is made from.

    Attributes:
        potential: with its first weights, in the precision of the training.
        loss: resolved options of the loss; its weights are in the state.
        optimizer: resolved options of the optimiser.
        steps_per_epoch: batches of an epoch.
        stress: whether the stress is computed, for any frame that has one.
    """

    potential: Potential
    loss: LossOptions
    optimizer: OptimizerOptions
    steps_per_epoch: int
    stress: bool = False

    def weights(self) -> Weights:
        """The weights of the potential."""
        return weights_of(self.potential)

    def with_weights(self, weights: Weights) -> Potential:
        """A copy of the potential with other weights."""
        return with_weights(self.potential, weights)

    def term_weights(self, options: TrainOptions, *, second: bool) -> tuple[float, ...]:
        """Weights of energy, forces and stress."""
        weights = options.loss.energy_weight, options.loss.forces_weight, options.loss.stress_weight
        if second:
            two = options.stage_two
            weights = (
                two.stage_two_energy_weight,
                two.stage_two_forces_weight,
                two.stage_two_stress_weight,
            )
        return tuple(weight or 0.0 for weight in weights)

    def errors(self, sums: losses.Sums) -> dict[str, float]:
        """MAE and RMSE in meV, meV/A and meV/A^3."""
        return losses.in_milli(sums)

    def labels(self, graph: AtomGraph, targets: Targets) -> jax.Array:
        """How many labels of energy, forces and stress a batch has."""
        return losses.labels(losses.label_weights(graph, targets, stress=self.stress))

    def sums(self) -> Callable[[Weights, AtomGraph, Targets], losses.Sums]:
        """The pure function from weights and a batch to the sums of its errors."""
        graphdef, params = nnx.split(self.potential)
        structure = jax.tree.structure(params)
        measure = losses.measure(self.loss.loss, self.loss.huber_delta)
        stress = self.stress

        def sums(weights: Weights, graph: AtomGraph, targets: Targets) -> losses.Sums:
            potential = nnx.merge(graphdef, jax.tree.unflatten(structure, weights))
            prediction = potential.predict(graph, stress=stress)
            return losses.sums(prediction, graph, targets, measure)

        return sums


def first_state(problem: Task, stage: StageState, seed: int) -> TrainState:
    """The state before the first step."""

    def make(params: Weights, stage: StageState) -> TrainState:
        zero = jnp.zeros((), params[0].dtype)
        return TrainState(
            params=params,
            ema=params if problem.optimizer.ema else (),
            opt_state=optimizer(problem.optimizer).init(params),
            step=jnp.zeros((), jnp.int32),
            stage=stage,
            loss_sum=zero,
            rate=zero,
            bad_step=jnp.full((), -1, jnp.int32),
            key=jax.random.key_data(jax.random.key(seed)),
        )

    return copied(jax.jit(make)(problem.weights(), stage))


@jax.jit
def copied(tree: Any) -> Any:
    """The same arrays in buffers of their own, which may be donated."""
    return jax.tree.map(jnp.copy, tree)


def stage_state(
    lr: float, start: int, length: int, weights: tuple[float, ...], dtype: Any
) -> StageState:
    """The numbers of a stage as arrays."""
    return StageState(
        lr=jnp.asarray(lr, dtype),
        start=jnp.asarray(start, jnp.int32),
        length=jnp.asarray(length, jnp.int32),
        weights=jnp.asarray(weights, dtype),
    )


def train_step(
    problem: Task, add: Callable[[Any], Any] = lambda tree: tree, pieces: int = 1
) -> Callable[[TrainState, AtomGraph, Targets], TrainState]:
    """The pure function of one step.

    `add` sums over the parts of a batch that other processes compute, see `eqnet.team`; the batch
    of this one may come in `pieces`, see `piece_by_piece`.

    A loss or gradient that is not finite leaves weights, average and optimiser as they were, then
    and in every later step, and its step is recorded: the host finds the last good state.
    """
    sums, direction, options = problem.sums(), optimizer(problem.optimizer), problem.optimizer

    def step(state: TrainState, graph: AtomGraph, targets: Targets) -> TrainState:
        stage = state.stage
        labels = add(piece_by_piece(problem.labels, pieces)(graph, targets))

        def objective(params: Weights, graph: AtomGraph, targets: Targets) -> jax.Array:
            found = sums(params, graph, targets)
            return losses.total(found._replace(labels=labels), stage.weights)

        value_and_gradient = partial(jax.value_and_grad(objective), state.params)
        loss, gradient = add(piece_by_piece(value_and_gradient, pieces)(graph, targets))
        updates, opt_state = direction.update(gradient, state.opt_state, state.params)
        done = state.step - stage.start
        rate = course(options, problem.steps_per_epoch, done, stage.length, stage.start == 0)
        rate = stage.lr * rate.astype(stage.lr.dtype)
        params = jax.tree.map(lambda w, u: w + rate * u, state.params, updates)
        ema = state.ema
        if options.ema:
            keep = ema_decay(state.step.astype(rate.dtype), options.ema_decay or 0.0)
            ema = jax.tree.map(lambda a, w: keep * a + (1 - keep) * w, state.ema, params)
        finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(gradient))
        bad = jnp.where((state.bad_step < 0) & ~finite, state.step, state.bad_step)

        def choose(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda n, o: jnp.where(bad < 0, n, o), new, old)

        return TrainState(
            params=choose(params, state.params),
            ema=choose(ema, state.ema),
            opt_state=choose(opt_state, state.opt_state),
            step=choose(state.step + 1, state.step),
            stage=stage,
            loss_sum=choose(state.loss_sum + loss, state.loss_sum),
            rate=rate,
            bad_step=bad,
            key=state.key,
        )

    return step


def validation_step(
    problem: Task, add: Callable[[Any], Any] = lambda tree: tree, pieces: int = 1
) -> Callable[[Weights, AtomGraph, Targets], losses.Sums]:
    """The pure function of the sums of a validation batch, its options those of `train_step`."""
    sums = problem.sums()

    def step(weights: Weights, graph: AtomGraph, targets: Targets) -> losses.Sums:
        return add(piece_by_piece(partial(sums, weights), pieces)(graph, targets))

    return step


def told_of(what: str, tell: Callable[[str], None]) -> Callable[[AtomGraph], None]:
    """Tells that a program for batches, or pieces, of this shape is being compiled."""
    return lambda graph: tell(
        f"compiling a step of {what} for {graph.cell.shape[-3]} structures, "
        f"{graph.positions.shape[-2]} atoms"
    )


class Program:
    """A function of (something, graph, targets), compiled once for each shape of the batch.

    Attributes:
        compilations: how many there have been.
        seconds: spent in them.
        cpu_seconds: of all threads meanwhile.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        donate: bool = False,
        announce: Callable[[AtomGraph], None] = lambda graph: None,
        place: Callable[[Any], Any] = lambda batch: batch,
    ):
        self._donate, self._announce, self._place = donate, announce, place
        self.become(function)
        self.compilations = 0
        self.seconds = self.cpu_seconds = 0.0

    def become(self, function: Callable[..., Any]) -> None:
        """Take another function; what was compiled is given up, and still counted."""
        self._jitted = program(function, donate_argnums=(0,) if self._donate else ())
        self._compiled: dict[tuple[int, ...], Any] = {}

    def __call__(self, first: Any, graph: AtomGraph, targets: Targets) -> Any:
        """The value of the function; the first argument is lost if it is donated."""
        key = (*graph.positions.shape, *graph.cell.shape, *graph.neighbors.shape, *graph.rows.shape)
        graph_here, (graph, targets) = graph, self._place((graph, targets))
        compiled = self._compiled.get(key)
        if compiled is None:
            self._announce(graph_here)
            start = Clock.now()
            compiled = self._jitted.lower(first, graph, targets).compile()
            give_memory_back()
            self._compiled[key] = compiled
            self.compilations += 1
            spent = start.until_now()
            self.seconds += spent.wall
            self.cpu_seconds += spent.cpu
        return compiled(first, graph, targets)


def add_up(found: list[losses.Sums]) -> losses.Sums:
    """The sums of many batches, in float64 on the host; waits for the device."""
    fetched = jax.device_get(found)
    return losses.Sums(
        *(np.sum(np.asarray(x, np.float64), axis=0) for x in zip(*fetched, strict=True))
    )
