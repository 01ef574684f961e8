"""`eqnet bench train`: what products or models are worth when all train for the same time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from eqnet.bench_machine import use_cores
from eqnet.bench_report import check_outputs
from eqnet.errors import InputError
from eqnet.model_options import default
from eqnet.options import TrainOptions, check, resolve_choices
from eqnet.scripts.bench_common import SUFFIXES, check_positive, wide_console, write

if TYPE_CHECKING:
    from rich.console import Console

    from eqnet.bench_train import Work
    from eqnet.bench_variants import Variant


@dataclass(frozen=True)
class TrainBenchOptions:
    """Train with several tensor products, or several models, for the same time, and compare.

    A short probe measures what an epoch costs, then every run gets as many epochs as fit into the
    time, with a whole course of the learning rate. All runs see the same structures; their seeds
    (--seed and the next ones) draw the first weights and the order of the structures. A simulation
    at constant energy with each trained model, from the first test structure and velocities of
    300 K, tells how well it keeps the energy. The same command again goes on where an interrupted
    one stopped.
    """

    options: TrainOptions = field(default_factory=TrainOptions)
    config: Annotated[str | None, default("none", "FILE")] = None
    """YAML file of options of `eqnet train`; what is given here wins over it."""
    products: Annotated[
        str | None, default("all products, the powers that belong to each", "NAME,NAME")
    ] = None
    """What to compare, each PRODUCT[+POWERS][:SEEDS], as "clebsch_gordan:3,gaunt+matrix,cp": the
    --product, the --node_product (as `eqnet train` chooses it if left out), the number of seeds."""
    models: Annotated[str | None, default("none", "NAME,NAME")] = None
    """Models to compare instead of products, each MODEL[:PRESET][:SEEDS], as "mace:small:3,nequip",
    or all; --preset is that of the models that name none."""
    seeds: int = 1
    """Seeds of the products or models that name no number."""
    minutes: float = 10.0
    """Time of a training without compilation: of all threads on a CPU, else of the wall clock."""
    nve_ps: float = 2.0
    """Length in picoseconds of the simulation with each trained model; 0 to leave it out."""
    time_step: float = 0.5
    """Time step of the simulations in fs."""
    errors: Literal["mae", "rmse"] = "mae"
    """Errors that the table shows; the files have both."""
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
    markdown: Annotated[str | None, default("none", "FILE")] = None
    """The table as Markdown."""


SECONDS = 2.0  # of calls of a model, for each of its two speeds

# Options of `eqnet train` that are decided here, and by what.
DECIDED = {
    "name": "--out",
    "work_dir": "--out",
    "max_num_epochs": "--minutes",
    "max_num_steps": "--minutes",
    "max_minutes": "--minutes",
    "start_stage_two": "--minutes",
    "patience": "--minutes",
    "drift_ps": "--nve_ps",
}
BY_PRODUCTS = {"product": "--products", "node_product": "--products", **DECIDED}
BY_MODELS = {"model": "--models", **DECIDED}


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    console = wide_console()
    command = _read(list(argv), console)
    _check(command)
    from eqnet.bench_jobs import share_cores

    places = share_cores(command.jobs, command.threads)
    if command.threads is not None:
        use_cores(command.threads)
    from eqnet import bench_train

    variants = _variants(command)
    work, frame = _prepare(command, variants[0], places, console)
    try:
        found = bench_train.train_all(variants, work)
    except bench_train.Stopped as stop:
        console.print("stopped; the same command goes on from there")
        return 128 + stop.signal
    _finish(command, found, work, frame, console)
    return 0


def _read(argv: list[str], console: Console) -> TrainBenchOptions:
    """Options of a command line: its flags, then those of --config, then the defaults."""
    from eqnet.scripts.command_line import from_file, parse
    from eqnet.scripts.train_command import file_first, value_of, with_demo

    argv = file_first(argv)
    decided = BY_PRODUCTS if value_of("models", argv) is None else BY_MODELS
    file, options, plain = value_of("config", argv), TrainOptions(), TrainOptions().flat()
    if file is not None:
        values = from_file(TrainOptions, Path(file))
        idle = [name for name in decided if values.get(name, plain[name]) != plain[name]]
        if idle:
            words = ", ".join(f"{name} ({decided[name]})" for name in idle)
            console.print(f"note: decided here, not by {file}: {words}", highlight=False)
        options = options.replace({k: v for k, v in values.items() if k not in decided})
    command = parse(
        TrainBenchOptions,
        argv,
        command="bench train",
        default=TrainBenchOptions(options=options, config=file),
    )
    options, values = command.options, command.options.flat()
    for name, instead in decided.items():
        if values[name] != plain[name]:
            raise InputError(f"--{name} has no effect here, {instead} decides it: leave it out")
    if options.data.train_file is None:
        from eqnet.data.demo import demo_path

        sizes = {"num_channels": values["num_channels"]} if command.models is not None else {}
        values = with_demo(options).flat() | {name: plain[name] for name in decided} | sizes
        options = options.replace({**values, "train_file": str(demo_path())})
    return TrainBenchOptions(**{**vars(command), "options": options})


def _check(command: TrainBenchOptions) -> None:
    """Refuse what can be seen without the data."""
    from eqnet.scripts.train_command import find_files

    check_positive(command, "minutes", "seeds", "jobs", "time_step")
    if not 0 <= command.nve_ps < 1e6 or 0 < 1000 * command.nve_ps < command.time_step:
        raise InputError(f"--nve_ps must be 0 or at least a step long, not {command.nve_ps}")
    if command.products is not None and command.models is not None:
        raise InputError("--products and --models exclude each other: give one of them")
    check(command.options)
    find_files(command.options.data)
    data = command.options.data
    if not (data.test_file or data.num_test or data.test_fraction or data.split_file):
        raise InputError("there are no test structures: --test_file, --num_test or --test_fraction")
    if Path(command.out).exists() and not Path(command.out).is_dir():
        raise InputError(f"--out {command.out} is no folder: choose another name")
    outputs = {name: getattr(command, name) for name in ("csv", "json", "markdown")}
    check_outputs(outputs, {**SUFFIXES, "markdown": (".md",)})


def _variants(command: TrainBenchOptions) -> Sequence[Variant]:
    from eqnet.bench_variants import read_models, read_products

    if command.models is not None:
        return read_models(command.models, command.seeds, command.options)
    variants = read_products(command.products, command.seeds)
    if command.options.model.rank is not None and all(v.product != "cp" for v in variants):
        raise InputError("--rank has no effect without cp among --products: leave it out")
    return variants


def _prepare(
    command: TrainBenchOptions, variant: Variant, places: Sequence[Any], console: Console
) -> tuple[Work, Any]:
    """Read the data once, for its mistakes and its split; the frame that tells the speed."""
    from eqnet.bench_train import Work, fix_split
    from eqnet.experiment import prepare

    options, file = command.options, Path(command.options.data.train_file or "")
    one = variant.applied(options).replace({"rank": None})
    experiment = prepare(resolve_choices(one), file)
    if not experiment.frames.get("test"):
        raise InputError("there are no test structures: --test_file, --num_test or --test_fraction")
    work = Work(
        options=fix_split(experiment, options, Path(command.out)),
        files=experiment.provenance()["files"],
        minutes=command.minutes,
        out=Path(command.out),
        places=places,
        tell=lambda text: console.print(text, markup=False, highlight=False),
        nve_ps=command.nve_ps,
        time_step=command.time_step,
    )
    return work, experiment.frames["test"][0]


def _finish(
    command: TrainBenchOptions, found: dict[Any, Any], work: Work, frame: Any, console: Console
) -> None:
    """Time the trained models; show and write what was found."""
    from eqnet import bench_speed, bench_train
    from eqnet.bench_machine import measure_machine
    from eqnet.bench_report import machine_line, write_markdown

    run = work.options.run
    speeds = bench_speed.measure(
        {variant.name: _model(work, variant, plan) for variant, plan in found.items()},
        frame,
        run,
        work.options.model.method,
        SECONDS,
        work.time_step,
    )
    machine = measure_machine(run.default_dtype)
    rows = bench_train.rows(found, speeds, work)
    console.print(machine_line(machine), markup=False, highlight=False)
    cells = [_cells(row, command.errors) for row in rows]
    _show(console, cells, rows[0]["clock"], work, frame)
    write(command, machine, rows)
    if command.markdown is not None:
        write_markdown(command.markdown, cells)


def _model(work: Work, variant: Variant, plan: dict[str, Any]) -> Path:
    """The model of the first finished run."""
    from eqnet.run_folder import RunFolder

    return RunFolder(work.out, f"{variant.name}-{min(plan['runs'])}").best_model


def _cells(row: dict[str, Any], errors: str) -> dict[str, str]:
    """What the table shows of a row, by column."""
    named = ("model", "preset") if "model" in row else ("product", "node_product")
    titles = {"node_product": "powers"}
    kind = errors.upper()
    return {
        **{titles.get(name, name): row[name] for name in named},
        "seeds": str(row["seeds"]),
        "weights": f"{row['parameters']:,}",
        "epochs": f"{row['epochs']:g}",
        "training minutes": f"{row['train_minutes']:.2f}",
        "s per epoch": f"{row['s_per_epoch']:.3g}",
        "force ms": f"{row['force_ms']:.2f}",
        "MD step ms": "unstable" if row["md_step_ms"] is None else f"{row['md_step_ms']:.2f}",
        "training MB": f"{row['peak_rss_mb']:.0f}",
        **({"MD MB": f"{row['md_rss_mb']:.0f}"} if "nve_drift" in row else {}),
        f"energy {kind} meV/atom": _error(row, f"energy_per_atom_{errors}"),
        f"forces {kind} meV/A": _error(row, f"forces_{errors}"),
        **({"NVE drift meV/atom/ps": _drift(row)} if "nve_drift" in row else {}),
    }


def _error(row: dict[str, Any], key: str) -> str:
    """Mean and, with several seeds, standard deviation."""
    from eqnet.metrics import number

    spread = row[f"{key}_std"]
    return number(row[key]) + (f" ± {spread:.2g}" if spread is not None else "")


def _drift(row: dict[str, Any]) -> str:
    """The drift, or how many simulations have none."""
    if row["nve_drift"] is not None:
        return f"{row['nve_drift']:.2g}"
    many = row["nve_simulations"] > 1
    return f"{row['nve_unstable']} of {row['nve_simulations']} unstable" if many else "unstable"


def _show(
    console: Console, cells: list[dict[str, str]], clock: str, work: Work, frame: Any
) -> None:
    from rich.table import Table

    columns = list(dict.fromkeys(name for line in cells for name in line))
    table = Table(box=None)
    for number, name in enumerate(columns):
        side = "left" if number < 2 else "right"
        table.add_column(name.replace(" ", "\n"), justify=side, no_wrap=True)
    for line in cells:
        table.add_row(*(line.get(name, "") for name in columns))
    words = f"{work.minutes:g} minutes of training each ({clock} time, without compilation); force "
    words += f"and MD step of {frame.name}, {len(frame)} atoms"
    if work.nve_ps:
        words += f"; drift over {work.nve_ps:g} ps in steps of {work.time_step:g} fs"
    console.print(words, markup=False, highlight=False)
    console.print(table)
