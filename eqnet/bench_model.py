"""Benchmark of models: energy and forces of one structure, and steps of training."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.monitoring
import numpy as np
from flax import nnx

from eqnet import operations
from eqnet.bench_machine import Machine, cores
from eqnet.bench_profile import Part, profile
from eqnet.data.batches import make_item, pack, pack_targets, shape_of
from eqnet.data.frame import Frame
from eqnet.device import (
    everywhere,
    find_device,
    give_memory_back,
    program,
    shared_cores,
    within,
)
from eqnet.ops.timing import Clock, Timing, take_turns
from eqnet.options import TrainOptions, resolve_choices
from eqnet.potential import Potential
from eqnet.training import Problem, Program, first_state, stage_state, train_step

if TYPE_CHECKING:
    from eqnet.bench_rival_models import Rival


@dataclass(frozen=True)
class Case:
    """A model to measure: how tables call it, how it is made, and what rivals must match."""

    product: str
    node_product: str
    method: str
    make: Callable[[], Potential]
    model: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    pair_repulsion: bool = False
    preset: str = ""

    @property
    def name(self) -> str:
        """What tells it from the others."""
        words = (self.model, self.preset, self.product, self.node_product, self.method)
        return " ".join(word for word in words if word)


@dataclass(frozen=True)
class Work:
    """What every case does.

    Attributes:
        frame: whose energy and forces are computed.
        batch: structures of a step of training; none to leave it out.
        dtype: 'float32' or 'float64'.
        seconds: of calls, for each case and kind of call.
        profile: whether to time the parts of energy and forces of the first case.
        cores: of a CPU that share the structure.
    """

    frame: Frame
    batch: Sequence[Frame]
    dtype: str
    seconds: float
    profile: bool = False
    cores: int = 1


class Inference:
    """Energy and forces of one structure, compiled; the clock runs from before the model exists."""

    def __init__(self, case: Case, work: Work):
        compilations = counted_compilations()
        before, start = len(compilations), Clock.now()
        self.potential = case.make()
        item = make_item(work.frame, self.potential.elements, self.potential.cutoff)
        self.atoms, self.edges = item.num_atoms, item.num_edges
        mesh = shared_cores(work.cores)
        place = everywhere(mesh, find_device(None))
        self.graph = jax.device_put(pack([item], dtype=np.dtype(work.dtype)), place)
        graphdef, weights = nnx.split(self.potential)
        self.weights = jax.device_put(weights, place)

        def predict(weights: Any, graph: Any) -> Any:
            return nnx.merge(graphdef, weights).predict(graph)

        compiling = Clock.now()
        with within(mesh):
            self.compiled: Any = program(predict).lower(self.weights, self.graph).compile()
        give_memory_back()
        self.compile_cpu = compiling.until_now().cpu
        jax.block_until_ready(self())
        self.first_force_cpu = start.until_now().cpu
        self.compilations = len(compilations) - before
        self.temporary_bytes = self.compiled.memory_analysis().temp_size_in_bytes
        self.predict = predict
        self.operations = operations.count(predict, self.weights, self.graph)

    def __call__(self) -> Any:
        """Energy and forces on the device."""
        return self.compiled(self.weights, self.graph)


class Training:
    """Steps of training on one batch; what has no label is fitted to zero."""

    def __init__(self, potential: Potential, work: Work):
        options = resolve_choices(TrainOptions())
        problem = Problem(potential, options.loss, options.optimizer, steps_per_epoch=1)
        items = [
            make_item(labelled(frame), potential.elements, potential.cutoff) for frame in work.batch
        ]
        shape, dtype = shape_of(items), np.dtype(work.dtype)
        self.graph = jax.device_put(pack(items, shape, dtype))
        targets = pack_targets(items, shape, potential.reference_energy, dtype)
        self.targets = jax.device_put(targets)
        stage = stage_state(options.optimizer.lr, 0, 1000, (5.0, 10.0, 0.0), dtype)
        self.state = first_state(problem, stage, seed=0)
        self.step = Program(train_step(problem), donate=True)
        compiling = Clock.now()
        self()
        self.compile_cpu = compiling.until_now().cpu

    def __call__(self) -> Any:
        """One step."""
        self.state = self.step(self.state, self.graph, self.targets)
        return self.state.loss_sum


def labelled(frame: Frame) -> Frame:
    """The frame with zeros for an energy and forces that it lacks."""
    forces = np.zeros((len(frame), 3)) if frame.forces is None else frame.forces
    return replace(frame, energy=frame.energy or 0.0, forces=forces, stress=None)


@cache
def counted_compilations() -> list[float]:
    """A list that grows with every program that XLA compiles in this process."""
    seconds: list[float] = []

    def listen(event: str, duration_secs: float, **kwargs: Any) -> None:
        if event.endswith("backend_compile_duration"):
            seconds.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return seconds


def run(
    cases: Sequence[Case],
    work: Work,
    machine: Machine,
    tell: Callable[[str], None],
    rivals: Sequence[Rival] = (),
    made: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Measure all cases, and rivals, in turn; one row of plain values for each.

    Args:
        cases: models to measure.
        work: what they do.
        machine: its limits.
        tell: takes a line of text for each case that cannot be made.
        rivals: models of other libraries, which wait for their turns.
        made: takes the name of each case that is compiled, for people who wait.
    """
    with jax.enable_x64(work.dtype == "float64"):
        inference: dict[str, Inference] = {}
        training: dict[str, Training] = {}
        kept: dict[str, Case] = {}
        for case in cases:
            name = case.name
            try:
                inference[name] = Inference(case, work)
                if work.batch:
                    training[name] = Training(inference[name].potential, work)
            except ValueError as reason:
                inference.pop(name, None)
                words = f"{case.product}, method {case.method} of {case.model} {case.preset}"
                tell(f"{words.strip()}: {reason}")
                continue
            kept[name] = case
            if made is not None:
                made(name)
        if not kept:
            return []
        theirs = {rival.name: rival for rival in rivals}
        _compare_edges(inference, theirs, tell)
        forces = take_turns(inference | {n: r.forces for n, r in theirs.items()}, work.seconds)
        training_of_rivals = {n: r.train for n, r in theirs.items()} if work.batch else {}
        steps = take_turns(training | training_of_rivals, work.seconds)
        parts = _parts(next(iter(inference.values())), work) if work.profile else []
    rows = [
        _row(case, work, inference[name], forces[name], machine)
        | _training_row(work, training.get(name), steps.get(name))
        for name, case in kept.items()
    ]
    first = next(iter(kept.values()))
    rows += [
        _rival_row(rival, first, work, forces[name]) | _training_row(work, rival, steps.get(name))
        for name, rival in theirs.items()
    ]
    if parts:
        rows[0]["profile"] = [part.as_dict(machine.matmul) for part in parts]
    return _with_ratios(rows)


