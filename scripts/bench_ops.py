"""`eqnet bench ops`: what tensor products cost on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from eqnet.bench_machine import use_cores
from eqnet.bench_report import check_outputs
from eqnet.errors import InputError
from eqnet.model_options import default
from eqnet.scripts.bench_common import SUFFIXES, check_positive, chosen, wide_console, write


@dataclass(frozen=True)
class OpsOptions:
    """Time tensor products: forward, and forward with gradients, every contestant in turn.

    Times are the smallest CPU times of the process on a CPU, and wall times on other devices.
    """

    use: Literal["edge", "node", "power"] = "edge"
    """edge: convolution with harmonics, summed over neighbours; node: product of two features;
    power: powers of one feature."""
    pattern: Literal["mimo", "simo"] = "mimo"
    """mimo: degrees 0..L in; simo: degree L alone in. Many degrees out."""
    l_max: tuple[int, ...] = (1, 2)
    """Highest degrees L of the inputs, one task for each."""
    l_out: Annotated[int | None, default("L", "INT")] = None
    """Highest degree of the output, the same for all L."""
    paths: Literal["even", "all"] = "even"
    """even: outputs of parity (-1)^l only; all: both parities, as chirality needs."""
    channels: int = 64
    """Channels of each irrep."""
    batch: int = 1000
    """Edges, or rows of features."""
    correlation: Annotated[int | None, default("3 with --use power", "INT")] = None
    """Highest power."""
    products: Annotated[str | None, default("all", "NAME,NAME")] = None
    """Products of eqnet."""
    methods: Annotated[str | None, default("all but dense", "NAME,NAME")] = None
    """Methods of these products, or all; dense is the plain form that the others are tested
    against."""
    rivals: Annotated[str | None, default("all that are installed", "NAME,NAME")] = None
    """Other libraries: e3nn-jax, cuequivariance-jax, e3x, mlip; or none."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision."""
    seconds: float = 0.5
    """Time for each contestant, task and pass."""
    max_seconds: float = 30.0
    """A contestant whose compilation or call takes longer does no larger task."""
    threads: Annotated[int | None, default("all cores", "INT")] = None
    """Cores to run on; 1 gives times that can be compared on a machine with other work."""
    csv: Annotated[str | None, default("none", "FILE")] = None
    """Write everything that was measured as csv."""
    json: Annotated[str | None, default("none", "FILE")] = None
    """The same, and the machine, as JSON."""
    plot: Annotated[str | None, default("none", "FILE")] = None
    """Plots of time against degree and against expressible paths (.png, .svg, .pdf)."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    from eqnet.scripts.command_line import parse

    options = parse(OpsOptions, argv, command="bench ops")
    _check_ops(options)
    if options.threads is not None:
        use_cores(options.threads)
    from eqnet import bench_ops as bench
    from eqnet import bench_report as report
    from eqnet.bench_machine import measure_machine
    from eqnet.bench_rivals import installed

    products = chosen(options.products, _products_of(options.use), "products")
    known = {m: None for name in products for m in bench.task_methods(options.use, name)}
    methods = chosen(options.methods, list(known), "methods")
    if options.methods is None and len(known) > 1:
        methods.remove("dense")
    others = [] if options.rivals == "none" else _rivals(options, installed())
    console = wide_console()

    def tell(line: str) -> None:
        console.print(f"note: {line}", markup=False, highlight=False)

    machine = measure_machine(options.dtype)
    console.print(report.machine_line(machine), markup=False, highlight=False)
    limits = bench.Limits(options.seconds, options.max_seconds)
    results = bench.run(_tasks(options), products, methods, others, machine, limits, tell)
    if not results:
        raise InputError("nothing could be measured: the notes say why")
    for what in report.WORDS:
        console.print()
        console.print(report.time_table(results, what))
    console.print()
    console.print(report.detail_table(results))
    rows = [vars(result) for result in results]
    write(options, machine, rows)
    if options.plot is not None:
        report.save_figure(results, options.plot)
    return 0


def _check_ops(options: OpsOptions) -> None:
    check_positive(options, "channels", "batch", "seconds", "max_seconds")
    if not options.l_max or min(options.l_max) < 0 or max(options.l_max) > 11:
        raise InputError(f"--l_max must be degrees from 0 to 11, not {options.l_max}")
    if options.l_out is not None and not 0 <= options.l_out <= 22:
        raise InputError(f"--l_out must be a degree from 0 to 22, not {options.l_out}")
    if options.use == "edge" and options.batch < 6:
        raise InputError(f"--batch must be at least 6 edges, not {options.batch}")
    if options.correlation is not None and options.use != "power":
        raise InputError("--correlation has no effect without --use power: leave it out")
    if options.correlation is not None and not 1 <= options.correlation <= 5:
        raise InputError(f"--correlation must be from 1 to 5, not {options.correlation}")
    if options.use == "power" and options.rivals not in (None, "none"):
        raise InputError("--rivals has no effect with --use power: no library has that alone")
    check_outputs({name: getattr(options, name) for name in SUFFIXES}, SUFFIXES)


def _products_of(use: str) -> list[str]:
    from eqnet.bench_ops import NAMES, task_methods

    return [name for name in NAMES if task_methods(use, name)]


def _rivals(options: OpsOptions, there: Sequence[str]) -> list[str]:
    from eqnet.bench_rivals import LIBRARIES

    if options.rivals is None:
        return list(there)
    names = chosen(options.rivals, list(LIBRARIES), "rivals")
    for name in names:
        if name not in there:
            raise InputError(f"--rivals {name} is not installed: pip install {name}")
    return names


def _tasks(options: OpsOptions) -> list[Any]:
    from eqnet.bench_tasks import Task

    return [
        Task(
            use=options.use,
            pattern=options.pattern,
            l_max=l_max,
            l_out=l_max if options.l_out is None else options.l_out,
            channels=options.channels,
            batch=options.batch,
            dtype=options.dtype,
            paths=options.paths,
            correlation=options.correlation or 3,
        )
        for l_max in sorted(set(options.l_max))
    ]
