"""`eqnet bench model`: what models cost on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from eqnet.bench_machine import use_cores
from eqnet.bench_report import check_outputs
from eqnet.errors import InputError
from eqnet.model_options import ModelOptions, default
from eqnet.options import TrainOptions, check
from eqnet.scripts.bench_common import SUFFIXES, check_positive, wide_console, write

if TYPE_CHECKING:
    from rich.console import Console

    from eqnet.bench_model import Case
    from eqnet.data.frame import Frame

# Columns that only a table with rivals has, and those that it has no room for.
BESIDE_RIVALS, ALONE = ("library", "ratio", "MB", "train ratio"), ("of peak", "temp MB")
# The same of a table of models.
OF_MODELS, OF_ONE_MODEL = ("model", "preset", "train step ms"), ("powers", "of peak")


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
    repeat: Annotated[tuple[int, int, int] | None, default("as it is", "INT INT INT")] = None
    """Copies of that frame along its three cell vectors, for a larger structure."""
    batch_size: int = 5
    """Structures of a step of training, the first of the file; 0 to leave the training out."""
    models: Annotated[str | None, default("that of --model", "NAME,NAME")] = None
    """Models to compare, each MODEL[:PRESET], as "mace:small,nequip", or all."""
    presets: Annotated[str | None, default("that of --preset", "NAME,NAME")] = None
    """Presets to compare of the --models that name none, or all."""
    products: Annotated[str | None, default("that of the model", "NAME,NAME")] = None
    """Tensor products to compare, or all."""
    methods: Annotated[str | None, default("default", "NAME,NAME")] = None
    """Methods to compare for each of them, or all."""
    rivals: Annotated[str | None, default("none", "NAME=PYTHON,NAME=PYTHON")] = None
    """Other libraries with the same model, each with the interpreter of an environment that has it:
    mace-torch and mlip for MACE, mlip and fairchem-core for eSEN; docs/performance.md says what is
    compared."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision."""
    seconds: float = 2.0
    """Time for each case and kind of call."""
    profile: bool = False
    """Where the time of energy and forces goes, part by part, for the first case."""
    threads: Annotated[int | None, default("all cores", "INT")] = None
    """Cores to run on; 1 gives times that can be compared on a machine with other work."""
    cores: int = 1
    """CPU cores that share the atoms of the structure for energy and forces, as the calculator's
    option of this name."""
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
    if options.rivals is not None:  # an accelerator's memory is shared with them
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from eqnet.device import shared_cores

    shared_cores(options.cores)  # before JAX starts
    from eqnet import bench_model as bench
    from eqnet import bench_rival_models
    from eqnet.bench_machine import measure_machine
    from eqnet.bench_report import machine_line
    from eqnet.data.demo import demo_path
    from eqnet.data.read import read

    import_cpu = time.process_time()
    file = options.structures or str(demo_path())
    frames = read(file, require=()).frames
    if not -len(frames) <= options.index < len(frames):
        raise InputError(f"{file}: there is no frame {options.index}; it has {len(frames)}")
    frame = _repeated(frames[options.index], options.repeat)
    cases = _cases(options, frames)
    interpreters = bench_rival_models.interpreters(options.rivals, cases[0])
    console = wide_console()
    machine = measure_machine(options.dtype)
    console.print(machine_line(machine), markup=False, highlight=False)
    work = bench.Work(
        frame,
        frames[: options.batch_size],
        options.dtype,
        options.seconds,
        options.profile,
        options.cores,
    )
    refused: list[str] = []
    with bench_rival_models.started(interpreters, cases[0], work) as rivals:
        made = _counter(console, len(cases)) if options.models is not None else None
        rows = bench.run(cases, work, machine, refused.append, rivals, made)
    for row in rows:
        row.setdefault("import_cpu_s", import_cpu)  # of this process; those of rivals have theirs
    for line in refused:
        console.print(f"note: {line}", markup=False, highlight=False)
    if not rows:
        raise InputError(f"nothing could be measured: {refused[0]}")
    _show_model(console, rows)
    if options.profile:
        _show_profile(console, rows[0]["profile"])
    write(options, machine, rows)
    return 0


def _counter(console: Console, number: int) -> Callable[[str], None]:
    """Says which of so many models is compiled."""
    left = iter(range(1, number + 1))
    return lambda name: console.print(f"{next(left)} of {number} compiled: {name}", highlight=False)


def _check_model(options: ModelBenchOptions) -> None:
    check_positive(options, "seconds")
    if options.batch_size < 0:
        raise InputError(f"--batch_size must not be negative, not {options.batch_size}")
    if options.structures is not None and not Path(options.structures).exists():
        raise InputError(f"{options.structures}: there is no such file")
    plain, model = ModelOptions(), options.options
    given = [f.name for f in fields(model) if getattr(model, f.name) != getattr(plain, f.name)]
    if options.model_file is not None:
        given += [n for n in ("models", "presets", "products") if getattr(options, n) is not None]
        given = [name for name in given if name != "method"]
        if given:
            raise InputError(f"--{given[0]} has no effect on a model file: leave one of them out")
        if not Path(options.model_file).is_file():
            raise InputError(f"{options.model_file}: no such model file")
    check(TrainOptions(model=model))
    for name in ("model", "preset", "product", "method"):
        if getattr(options, f"{name}s") is not None and name in given:
            raise InputError(f"--{name} and --{name}s say the same thing twice: give one of them")
    if options.presets is not None and options.models is None:
        raise InputError("--presets has no effect without --models: add it, such as --models mace")
    outputs = {name: getattr(options, name) for name in ("csv", "json")}
    check_outputs(outputs, SUFFIXES)