def _parts(program: Inference, work: Work) -> list[Part]:
    """The parts of the program, and what the host does for a structure that has moved."""
    potential, dtype = program.potential, np.dtype(work.dtype)
    item = make_item(work.frame, potential.elements, potential.cutoff)
    host = take_turns(
        {
            "neighbors": lambda: make_item(work.frame, potential.elements, potential.cutoff),
            # the item keeps its layout, which atoms that have moved do not have
            "packing": lambda: jax.device_put(pack([replace(item, _rows=None)], dtype=dtype)),
        },
        work.seconds,
    )
    arguments = (program.weights, program.graph)
    return [
        *profile(program.predict, arguments, program.compiled),
        *(Part(f"{name} (host)", 1e3 * timing.wall, 0.0, 0, 0) for name, timing in host.items()),
    ]


def _compare_edges(
    ours: Mapping[str, Inference], theirs: Mapping[str, Rival], tell: Callable[[str], None]
) -> None:
    """Say so where a rival sees other neighbours than we do."""
    edges = next(iter(ours.values())).edges
    for name, rival in theirs.items():
        if rival.facts["edges"] != edges:
            tell(f"{name} has {rival.facts['edges']} edges, eqnet {edges}: times do not compare")


def _row(
    case: Case, work: Work, program: Inference, timing: Timing, machine: Machine
) -> dict[str, Any]:
    best = timing.best("cpu" if jax.default_backend() == "cpu" else "device")
    return {
        "library": "eqnet",
        "versions": ", ".join(f"{name} {machine.versions[name]}" for name in ("eqnet", "jax")),
        "model": case.model,
        "preset": case.preset,
        "product": case.product,
        "node_product": case.node_product,
        "method": _method(case, program.potential.model),
        **_work_row(work),
        "atoms": program.atoms,
        "edges": program.edges,
        "parameters": sum(int(x.size) for x in jax.tree.leaves(program.weights)),
        **_times(timing),
        "first_force_cpu_s": program.first_force_cpu,
        "compile_cpu_s": program.compile_cpu,
        "compilations": program.compilations,
        "temporary_mb": program.temporary_bytes / 1e6,
        "peak_rss_mb": peak_rss() / 1e6,  # of the process, of all cases up to its end
        "operations": program.operations,
        "matmul_peak_fraction": program.operations / best / machine.matmul,
    }


def _rival_row(rival: Rival, case: Case, work: Work, timing: Timing) -> dict[str, Any]:
    """The keys of `_row` that a library has of the case, too; its memory is that of its process."""
    return {
        "library": rival.name,
        "versions": rival.versions,
        "product": case.product,
        "node_product": case.node_product,
        "method": "",
        **_work_row(work),
        **rival.facts,
        **_times(timing),
        "peak_rss_mb": rival.peak_rss() / 1e6,
    }


def _work_row(work: Work) -> dict[str, Any]:
    return {"dtype": work.dtype, "threads": cores(), "structure": work.frame.name}


def _times(timing: Timing) -> dict[str, float]:
    return {
        "cpu_ms_min": 1e3 * timing.cpu,
        "cpu_ms_median": 1e3 * timing.cpu_median,
        "wall_ms_min": 1e3 * timing.wall,
        "wall_ms_median": 1e3 * timing.wall_median,
    }


def _with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each time by the clock to trust over that of the first row."""
    clock = "cpu" if jax.default_backend() == "cpu" else "wall"
    columns = {"ratio": f"{clock}_ms_min", "train_ratio": f"train_{clock}_ms_min"}
    return [
        row | {name: row[time] / rows[0][time] for name, time in columns.items() if time in row}
        for row in rows
    ]


def _method(case: Case, model: Any) -> str:
    """As the case calls it, with what each layer got of 'auto': 'auto (rows, so2; trees)'."""
    if case.method != "auto":
        return case.method
    uses = [", ".join(names if len(set(names)) > 1 else names[:1]) for names in model.methods]
    return f"auto ({'; '.join(uses)})"


def _training_row(
    work: Work, training: Training | Rival | None, timing: Timing | None
) -> dict[str, Any]:
    if training is None or timing is None:
        return {}
    size = len(work.batch)
    return {
        "train_batch_size": size,
        "train_cpu_ms_min": 1e3 * timing.cpu,
        "train_wall_ms_min": 1e3 * timing.wall,
        "train_structures_per_s": size / timing.wall,
        "train_structures_per_cpu_s": size / timing.cpu,
        "train_compile_cpu_s": training.compile_cpu,
    }


def peak_rss() -> int:
    """Most memory that this process has had, in bytes."""
    with suppress(OSError, StopIteration):  # Linux; the other number begins with the parent's
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
