"""`eqnet tensors MODEL FILE`: dipoles and other tensors of structures, and their errors.

eqnet tensors dipole/dipole.eqnet molecules.xyz --output answers.xyz
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from eqnet.errors import InputError
from eqnet.model_options import default

if TYPE_CHECKING:
    from eqnet.data.frame import Frame
    from eqnet.tensor_evaluation import Answers
    from eqnet.tensor_model import TensorModel


@dataclass(frozen=True)
class TensorsOptions:
    """Tensors of structures by a trained model; errors where the file has labels."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Model file, as `eqnet train_tensors` writes it."""
    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """Structures: any file ASE reads."""
    output: Annotated[str | None, default("none", "FILE.xyz")] = None
    """Write the structures here with their labels, REF_dipole and the like, and the answers,
    eqnet_dipole: tensors of a structure in the comment line, of atoms in columns; other labels are
    left out."""
    batch_size: int = 16
    """Structures at a time."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision on the device."""
    device: Annotated[str | None, default("JAX's choice", "{cpu,gpu,...}")] = None
    """Device to run on."""
    overwrite: bool = False
    """Write over an existing file."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    from eqnet.scripts.command_line import parse

    arguments = sys.argv[1:] if argv is None else argv
    options = parse(TensorsOptions, arguments, command="tensors")
    if options.batch_size < 1:
        raise InputError(f"--batch_size must be at least 1, not {options.batch_size}")
    if options.output is not None:
        from eqnet.scripts.structures import check_outputs

        output = Path(options.output)
        if output.suffix.lower() not in (".xyz", ".extxyz"):
            raise InputError(f"--output {output}: end the name with .xyz")
        check_outputs([output], [options.model, options.file], overwrite=options.overwrite)
    from eqnet.data.tensor_labels import read_tensors
    from eqnet.tensor_evaluation import predict
    from eqnet.tensor_file import load

    model = load(options.model, dtype=options.dtype)
    frames = read_tensors(options.file, dict(model.kinds), required=False)
    answers = predict(
        model,
        frames,
        batch_size=options.batch_size,
        dtype=options.dtype,
        device=options.device,
    )
    print(f"{options.file}: {len(frames):,} structures")
    _show(model, frames, answers)
    if options.output is not None:
        _write(Path(options.output), model, frames, answers)
        print(f"structures with answers: {options.output}")
    return 0


def _show(model: TensorModel, frames: Sequence[Frame], answers: Answers) -> None:
    """Errors of what is labelled, else the size of the answers."""
    import numpy as np

    from eqnet.tensor_evaluation import errors

    for name, kind in model.kinds:
        labelled = sum(name in frame.tensors for frame in frames)
        if labelled:
            e = errors(name, frames, answers)
            print(
                f"{name}: MAE {e['mae']:.4g}, RMSE {e['rmse']:.4g} {kind.unit}, relative "
                f"{100 * e['relative']:.2f} %, of {labelled:,} labelled structures"
            )
        else:
            values = np.concatenate([answer[name].ravel() for answer in answers])
            size = float(np.sqrt(np.mean(values**2)))
            print(f"{name}: no labels; root mean square of the components {size:.4g} {kind.unit}")


def _write(path: Path, model: TensorModel, frames: Sequence[Frame], answers: Answers) -> None:
    """Extended XYZ with the answers."""
    from ase.io import write

    from eqnet.data.frame import to_atoms
    from eqnet.data.tensor_labels import LABELS
    from eqnet.files import replacing

    images = []
    for frame, answer in zip(frames, answers, strict=True):
        atoms = to_atoms(frame)
        for name, kind in model.kinds:
            found = {f"eqnet_{name}": answer[name]}
            if name in frame.tensors:
                found[f"REF_{LABELS.get(name, name)}"] = frame.tensors[name]
            for key, tensor in found.items():
                if kind.per_atom:
                    atoms.set_array(key, tensor.reshape(len(frame), -1))
                else:
                    atoms.info[key] = tensor.ravel()
        images.append(atoms)
    with replacing(path) as partial:
        write(partial, images, format="extxyz")


if __name__ == "__main__":
    from eqnet.scripts import run

    sys.exit(run("tensors"))
