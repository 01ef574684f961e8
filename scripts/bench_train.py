"""`eqnet bench train`: what products are worth when all train for the same time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from eqnet.bench_machine import use_cores
from eqnet.bench_report import check_outputs
from eqnet.errors import InputError
from eqnet.model_options import default
from eqnet.options import TrainOptions, check, resolve_choices
from eqnet.scripts.bench_common import SUFFIXES, check_positive, wide_console, write

if TYPE_CHECKING:
    from rich.console import Console

    from eqnet.bench_train import Variant, Work


@dataclass(frozen=True)
class TrainBenchOptions:
    """Train with several tensor products for the same time, and compare the test errors.

    A short probe measures what an epoch costs, then every run gets as many epochs as fit into the
    time, with a whole course of the learning rate. All runs see the same structures; their seeds
    (--seed and the next ones) draw the first weights and the order of the structures. The same
    command again goes on where an interrupted one stopped.
    """

    options: TrainOptions = field(default_factory=TrainOptions)
    config: Annotated[str | None, default("none", "FILE")] = None
    """YAML file of options of `eqnet train`; what is given here wins over it."""
    products: Annotated[
        str | None, default("all products, the powers that belong to each", "NAME,NAME")
    ] = None
    """What to compare, each PRODUCT[+POWERS][:SEEDS], as "clebsch_gordan:3,gaunt+matrix,cp": the
    --product, the --node_product (as `eqnet train` chooses it if left out), the number of seeds."""
    seeds: int = 1
    """Seeds of the products that name no number."""
    minutes: float = 10.0
    """Time of a training without compilation: of all threads on a CPU, else of the wall clock."""
    out: str = "bench_train"
    """Folder of the runs."""
    threads: Annotated[int | None, default("all cores, shared by the jobs", "INT")] = None
    """Cores of a run; 1 gives times that can be compared on a machine with other work."""
    jobs: int = 1
    """Runs at a time, each on cores of its own."""
    csv: Annotated[str | None, default("none", "FILE")] = None
    """Write everything that was measured as csv."""
    json: Annotated[str | None, default("none", "FILE")] = None
    """The same, and the machine, as JSON."""


SECONDS = 2.0  # of calls of a model, for each of its two speeds

# Options of `eqnet train` that are decided here, and by what.
DECIDED = {
    "product": "--products",
    "node_product": "--products",
    "name": "--out",
    "work_dir": "--out",
    "max_num_epochs": "--minutes",
    "max_num_steps": "--minutes",
    "max_minutes": "--minutes",
    "start_stage_two": "--minutes",
    "patience": "--minutes",
}


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    console = wide_console()
    command = _read(list(argv), console)
    _check(command)
    from eqnet.bench_jobs import share_cores

    places = share_cores(command.jobs, command.threads)
    if command.threads is not None:
        use_cores(command.threads)
    from eqnet import bench_speed, bench_train
    from eqnet.bench_machine import measure_machine
    from eqnet.bench_report import machine_line

    variants = bench_train.read_variants(command.products, command.seeds)
    if command.options.model.rank is not None and all(v.product != "cp" for v in variants):
        raise InputError("--rank has no effect without cp among --products: leave it out")
    work, frame = _prepare(command, places, console)
    try:
        found = bench_train.train_all(variants, work)
    except bench_train.Stopped as stop:
        console.print("stopped; the same command goes on from there")
        return 128 + stop.signal
    run = work.options.run
    speeds = bench_speed.measure(
        {variant.name: _model(work, variant, plan) for variant, plan in found.items()},
        frame,
        run,
        work.options.model.method,
        SECONDS,
    )
    machine = measure_machine(run.default_dtype)
    rows = bench_train.rows(found, speeds, work)
    console.print(machine_line(machine), markup=False, highlight=False)
    _show(console, rows, work, frame)
    write(command, machine, rows)
    return 0


def _read(argv: list[str], console: Console) -> TrainBenchOptions:
    """Options of a command line: its flags, then those of --config, then the defaults."""
    from eqnet.scripts.command_line import from_file, parse
    from eqnet.scripts.train import file_first, value_of, with_demo

    argv = file_first(argv)
    file, options, plain = value_of("config", argv), TrainOptions(), TrainOptions().flat()
    if file is not None:
        values = from_file(TrainOptions, Path(file))
        idle = [name for name in DECIDED if values.get(name, plain[name]) != plain[name]]
        if idle:
            words = ", ".join(f"{name} ({DECIDED[name]})" for name in idle)
            console.print(f"note: decided here, not by {file}: {words}", highlight=False)
        options = options.replace({k: v for k, v in values.items() if k not in DECIDED})
    command = parse(
        TrainBenchOptions,
        argv,
        command="bench train",
        default=TrainBenchOptions(options=options, config=file),
    )
    options, values = command.options, command.options.flat()
    for name, instead in DECIDED.items():
        if values[name] != plain[name]:
            raise InputError(f"--{name} has no effect here, {instead} decides it: leave it out")
    if options.data.train_file is None:
        from eqnet.data.demo import demo_path

        values = with_demo(options).flat() | {name: plain[name] for name in DECIDED}
        options = options.replace({**values, "train_file": str(demo_path())})
    return TrainBenchOptions(**{**vars(command), "options": options})


def _check(command: TrainBenchOptions) -> None:
    """Refuse what can be seen without the data."""
    from eqnet.scripts.train import find_files

    check_positive(command, "minutes", "seeds", "jobs")
    check(command.options)
    find_files(command.options.data)
    data = command.options.data
    if not (data.test_file or data.num_test or data.test_fraction or data.split_file):
        raise InputError("there are no test structures: --test_file, --num_test or --test_fraction")
    if Path(command.out).exists() and not Path(command.out).is_dir():
        raise InputError(f"--out {command.out} is no folder: choose another name")
    check_outputs({name: getattr(command, name) for name in ("csv", "json")}, SUFFIXES)


def _prepare(
    command: TrainBenchOptions, places: Sequence[Any], console: Console
) -> tuple[Work, Any]:
    """Read the data once, for its mistakes and its split; the frame that tells the speed."""
    from eqnet.bench_train import Work, fix_split
    from eqnet.experiment import prepare

    options, file = command.options, Path(command.options.data.train_file or "")
    experiment = prepare(resolve_choices(options.replace({"rank": None})), file)
    if not experiment.frames.get("test"):
        raise InputError("there are no test structures: --test_file, --num_test or --test_fraction")
    work = Work(
        options=fix_split(experiment, options, Path(command.out)),
        files=experiment.provenance()["files"],
        minutes=command.minutes,
        out=Path(command.out),
        places=places,
        tell=lambda text: console.print(text, markup=False, highlight=False),
    )
    return work, experiment.frames["test"][0]


def _model(work: Work, variant: Variant, plan: dict[str, Any]) -> Path:
    """The model of the first finished run."""
    from eqnet.run_folder import RunFolder

    return RunFolder(work.out, f"{variant.name}-{min(plan['runs'])}").best_model


def _show(console: Console, rows: list[dict[str, Any]], work: Work, frame: Any) -> None:
    from rich.table import Table

    clock = rows[0]["clock"]
    table = Table("product", "powers", box=None)
    for title in (
        *("seeds", "epochs", f"{clock}\nminutes", "s per\nepoch", "force\nms", "MD step\nms"),
        *("weights", "training\nMB", "energy MAE\nmeV/atom", "forces MAE\nmeV/A"),
    ):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["product"],
            row["node_product"],
            str(row["seeds"]),
            f"{row['epochs']:g}",
            f"{row['train_minutes']:.2f}",
            f"{row['s_per_epoch']:.3g}",
            f"{row['force_ms']:.2f}",
            "unstable" if row["md_step_ms"] is None else f"{row['md_step_ms']:.2f}",
            f"{row['parameters']:,}",
            f"{row['peak_rss_mb']:.0f}",
            _error(row, "energy_per_atom_mae"),
            _error(row, "forces_mae"),
        )
    console.print(
        f"{work.minutes:g} minutes of training each ({clock} time, without compilation); force and "
        f"MD step of {frame.name}, {len(frame)} atoms",
        markup=False,
        highlight=False,
    )
    console.print(table)


def _error(row: dict[str, Any], key: str) -> str:
    """Mean and, with several seeds, standard deviation."""
    from eqnet.metrics import number

    spread = row[f"{key}_std"]
    return number(row[key]) + (f" ± {spread:.2g}" if spread is not None else "")
