"""Benchmark of products: every product x method, and rivals, at the same tasks in the same run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eqnet import bench_rivals_edges, bench_rivals_nodes, operations
from eqnet.bench_machine import Machine, cores
from eqnet.bench_tasks import Contestant, Task
from eqnet.irreps import IrrepsArray
from eqnet.ops import POWERS, PRODUCTS, kernels, measures
from eqnet.ops.clebsch_gordan import ClebschGordan
from eqnet.ops.convolution import Convolution
from eqnet.ops.product import Kernel, Radial
from eqnet.ops.timing import Clock, Timing, take_turns

ROTATION = measures.random_rotation(np.random.default_rng(7))
# A product whose paths are summed is compared with others that can only give sums.
SUMMED = "clebsch_gordan_summed"
NAMES = (*PRODUCTS, SUMMED)


@dataclass(frozen=True)
class Result:
    """One contestant at one task, forward ('value') or forward and backward ('gradient').

    Times are in milliseconds, the smallest of `calls` unless the name says median; peaks are per
    cent of what the machine does; traffic counts operands and results once.
    """

    use: str
    pattern: str
    paths: str
    l_max: int
    l_out: int
    channels: int
    rows: int
    dtype: str
    name: str
    library: str
    product: str
    method: str
    outputs: str
    couplings: int
    weights: int
    what: str
    cpu_ms: float
    cpu_ms_median: float
    wall_ms: float
    wall_ms_median: float
    calls: int
    compile_cpu_s: float
    compile_wall_s: float
    temporary_mb: float
    traffic_mb: float
    operations: int
    operations_declared: int
    matmul_peak_percent: float
    bandwidth_percent: float
    rotation_error: float
    threads: int


@dataclass(frozen=True)
class Limits:
    """How long to measure.

    Attributes:
        seconds: of calls, for each contestant and pass.
        most: seconds of compilation or of one call beyond which a contestant does no larger task.
    """

    seconds: float = 1.0
    most: float = 30.0


def run(
    tasks: Sequence[Task],
    products: Sequence[str],
    methods: Sequence[str],
    rivals: Sequence[str],
    machine: Machine,
    limits: Limits,
    tell: Callable[[str], None],
) -> list[Result]:
    """Measure all contestants at all tasks, smallest first.

    Args:
        tasks: ascending.
        products: names from `NAMES`.
        methods: names of methods to keep; none for all.
        rivals: names of libraries.
        machine: its limits.
        limits: how long to measure.
        tell: takes a line of text for each task, and for contestants that cannot go on.
    """
    results: list[Result] = []
    out: set[str] = set()
    for task in tasks:
        tell(f"l_max {task.l_max} of {', '.join(str(task.l_max) for task in tasks)}: compiling")
        with jax.enable_x64(task.dtype == "float64"):
            programs = []
            for make in _makers(task, products, methods, rivals):
                try:
                    contestant = make()
                    if contestant.name not in out:
                        programs.append(Program(task, contestant))
                except ValueError as reason:
                    tell(f"l_max {task.l_max}: {reason}")
            results += _race(task, programs, machine, limits)
        for program in programs:
            if program.slow(limits.most):
                out.add(program.contestant.name)
                tell(f"{program.contestant.name} does no task beyond l_max {task.l_max}: too slow")
    return results


def _makers(
    task: Task, products: Sequence[str], methods: Sequence[str], rivals: Sequence[str]
) -> Iterator[Callable[[], Contestant]]:
    for name in products:
        for method in task_methods(task.use, name):
            if not methods or method in methods:
                yield lambda name=name, method=method: ours(task, name, method)
    contestants = {"edge": bench_rivals_edges.contestants, "node": bench_rivals_nodes.contestants}
    for library in rivals if task.use in contestants else ():
        for make in contestants[task.use](library):
            yield lambda make=make: make(task)


def task_methods(use: str, name: str) -> tuple[str, ...]:
    """Methods of a product for a use; none if it has no such use."""
    if use == "power":
        return POWERS[name].methods if name in POWERS else ()
    if use == "edge":
        return tuple(task_kernels(name))
    if name == "cp":
        return ("factors", "dense")
    return (*getattr(PRODUCTS.get(name), "cores", {}), "dense")


def task_kernels(name: str) -> dict[str, Kernel]:
    """Methods of a product on edges."""
    return kernels("clebsch_gordan" if name == SUMMED else name)


def ours(task: Task, name: str, method: str) -> Contestant:
    """A product of eqnet, computed by one of its methods.

    Raises:
        ValueError: the product does not connect these irreps.
    """
    if task.use == "power":
        return _our_power(task, name, method)
    left, right, target = task.irreps_left, task.irreps_right, task.irreps_target
    if name in ("clebsch_gordan", SUMMED):
        mode = "uvu" if task.use == "edge" else "uuu"
        product: Any = ClebschGordan(left, right, target, mode, summed=name == SUMMED)
    else:
        make: Any = PRODUCTS[name]
        product = make(left, right, target)
    shared = task.weights(product.num_shared) if product.num_shared else None
    declaration = product.declaration
    if task.use == "edge":
        convolve, graph = Convolution(task_kernels(name)[method]), task.graph
        matrix = task.weights(task.hidden().shape[-1], product.num_weights)
        weights = Radial(task.hidden(), (matrix / matrix.shape[0] ** 0.5,), shared)

        def function(operands: Any, weights: Any) -> IrrepsArray:
            x, y = operands
            return convolve(product, x, y, weights, graph)
    else:
        weights = (task.weights(product.num_weights), shared)

        def function(operands: Any, weights: Any) -> IrrepsArray:
            if method == "dense":
                return product(*operands, *weights)
            return product.multiply(*operands, weights[0], method)

    return Contestant(
        library="eqnet",
        product=name,
        method=method,
        outputs="paths" if name == "clebsch_gordan" else "summed",
        weights=weights,
        num_weights=product.num_weights + product.num_shared,
        couplings=len(declaration.couplings),
        declared=declaration.operations * task.rows * task.channels,
        prepare=lambda x, y: (x, y),
        function=function,
        unpack=lambda out: out,
    )


def _our_power(task: Task, name: str, method: str) -> Contestant:
    make: Any = POWERS[name]
    power = make(task.irreps_left, task.irreps_target, task.correlation)
    size = power.num_weights
    return Contestant(
        library="eqnet",
        product=name,
        method=method,
        outputs="summed",
        weights=task.weights(task.rows, size, task.channels),
        num_weights=size * task.channels,
        couplings=size,
        declared=0,
        prepare=lambda x, y: x,
        function=lambda x, weights: power(x, weights, method=method),
        unpack=lambda out: out,
    )


class Program:
    """A contestant's task compiled twice: the value, and the gradient of its squares."""

    def __init__(self, task: Task, contestant: Contestant):
        self.task, self.contestant = task, contestant
        self.operands = contestant.prepare(*task.inputs())
        self.compiled: dict[str, Any] = {}
        self.compilation: dict[str, Clock] = {}
        self.operations: dict[str, int] = {}
        self.timing: dict[str, Timing] = {}
        function = contestant.function

        def energy(operands: Any, weights: Any) -> jax.Array:
            leaves = jax.tree.leaves(function(operands, weights))
            return sum((0.5 * jnp.sum(leaf**2) for leaf in leaves), jnp.zeros((), task.dtype))

        for what, f in (("value", function), ("gradient", jax.grad(energy, (0, 1)))):
            start = Clock.now()
            with jax.default_matmul_precision("highest"):  # for all the same: no TF32 on GPUs
                lowered = jax.jit(f).lower(self.operands, contestant.weights)
            self.compiled[what] = lowered.compile()
            self.compilation[what] = start.until_now()
            self.operations[what] = operations.count(f, self.operands, contestant.weights)

    def call(self, what: str) -> Callable[[], Any]:
        """The compiled function with its arguments."""
        return lambda: self.compiled[what](self.operands, self.contestant.weights)

    def slow(self, seconds: float) -> bool:
        """Whether a compilation or a call took longer than that."""
        compilation = max((clock.wall for clock in self.compilation.values()), default=0.0)
        return max(compilation, *(t.wall for t in self.timing.values())) > seconds

    def rotation_error(self) -> float:
        """Error of the output when all inputs are turned, relative to its largest number."""
        value, contestant = self.compiled["value"], self.contestant
        out = contestant.unpack(self.call("value")())
        turned = contestant.prepare(*self.task.inputs(ROTATION))
        found = contestant.unpack(value(turned, contestant.weights))
        with jax.enable_x64(True):
            double = IrrepsArray(out.irreps, np.asarray(out.array, np.float64))
            expected = np.asarray(measures.turned(double, ROTATION).array)
        error = np.abs(np.asarray(found.array) - expected).max()
        return float(error / np.abs(expected).max())