def _repeated(frame: Frame, copies: tuple[int, int, int] | None) -> Frame:
    """The structure so many times along its cell vectors, without labels."""
    from eqnet.data.frame import from_atoms, to_atoms

    if copies is None:
        return frame
    for axis, number in enumerate(copies):
        if number < 1:
            raise InputError(f"--repeat must be positive numbers of copies, not {number}")
        if number > 1 and not frame.cell[axis].any():
            raise InputError(
                f"{frame.name}: the structure has no cell vector {axis + 1}: number {axis + 1} of "
                "--repeat must be 1"
            )
    larger = to_atoms(frame).repeat(copies)
    return from_atoms(larger, file=frame.file, index=frame.index)


def _cases(options: ModelBenchOptions, frames: Sequence[Frame]) -> list[Case]:
    """Models x products x methods, each with a function that makes the model."""
    from eqnet.bench_cases import of_configuration, of_file, of_models

    methods = options.methods or options.options.method
    if options.model_file is not None:
        return of_file(options.model_file, methods, options.dtype)
    how = (options.products, methods, options.dtype, frames)
    if options.models is not None:
        return of_models(options.options, options.models, options.presets, *how)
    return of_configuration(options.options, *how)


def _show_model(console: Console, rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    first = rows[0]
    time = "cpu_ms_min" if first["cpu_ms_min"] and not _on_device() else "wall_ms_min"
    cells = [_cells(row, time) for row in rows]
    rivals = any(row["library"] != "eqnet" for row in rows)
    several = len({(row["model"], row["preset"]) for row in rows if "model" in row}) > 1
    hidden = {*(ALONE if rivals else BESIDE_RIVALS), *(OF_ONE_MODEL if several else OF_MODELS)}
    columns = [name for name in cells[0] if name not in hidden]
    table = Table(*columns, box=None)
    for line in cells:
        table.add_row(*(line[name] for name in columns))
    words = f"{first['structure']}: {first['atoms']} atoms, {first['edges']} edges, "
    words += first["dtype"]
    if "train_batch_size" in first:
        words += f"; training on {first['train_batch_size']} structures at a time"
    console.print(words, markup=False, highlight=False)
    console.print(table)
    for row in rows:
        if row["library"] != "eqnet":
            console.print(f"{row['library']}: {row['versions']}", markup=False, highlight=False)
    peak = max(row["peak_rss_mb"] for row in rows if row["library"] == "eqnet")
    console.print(f"most memory of the process: {peak:.0f} MB")


def _show_profile(console: Console, parts: list[dict[str, Any]]) -> None:
    from rich.table import Table

    columns = ("part", "forward ms", "backward ms", "Mop", "MB", "floor ms", "of peak", "GB/s")
    table = Table(*columns, box=None)
    for part in parts:
        ms = part["forward_ms"] + part["backward_ms"]
        table.add_row(
            part["part"],
            f"{part['forward_ms']:.3f}",
            f"{part['backward_ms']:.3f}",
            f"{part['operations'] / 1e6:.1f}",
            f"{part['bytes'] / 1e6:.1f}",
            f"{part['floor_ms']:.3f}",
            f"{100 * part['matmul_peak_fraction']:.1f} %",
            f"{1e-6 * part['bytes'] / ms:.1f}" if ms else "",
        )
    console.print(table)


def _cells(row: dict[str, Any], time: str) -> dict[str, str]:
    """What the table shows of a row, by column; empty where a rival does not tell."""

    def shown(key: str, form: str, factor: float = 1.0) -> str:
        return form.format(factor * row[key]) if key in row else ""

    trained = "train_structures_per_cpu_s" if time == "cpu_ms_min" else "train_structures_per_s"
    return {
        "library": row["library"],
        "model": row.get("model", ""),
        "preset": row.get("preset", ""),
        "product": row["product"],
        "powers": row["node_product"],
        "method": row["method"],
        "force ms": f"{row[time]:.2f}",
        "ratio": f"{row['ratio']:.2f}",
        "of peak": shown("matmul_peak_fraction", "{:.1f} %", 100),
        "first force s": f"{row['first_force_cpu_s']:.1f}",
        "temp MB": shown("temporary_mb", "{:.1f}"),
        "MB": f"{row['peak_rss_mb']:.0f}",
        "weights": str(row["parameters"]),
        "train step ms": shown(f"train_{time}", "{:.1f}"),
        "train structures/s": shown(trained, "{:.1f}"),
        "train ratio": shown("train_ratio", "{:.2f}"),
    }


def _on_device() -> bool:
    import jax

    return jax.default_backend() != "cpu"
