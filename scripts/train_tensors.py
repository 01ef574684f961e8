"""`eqnet train_tensors TRAIN TEST --target dipole`: fit dipoles, polarisabilities, elasticity, ...

eqnet train_tensors train.xyz test.xyz --target dipole --out dipole
eqnet tensors dipole/dipole.eqnet more.xyz --output answers.xyz

It trains by the loop of `eqnet train` for some minutes, keeps the weights with the lowest
validation loss, prints the errors on the test structures beside those of the mean label and writes
a file for `eqnet tensors`. A file of lattices (`scripts/make_lattices.py`) names its struts: they
are the edges then, and lengths are in units of the strut radius.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from eqnet.errors import InputError
from eqnet.model_options import ModelOptions
from eqnet.options import TrainOptions, check, resolve_choices

if TYPE_CHECKING:
    from eqnet.data.frame import Frame
    from eqnet.data.items import Item
    from eqnet.data.tensor_labels import TensorKind
    from eqnet.tensor_model import TensorModel

EXAMPLES = 4  # structures whose answers travel in the file


@dataclass(frozen=True)
class TensorOptions:
    """Train a model on tensors and print its errors on test structures."""

    train_file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TRAIN")]
    """Structures to learn from; every tenth one validates."""
    test_file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TEST")]
    """Structures that the errors are of."""
    target: tuple[str, ...]
    """Tensors: charges, dipole, polarizability, born_effective_charges, direct_forces (of no
    energy), elasticity."""
    model: ModelOptions
    """Of the model, as of `eqnet train`."""
    out: str = "tensors"
    """Folder of the model file, checkpoints and losses by epoch; the same command again goes on."""
    relative: bool = False
    """Whether the error of a label counts relative to the label, not to the spread of all."""
    max_minutes: float = 5.0
    """Wall-clock limit."""
    max_num_epochs: int = 100
    """Epochs; the learning rate falls by a cosine over them."""
    batch_size: int = 4
    """Structures per step."""
    lr: float = 0.01
    """Learning rate."""
    seed: int = 0
    """Of weights and order."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    from eqnet.scripts.command_line import parse

    arguments = sys.argv[1:] if argv is None else argv
    options = parse(TensorOptions, arguments, command="train_tensors")
    from eqnet.data.items import species_of
    from eqnet.data.tensor_labels import TENSORS, read_tensors
    from eqnet.lock import Lock

    if unknown := [name for name in options.target if name not in TENSORS]:
        raise InputError(f"there is no target {unknown[0]}; there are {', '.join(TENSORS)}")
    if options.model.pair_repulsion:
        raise InputError("--pair_repulsion is of an energy and has no effect here: leave it out")
    kinds = {name: TENSORS[name] for name in options.target}
    frames = read_tensors(options.train_file, kinds, tell=print)
    train = [frame for i, frame in enumerate(frames) if i % 10 != 9]
    if len(frames) < 10:
        raise InputError(
            f"{options.train_file} has {len(frames)} structures; give 10 or more, as every tenth "
            "one validates"
        )
    test = read_tensors(options.test_file, kinds, tell=print)
    elements = sorted({int(z) for frame in frames for z in frame.numbers})
    for frame in test:
        species_of(frame, elements)  # refuses an unknown element before the training
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    with Lock(folder / "lock"):
        _check_same(options)
        model = fit(options, kinds, train, frames[9::10])
        found = report(model, kinds, train, test)
        _write(options, model, test, found)
    return 0


def _check_same(options: TensorOptions) -> None:
    """Refuse to go on in a folder with what another command began there, and note what begins.

    Raises:
        InputError: naming what differs.
    """
    from eqnet.files import digest
    from eqnet.run_folder import check_can_go_on, write

    now = asdict(options) | {"train_file": digest(options.train_file)}
    for free in ("test_file", "out", "max_minutes"):
        del now[free]
    now = json.loads(json.dumps(now))
    folder = Path(options.out)
    path = folder / "options.json"
    check_can_go_on(folder)
    if (folder / "checkpoints").exists():
        before = json.loads(path.read_text()) if path.is_file() else {}
        if different := [name for name in now if now[name] != before.get(name)]:
            raise InputError(
                f"{folder} holds a training with another {', '.join(different)}: name another "
                "folder by --out, or repeat the command of that training to go on with it"
            )
    write(path, json.dumps(now, indent=1) + "\n")


