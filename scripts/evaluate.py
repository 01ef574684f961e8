"""`eqnet evaluate model.eqnet FILE`: errors of a potential on labelled structures.

eqnet evaluate model.eqnet test.xyz
eqnet evaluate model.eqnet test.xyz --json errors.json --output answers.xyz --report report
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from eqnet.errors import InputError
from eqnet.files import replacing
from eqnet.model_options import default

if TYPE_CHECKING:
    from rich.console import Console

    from eqnet.data.read import Dataset, Frame
    from eqnet.evaluation import Answer


@dataclass(frozen=True)
class EvaluateOptions:
    """Errors of a potential on a file of labelled structures, per config_type."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Model file, as `eqnet train` writes it."""
    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """Structures with labels: extxyz, anything ASE reads, or a store (eV, angstrom)."""
    json: Annotated[str | None, default("none", "FILE")] = None
    """Write the errors here."""
    output: Annotated[str | None, default("none", "FILE")] = None
    """Write the structures here as extxyz, with their labels (REF_*) and the answers eqnet_energy,
    eqnet_forces and eqnet_stress."""
    report: Annotated[str | None, default("none", "FOLDER")] = None
    """Write plots and report.html into this folder."""
    energy_key: Annotated[str | None, default("found", "KEY")] = None
    """Name of the energy in the file."""
    forces_key: Annotated[str | None, default("found", "KEY")] = None
    """Name of the forces in the file."""
    stress_key: Annotated[str | None, default("found", "KEY")] = None
    """Name of the stress in the file (ASE sign, eV/A^3)."""
    virials_key: Annotated[str | None, default("found", "KEY")] = None
    """Name of the virials in the file (eV)."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision on the device."""
    device: Annotated[str | None, default("JAX's choice", "{cpu,gpu,...}")] = None
    """Device to run on."""
    batch_size: int = 32
    """Most structures at a time; fewer where they are large."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    from eqnet.scripts.command_line import parse

    options = parse(EvaluateOptions, sys.argv[1:] if argv is None else argv, command="evaluate")
    _check(options)
    from rich.console import Console

    from eqnet.data.read import Keys, read

    console = Console(soft_wrap=True)
    keys = Keys(options.energy_key, options.forces_key, options.stress_key, options.virials_key)
    dataset = read(options.file, keys, require=(), isolated=False)
    if not dataset.report.rows and not (options.json or options.output):
        raise InputError(
            f"{options.file}: no energy, forces or stress found; name them with --energy_key, "
            "--forces_key, --stress_key, or ask for the answers alone with --output"
        )
    start = time.perf_counter()
    answers = _answers(options, dataset, console)
    _show_and_write(options, dataset, answers, time.perf_counter() - start, console)
    return 0


def _check(options: EvaluateOptions) -> None:
    """Refuse, before any work, what could not be done or would destroy an input."""
    from eqnet.data.store import is_store

    if options.batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {options.batch_size}")
    if options.stress_key and options.virials_key:
        raise InputError("--stress_key and --virials_key say the same thing twice: give one")
    for name in ("model", "file"):
        path = Path(getattr(options, name))
        if not (path.is_file() or (name == "file" and is_store(path))):
            raise InputError(f"{path}: there is no such file")
    results = [name for name in ("json", "output", "report") if getattr(options, name)]
    for name in results:
        path = Path(getattr(options, name))
        for other in ("model", "file"):
            if path.resolve() == Path(getattr(options, other)).resolve():
                raise InputError(f"--{name} {path} would overwrite the input; name another file")
        if name != "report" and path.is_dir():
            raise InputError(f"--{name} {path} is a folder; name a file")
        if name == "report" and path.is_file():
            raise InputError(f"--report {path} is a file; name a folder")
        if not path.resolve().parent.is_dir():
            raise InputError(f"--{name} {path}: the folder {path.parent} does not exist; make it")
    if len({Path(getattr(options, name)).resolve() for name in results}) < len(results):
        raise InputError("--json, --output and --report must be different files")


def _answers(options: EvaluateOptions, dataset: Dataset, console: Console) -> list[Answer]:
    """The potential's answers, every one of them finite."""
    from eqnet.device import computing, find_device
    from eqnet.evaluation import evaluate, finite
    from eqnet.model_file import load

    device = find_device(options.device)
    with computing(device, double=options.dtype == "float64", what=f"loading {options.model}"):
        potential = load(options.model, dtype=options.dtype)
    with _progress(console) as progress:
        answers = evaluate(
            potential,
            dataset.frames,
            batch_size=options.batch_size,
            dtype=options.dtype,
            device=device,
            progress=progress,
        )
    for frame, answer in zip(dataset.frames, answers, strict=True):
        if not finite(answer):
            raise InputError(
                f"{frame.name}: the answer of {options.model} is not a finite number; look for "
                "atoms that nearly touch, or try --dtype float64"
            )
    return answers


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on a terminal, nothing elsewhere."""
    if not console.is_terminal:
        yield None
        return
    from rich.progress import Progress

    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("structures", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _roles(options: EvaluateOptions, dataset: Dataset) -> list[str]:
    """What the training of the model used this very file for, by its digest; tests do not count."""
    from eqnet.model_file import read_info

    known = read_info(options.model)["training"].get("data")
    known = known if isinstance(known, dict) else {}
    return [role for role in ("train", "valid") if known.get(role) == dataset.sha256]


def _show_and_write(
    options: EvaluateOptions,
    dataset: Dataset,
    answers: list[Answer],
    seconds: float,
    console: Console,
) -> None:
    """Print the table and write what was asked for."""
    from eqnet import metrics
    from eqnet.evaluation import naive

    frames = dataset.frames
    measured = metrics.errors(frames, answers)
    reference = metrics.errors(frames, naive(frames))
    labels = ", ".join(f"{row.label} ({row.key})" for row in dataset.report.rows)
    console.print(f"{options.file}: {len(frames):,} structures; labels: {labels or 'none'}")
    for note in dataset.report.notes:
        console.print(f"note: {note}")
    roles = _roles(options, dataset)
    if roles:
        console.print(
            f"note: the model saw this file before ({' and '.join(roles)} data): "
            "errors on it say little about other structures"
        )
    if dataset.report.rows:
        console.print(metrics.table(measured, reference))
        console.print("naive: composition energies fitted to these labels, no forces, mean stress")
    if options.output:
        _write(options.output, lambda path: _write_structures(path, frames, answers))
        console.print(f"structures with answers: {options.output}")
    if options.json:
        content = {"model": options.model, "file": options.file, **measured, "naive": reference}
        text = json.dumps(content, indent=1, allow_nan=False) + "\n"
        _write(options.json, lambda path: path.write_text(text, encoding="utf-8"))
        console.print(f"errors: {options.json}")
    if options.report:
        path = _report(options, dataset, answers, measured, seconds)
        console.print(f"report: {path}")


def _write(target: str, write: Callable[[Path], Any]) -> None:
    """Write a file whole or not at all."""
    path = Path(target)
    try:
        with replacing(path) as partial:
            write(partial)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror})") from None


def _write_structures(path: Path, frames: Sequence[Frame], answers: Sequence[Answer]) -> None:
    """Extended XYZ: the labels under REF_*, the answers under eqnet_*."""
    from ase.io import write

    from eqnet.data.frame import to_atoms

    images = []
    for frame, answer in zip(frames, answers, strict=True):
        atoms = to_atoms(frame)
        atoms.info["eqnet_energy"] = answer.energy
        atoms.set_array("eqnet_forces", answer.forces)
        if answer.stress is not None:
            atoms.info["eqnet_stress"] = answer.stress.reshape(9)
        images.append(atoms)
    write(path, images, format="extxyz")


def _report(
    options: EvaluateOptions,
    dataset: Dataset,
    answers: list[Answer],
    measured: dict[str, Any],
    seconds: float,
) -> Path:
    from eqnet.report import label_table, write_report

    return write_report(
        options.report or ".",
        history=[],
        frames=dataset.frames,
        answers=answers,
        errors=measured,
        validation={},
        config=asdict(options),
        summary={
            "labels": label_table(dataset.report),
            "timing": {"evaluation": f"{seconds:.1f} s"},
        },
    )


if __name__ == "__main__":
    from eqnet.scripts import run

    sys.exit(run("evaluate"))