def _race(
    task: Task, programs: Sequence[Program], machine: Machine, limits: Limits
) -> Iterator[Result]:
    """Time the contestants of a task in turn, the values first, then the gradients."""
    by_name = {program.contestant.name: program for program in programs}
    errors = {name: program.rotation_error() for name, program in by_name.items()}
    for what in ("value", "gradient"):
        calls = {name: program.call(what) for name, program in by_name.items()}
        for name, timing in take_turns(calls, limits.seconds).items():
            by_name[name].timing[what] = timing
            yield _result(task, by_name[name], what, errors[name], machine)


def _result(task: Task, program: Program, what: str, error: float, machine: Machine) -> Result:
    contestant, timing, memory = program.contestant, program.timing[what], program.compiled[what]
    memory = memory.memory_analysis()
    traffic = memory.argument_size_in_bytes + memory.output_size_in_bytes
    best = timing.best("cpu" if jax.default_backend() == "cpu" else "device")
    compilation, operations_ = program.compilation[what], program.operations[what]
    return Result(
        use=task.use,
        pattern=task.pattern,
        paths=task.paths,
        l_max=task.l_max,
        l_out=task.l_out,
        channels=task.channels,
        rows=task.rows,
        dtype=task.dtype,
        name=contestant.name,
        library=contestant.library,
        product=contestant.product,
        method=contestant.method,
        outputs=contestant.outputs,
        couplings=contestant.couplings,
        weights=contestant.num_weights,
        what=what,
        cpu_ms=1e3 * timing.cpu,
        cpu_ms_median=1e3 * timing.cpu_median,
        wall_ms=1e3 * timing.wall,
        wall_ms_median=1e3 * timing.wall_median,
        calls=timing.calls,
        compile_cpu_s=compilation.cpu,
        compile_wall_s=compilation.wall,
        temporary_mb=memory.temp_size_in_bytes / 1e6,
        traffic_mb=traffic / 1e6,
        operations=operations_,
        operations_declared=contestant.declared if what == "value" else 0,
        matmul_peak_percent=100 * operations_ / best / machine.matmul if best else math.nan,
        bandwidth_percent=100 * traffic / best / machine.bandwidth if best else math.nan,
        rotation_error=error,
        threads=cores(),
    )