def fit(
    options: TensorOptions,
    kinds: Mapping[str, TensorKind],
    train: Sequence[Frame],
    valid: Sequence[Frame],
) -> TensorModel:
    """The model with the lowest validation loss."""
    from rich.console import Console

    from eqnet.checkpoint import Checkpoints
    from eqnet.data.batches import Loader
    from eqnet.fit import Fit
    from eqnet.progress import Progress
    from eqnet.run_folder import History
    from eqnet.tensor_evaluation import spread
    from eqnet.tensor_training import TensorProblem

    chosen = TrainOptions(model=options.model).replace(
        {
            "batch_size": options.batch_size,
            "lr": options.lr,
            "seed": options.seed,
            "max_num_epochs": options.max_num_epochs,
            "max_minutes": options.max_minutes,
        }
    )
    check(chosen)
    chosen = resolve_choices(chosen)
    model, items = build(chosen, kinds, [*train, *valid], len(train))
    common = {
        "reference_energy": lambda species: 0.0,
        "tensors": kinds,
        "max_shapes": 2,  # a step is cheap beside a compilation
    }
    loader = Loader(items[: len(train)], options.batch_size, seed=options.seed, **common)
    validation = Loader(items[len(train) :], 4 * options.batch_size, shuffle=False, **common)
    sizes = tuple(spread(name, kind, train) for name, kind in kinds.items())
    problem = TensorProblem(
        model, chosen.loss, chosen.optimizer, loader.num_batches, sizes, options.relative
    )
    folder = Path(options.out)
    progress = Progress(Console(stderr=True))
    outcome = Fit(
        problem,
        chosen,
        loader,
        validation,
        checkpoints=Checkpoints(folder / "checkpoints", tell=progress.tell),
        history=History(folder),
        progress=progress,
    ).run()
    words = "" if outcome.complete else "; not complete: the same command goes on with it"
    epochs, seconds = outcome.position.begun, outcome.position.seconds
    print(f"ended after {outcome.reason}: {epochs} epochs, {seconds:.0f} s of training{words}")
    return problem.with_weights(outcome.best)


def build(
    chosen: TrainOptions, kinds: Mapping[str, TensorKind], frames: Sequence[Frame], train: int
) -> tuple[TensorModel, list[Item]]:
    """The model with its first weights, from the first `train` frames, and the items of all.

    Raises:
        InputError: the labels are all the same, or the features of the model lack their irreps.
    """
    import numpy as np
    from flax import nnx

    from eqnet.data.neighbors import average_num_neighbors
    from eqnet.model_choice import config_class_of, default_of, make_config, model_options
    from eqnet.models import MODELS
    from eqnet.tensor_evaluation import items_of
    from eqnet.tensor_model import TensorModel, fit_scale_and_shift, needed_irreps

    values, config_class = model_options(chosen), config_class_of(chosen.model.model)
    elements = tuple(int(z) for z in np.unique(np.concatenate([f.numbers for f in frames])))
    cutoff = values.get("r_max", default_of(config_class, "r_max"))
    struts = any("struts" in frame.info for frame in frames)
    items = items_of(frames, elements, cutoff, struts=struts)
    neighbors = average_num_neighbors([item.neighbors for item in items[:train]])
    config = make_config(config_class, values, elements=elements, neighbors=neighbors)
    known = [item.frame for item in items[:train]]

    def construct() -> TensorModel:
        rngs, method = nnx.Rngs(chosen.run.seed), chosen.model.method
        model = MODELS[chosen.model.model][1](
            config, rngs=rngs, method=method, needed=needed_irreps(kinds)
        )
        return TensorModel(
            model,
            kinds,
            elements=elements,
            cutoff=config.r_max,
            scale={name: scale for name, (scale, _) in fitted.items()},
            shift={name: shift for name, (_, shift) in fitted.items()},
            struts=struts,
            rngs=rngs,
        )

    try:
        fitted = {n: fit_scale_and_shift(kind, n, known, elements) for n, kind in kinds.items()}
        return nnx.jit(construct)(), items
    except InputError:
        raise
    except ValueError as error:  # labels that are all the same; features that a tensor lacks
        raise InputError(f"the model cannot be made: {error}") from None


def _write(
    options: TensorOptions, model: TensorModel, test: Sequence[Frame], found: dict[str, Any]
) -> None:
    """The model file, with some of the test structures as examples."""
    from eqnet.files import digest
    from eqnet.tensor_file import save

    folder = Path(options.out)
    path = folder / f"{folder.resolve().name}.eqnet"
    data = {"train": digest(options.train_file), "test": digest(options.test_file)}
    save(
        path,
        model,
        model_name=options.model.model,
        config=model.model.config,
        training={"seed": options.seed, "data": data, "test_errors": found},
        examples=test[:EXAMPLES],
    )
    print(f"model: {path}")


def report(
    model: TensorModel,
    kinds: Mapping[str, TensorKind],
    train: Sequence[Frame],
    test: Sequence[Frame],
) -> dict[str, Any]:
    """Print the errors on the test structures, and return them by tensor."""
    from eqnet.tensor_evaluation import errors, mean_label, predict

    answers, measured = predict(model, test), {}
    for name, kind in kinds.items():
        naive = mean_label(name, kind, train, test)
        for who, found in (("model", answers), ("mean label", naive)):
            e = errors(name, test, found)
            measured.setdefault(name, e)  # the model's are the first
            print(
                f"{name:24s} {who:10s} MAE {e['mae']:.4g}  RMSE {e['rmse']:.4g} {kind.unit}  "
                f"relative {100 * e['relative']:.2f} %"
            )
    return measured


if __name__ == "__main__":
    from eqnet.scripts import run

    sys.exit(run("train_tensors"))
