"""Tables and lines that `eqnet train` prints before the training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from eqnet.data.elements import symbol

if TYPE_CHECKING:
    from eqnet.data.batches import Loader
    from eqnet.data.labels import LabelReport
    from eqnet.experiment import Experiment
    from eqnet.options import TrainOptions
    from eqnet.training import Problem


def label_table(report: LabelReport) -> Table:
    """Which key each label came from, how many there are and their range."""
    title = escape(f"labels of {report.file}, {report.num_frames} frames")
    table = Table(title=title, title_justify="left")
    for column in ("label", "key", "source", "frames", "lowest", "highest", "unit"):
        numeric = column in ("frames", "lowest", "highest")
        table.add_column(column, justify="right" if numeric else "left")
    for row in report.rows:
        low, high = f"{row.minimum:.6g}", f"{row.maximum:.6g}"
        table.add_row(row.label, escape(row.key), row.source, str(row.count), low, high, row.unit)
    return table


def energies_table(experiment: Experiment) -> Table:
    """Reference energy and shift of each element, and what they leave unexplained."""
    table = Table(
        title=f"reference energies (E0s): {experiment.references.method}",
        title_justify="left",
        caption=f"left by composition: {1000 * experiment.residual:.4g} meV/atom rms",
        caption_justify="left",
    )
    table.add_column("element")
    for column in ("reference, eV", "shift, eV"):
        table.add_column(column, justify="right")
    rows = zip(experiment.elements, experiment.atomic_energies, experiment.shift, strict=True)
    for z, energy, shift in rows:
        table.add_row(symbol(z), f"{energy:.6f}", f"{shift:.6f}")
    return table


def split_line(experiment: Experiment) -> str:
    """Numbers of structures."""
    words = {"train": "to train on", "valid": "to validate on", "test": "to test on"}
    parts = [f"{len(frames)} {words[role]}" for role, frames in experiment.frames.items() if frames]
    return f"structures: {', '.join(parts)}"


def waste_line(loaders: Mapping[str, Loader]) -> str:
    """Shapes and padding of the batches."""
    train, valid = loaders["train"], loaders["valid"]
    return (
        f"batches: {train.num_batches} of {train.batch_size} structures in {len(train.shapes)} "
        f"shapes ({100 * train.waste:.0f} % of the neighbour slots are padding); validation "
        f"{valid.num_batches} of {valid.batch_size} in {len(valid.shapes)} "
        f"({100 * valid.waste:.0f} %)"
    )


def method_line(methods: Mapping[str, list[str]]) -> str:
    """What `--method auto` chose; see `results.methods_of`."""
    parts = [f"{', '.join(names)} for the {use}" for use, names in methods.items()]
    return f"method auto, layer by layer: {'; '.join(parts)}"


def model_line(problem: Problem, options: TrainOptions) -> str:
    """Name and size of the model."""
    weights = problem.weights()
    size = sum(weight.size for weight in weights)
    return f"model: {options.model.model}, {size:,} weights in {weights[0].dtype}"
