"""`eqnet bench model`: what models cost on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from eqnet.bench_machine import use_cores
from eqnet.bench_report import check_outputs
from eqnet.errors import InputError
from eqnet.options import ModelOptions, TrainOptions, check
from eqnet.scripts.bench_common import SUFFIXES, check_positive, default, wide_console, write

if TYPE_CHECKING:
    from rich.console import Console

    from eqnet.bench_model import Case
    from eqnet.data.frame import Frame


@dataclass(frozen=True)
class ModelBenchOptions:
    """Time energy and forces of one structure, and steps of training.

    The model is a model file, or a configuration with random weights.
    """

    model_file: Annotated[
        str | None, tyro.conf.Positional, default("by the options below", "MODEL")
    ] = None
    """Model file, as `eqnet train` writes it."""
    options: ModelOptions = field(default_factory=ModelOptions)
    structures: Annotated[str | None, default("the built-in example", "FILE")] = None
    """Structures: any file ASE reads. Labels are used by the training, if there are any."""
    index: int = 0
    """Which frame of the file gets energy and forces, from 0."""
    batch_size: int = 5
    """Structures of a step of training, the first of the file; 0 to leave the training out."""
    products: Annotated[str | None, default("that of the model", "NAME,NAME")] = None
    """Tensor products to compare, or all."""
    methods: Annotated[str | None, default("default", "NAME,NAME")] = None
    """Methods to compare for each of them, or all."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision."""
    seconds: float = 2.0
    """Time for each case and kind of call."""
    threads: Annotated[int | None, default("all cores", "INT")] = None
    """Cores to run on; 1 gives times that can be compared on a machine with other work."""
    csv: Annotated[str | None, default("none", "FILE")] = None
    """Write everything that was measured as csv."""
    json: Annotated[str | None, default("none", "FILE")] = None
    """The same, and the machine, as JSON."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    from eqnet.scripts.command_line import parse

    options = parse(ModelBenchOptions, argv, command="bench model")
    _check_model(options)
    if options.threads is not None:
        use_cores(options.threads)
    from eqnet import bench_model as bench
    from eqnet.bench_machine import measure_machine
    from eqnet.bench_report import machine_line
    from eqnet.data.demo import demo_path
    from eqnet.data.read import read

    file = options.structures or str(demo_path())
    frames = read(file, require=()).frames
    if not -len(frames) <= options.index < len(frames):
        raise InputError(f"{file}: there is no frame {options.index}; it has {len(frames)}")
    cases = _cases(options, frames)
    console = wide_console()
    machine = measure_machine(options.dtype)
    console.print(machine_line(machine), markup=False, highlight=False)
    work = bench.Work(
        frames[options.index], frames[: options.batch_size], options.dtype, options.seconds
    )
    refused: list[str] = []
    rows = bench.run(cases, work, machine, refused.append)
    for line in refused:
        console.print(f"note: {line}", markup=False, highlight=False)
    if not rows:
        raise InputError(f"nothing could be measured: {refused[0]}")
    _show_model(console, rows)
    write(options, machine, rows)
    return 0


def _check_model(options: ModelBenchOptions) -> None:
    check_positive(options, "seconds")
    if options.batch_size < 0:
        raise InputError(f"--batch_size must not be negative, not {options.batch_size}")
    if options.structures is not None and not Path(options.structures).exists():
        raise InputError(f"{options.structures}: there is no such file")
    plain, model = ModelOptions(), options.options
    given = [f.name for f in fields(model) if getattr(model, f.name) != getattr(plain, f.name)]
    if options.model_file is not None:
        if options.products is not None:
            given.append("products")
        given = [name for name in given if name != "method"]
        if given:
            raise InputError(f"--{given[0]} has no effect on a model file: leave one of them out")
        if not Path(options.model_file).is_file():
            raise InputError(f"{options.model_file}: no such model file")
    check(TrainOptions(model=model))
    if options.products is not None and model.product is not None:
        raise InputError("--product and --products say the same thing twice: give one of them")
    if options.methods is not None and model.method != "default":
        raise InputError("--method and --methods say the same thing twice: give one of them")
    outputs = {name: getattr(options, name) for name in ("csv", "json")}
    check_outputs(outputs, SUFFIXES)


def _cases(options: ModelBenchOptions, frames: Sequence[Frame]) -> list[Case]:
    """Products x methods, each with a function that makes the model."""
    from eqnet.bench_cases import of_configuration, of_file

    methods = options.methods or options.options.method
    if options.model_file is not None:
        return of_file(options.model_file, methods, options.dtype)
    return of_configuration(options.options, options.products, methods, options.dtype, frames)


def _show_model(console: Console, rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    first, columns = rows[0], ("product", "powers", "method", "force ms", "of peak")
    more = ("first force s", "temp MB", "weights", "structures/s in training")
    table = Table(*columns, *more, box=None)
    time = "cpu_ms_min" if first["cpu_ms_min"] and not _on_device() else "wall_ms_min"
    for row in rows:
        table.add_row(
            row["product"],
            row["node_product"],
            row["method"],
            f"{row[time]:.2f}",
            f"{100 * row['matmul_peak_fraction']:.1f} %",
            f"{row['first_force_cpu_s']:.1f}",
            f"{row['temporary_mb']:.1f}",
            str(row["parameters"]),
            f"{row['train_structures_per_s']:.1f}" if "train_structures_per_s" in row else "",
        )
    words = f"{first['structure']}: {first['atoms']} atoms, {first['edges']} edges, "
    console.print(words + first["dtype"], markup=False, highlight=False)
    console.print(table)
    peak = max(row["peak_rss_mb"] for row in rows)
    console.print(f"most memory of the process: {peak:.0f} MB")


def _on_device() -> bool:
    import jax

    return jax.default_backend() != "cpu"
