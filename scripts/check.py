"""`eqnet check FILE [options of eqnet train]`: what is in the data, and what would ruin a training.

eqnet check train.xyz
eqnet check train.xyz --valid_file valid.xyz --test_file test.xyz --r_max 5 --json check.json
eqnet check train.xyz --model nequip --preset small --batch_size 8 --measure

Exit codes: 0 nothing that would ruin a training, 1 something would, 2 a file or option is refused.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from eqnet.errors import InputError
from eqnet.files import replacing
from eqnet.model_options import default
from eqnet.options import TrainOptions, check, resolve_choices

if TYPE_CHECKING:
    from eqnet.data.findings import Finding, Findings
    from eqnet.data.read import Dataset
    from eqnet.experiment import Experiment

MEASURED_STEPS = 5  # of training and of validation, after those that compile


@dataclass(frozen=True)
class CheckCommand:
    """Look at structures and labels before a training: keys, units, signs, outliers, cells.

    Takes the options of `eqnet train`, so that the same command can be checked and then trained.
    Ends with exit code 1 if something would ruin the training.
    """

    options: TrainOptions = field(default_factory=TrainOptions)
    config: Annotated[str | None, default("none", "FILE")] = None
    """YAML file of options of `eqnet train`; what is given here wins over it."""
    measure: bool = False
    """Also compile and run a few steps of the training, for its time and memory."""
    json: Annotated[str | None, default("none", "FILE")] = None
    """Write everything here, with all numbers."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    from eqnet.scripts.train_command import find_files, read_command

    command = read_command(list(sys.argv[1:] if argv is None else argv), CheckCommand, "check")
    check(command.options)
    options = resolve_choices(command.options)
    from eqnet.data.findings import allowed

    find_files(options.data)
    allowed(options.data.allow)
    _check_target(command)
    from eqnet.data.demo import demo_path
    from eqnet.experiment import read_files
    from eqnet.scripts.bench_common import wide_console
    from eqnet.scripts.check_tables import show

    file = Path(options.data.train_file or demo_path())
    datasets = read_files(options, file)
    report = _report(options, datasets)
    report["forecast"] = _forecast(options, file, datasets, measure=command.measure)
    show(wide_console(), report)
    if command.json is not None:
        _write(Path(command.json), report)
    if "refused" in report["forecast"]:
        return 2
    return int(any(f["level"] in ("error", "warning") for f in report["findings"]))


def _check_target(command: CheckCommand) -> None:
    if command.json is None:
        return
    data, path = command.options.data, Path(command.json)
    inputs = (data.train_file, data.valid_file, data.test_file, data.split_file, command.config)
    if path.resolve() in {Path(name).resolve() for name in inputs if name is not None}:
        raise InputError(f"--json {path} would overwrite an input; name another file")
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise InputError(f"--json {path}: name a file in a folder that exists")


def _report(options: TrainOptions, datasets: dict[str, Dataset]) -> dict[str, Any]:
    """All that is known about the files, as plain values."""
    from eqnet.data import data_report as look
    from eqnet.data.elements import symbol
    from eqnet.data.findings import find
    from eqnet.data.store import items_of
    from eqnet.experiment import cutoff_of, elements_of, find_references

    frames = {role: data.frames for role, data in datasets.items()}
    train, r_max = datasets["train"], cutoff_of(options)
    elements = elements_of(frames)
    _, references = find_references(options, train, train.frames, elements)
    items = {role: items_of(some, elements, r_max) for role, some in frames.items()}
    found = find(train, frames, items, references)
    fitted = look.element_energies(train.frames, elements)
    outliers = look.outliers(frames, elements, fitted["energies"] if fitted else ())
    findings = [
        *found.found,
        *look.crowded(items, r_max),
        *look.outlier_findings(outliers),
        *look.net_forces(frames),
        *look.duplicates(frames),
        *look.cells(frames, r_max),
    ]
    return {
        "files": {role: data.report.file for role, data in datasets.items()},
        "frames": {role: len(some) for role, some in frames.items()},
        "elements": [symbol(z) for z in elements],
        "labels": look.label_statistics(datasets),
        "unused": {role: data.report.unused for role, data in datasets.items()},
        "notes": [note for data in datasets.values() for note in data.report.notes],
        "units": _units(found),
        "E0s": {
            "used": asdict(references),
            "fitted": fitted,
            "isolated": {symbol(z): energy for z, energy in sorted(train.isolated.items())},
        },
        "outliers": outliers,
        "neighbours": {"r_max": r_max, **look.neighbour_counts(items)},
        "findings": [_finding(finding, options) for finding in findings],
    }


def _units(found: Findings) -> dict[str, Any]:
    """The guess, its evidence, and what labels say about each other."""
    from eqnet.data.frame_pairs import forces_slope, stress_slope
    from eqnet.data.unit_guess import ours

    forces, stress = forces_slope(found.pairs), stress_slope(found.pairs)
    return {
        "guess": found.guess.units,
        "ours": not found.guess.others,
        "better_by": found.guess.better,
        "rivals": list(found.guess.rivals),
        "evidence": [
            {
                "what": e.what, "value": e.value, "in_guess": e.in_units(found.guess.units),
                "width": e.width, "doubt": e.doubt(ours()),
            }
            for e in found.guess.evidence
        ],
        "energy_over_work_of_forces": forces and forces._asdict(),
        "energy_over_work_of_stress": stress and stress._asdict(),
        "stress_volume_correlation": found.volume and found.volume[0],
    }  # fmt: skip


def _finding(finding: Finding, options: TrainOptions) -> dict[str, str]:
    """As plain values; an error that is allowed is a note."""
    from eqnet.data.findings import allowed

    passes = finding.level == "error" and finding.kind in allowed(options.data.allow)
    return {**asdict(finding), "level": "note" if passes else finding.level}


def _forecast(
    options: TrainOptions, file: Path, datasets: dict[str, Dataset], *, measure: bool
) -> dict[str, Any]:
    """Batches of the training that these options make; times and memory if they are measured."""
    from eqnet.data.batches import Loader
    from eqnet.experiment import prepare

    try:
        experiment = prepare(options, file, datasets)
    except InputError as error:
        return {"refused": str(error)}
    found: dict[str, Any] = {"model": options.model.model, "preset": options.model.preset}
    for role in ("train", "valid"):
        run, train = options.run, role == "train"
        loader = Loader(
            experiment.items[role],
            run.batch_size if train else run.valid_batch_size or run.batch_size,
            reference_energy=lambda species: 0.0,
            seed=run.seed,
            shuffle=train,
        )
        found[role] = {
            "structures": len(experiment.items[role]),
            "batches": loader.num_batches,
            "batch_size": loader.batch_size,
            "shapes": [shape._asdict() for shape in loader.shapes],
            "bytes": _largest(loader, options.run.default_dtype),
            "waste": loader.waste,
        }
    if measure:
        found["measured"] = _measure(experiment)
    return found


def _largest(loader: Any, dtype: str) -> int:
    """Bytes of the largest batch with its labels."""
    import jax

    from eqnet.data.items import sizes_of
    from eqnet.data.packing import pack, targets

    rows = sizes_of(loader.items).rows(loader.shapes[0].slots)
    item = [loader.items[int(rows.argmin())]]  # it fits into every shape

    def size(shape: Any) -> int:
        arrays = jax.tree.leaves((pack(item, shape, dtype), targets(item, shape, [0.0], dtype)))
        return sum(array.nbytes for array in arrays)

    return max(size(shape) for shape in loader.shapes)


def _measure(experiment: Experiment) -> dict[str, Any]:
    """Seconds per epoch and memory, by running a few steps of the training itself."""
    from eqnet.bench_probe import measure_experiment
    from eqnet.device import computing, find_device

    run = experiment.options.run
    device = find_device(run.device)
    double = run.default_dtype == "float64"
    with computing(device, double=double, what="a step of training"):
        found = measure_experiment(experiment, epochs=1, most_steps=MEASURED_STEPS)
    used = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return {**found, "device": device.platform, "device_peak_bytes": used}


def _write(path: Path, report: dict[str, Any]) -> None:
    try:
        with replacing(path) as partial:
            partial.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None


if __name__ == "__main__":
    from eqnet.scripts import run

    sys.exit(run("check"))
