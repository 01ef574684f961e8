"""From options to a potential and its data: everything checked before anything is written."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eqnet.data.batches import Loader
from eqnet.data.frame import Frame
from eqnet.data.items import Item, sizes_of
from eqnet.data.label_choice import Keys
from eqnet.data.read import Dataset, read
from eqnet.data.reference_energies import ReferenceReport, atomic_energies
from eqnet.data.split import Split, read_split, repetitions, split
from eqnet.data.store import items_of
from eqnet.errors import InputError
from eqnet.files import digest
from eqnet.model_choice import config_class_of, default_of, make_config, model_options
from eqnet.options import TrainOptions
from eqnet.scaling import fit_shift, force_scale

if TYPE_CHECKING:
    from eqnet.potential import Potential
    from eqnet.training import Problem

DEFAULT_STEPS = 20_000  # of a run without max_num_epochs


@dataclass(frozen=True)
class Experiment:
    """The data of a run and what was derived from it; Z elements.

    Attributes:
        options: with nothing left to be decided.
        datasets: by role (train, valid, test), as far as there are files.
        frames: by role.
        items: by role, with their neighbours.
        elements: atomic numbers of the training structures, ascending.
        atomic_energies: [Z] eV.
        references: how they were found, and notes a person should see.
        scale: eV, root mean square of the force components (times 1 angstrom).
        shift: [Z] eV per atom, what a composition explains beyond the atomic energies.
        residual: eV per atom, rms of the energies that composition does not explain.
        config: of the model.
        notes: what a person should see.
    """

    options: TrainOptions
    datasets: dict[str, Dataset]
    frames: dict[str, Sequence[Frame]]
    items: dict[str, Sequence[Item]]
    elements: tuple[int, ...]
    atomic_energies: np.ndarray
    references: ReferenceReport
    scale: float
    shift: np.ndarray
    residual: float
    config: Any
    notes: tuple[str, ...] = ()

    @property
    def stress(self) -> bool:
        """Whether the stress is trained."""
        return bool(
            self.options.loss.stress_weight or self.options.stage_two.stage_two_stress_weight
        )

    def loader(self, role: str, potential: Potential, part: int = 0, parts: int = 1) -> Loader:
        """Batches of a role, or one of the parts of each: in random order for train."""
        run = self.options.run
        train = role == "train"
        return Loader(
            self.items[role],
            run.batch_size if train else run.valid_batch_size or run.batch_size,
            reference_energy=potential.reference_energy,
            seed=run.seed,
            shuffle=train,
            dtype=np.dtype(run.default_dtype),
            part=part,
            parts=parts,
        )

    def provenance(self) -> dict[str, Any]:
        """What identifies the data: digests of the files, sizes, the structures of each role."""
        files = {role: data.sha256 for role, data in self.datasets.items()}
        if self.options.data.split_file is not None:
            files["split"] = digest(self.options.data.split_file)
        return {
            "files": files,
            "versions": {name: version(name) for name in ("eqnet", "jax", "jaxlib")},
            "structures": {role: len(frames) for role, frames in self.frames.items()},
            "split": {
                role: {"file": frames[0].file, "frames": [frame.index for frame in frames]}
                for role, frames in self.frames.items()
                if frames
            },
        }


def build(experiment: Experiment) -> Potential:
    """The potential with its first weights, in the precision that JAX has now.

    Raises:
        InputError: the options of the model do not go together, or have no effect.
    """
    import jax
    from flax import nnx

    from eqnet.equivariance import ROUNDING, declared_error
    from eqnet.models import MODELS
    from eqnet.potential import Potential

    number = len(experiment.elements)
    options = experiment.options
    model_class = MODELS[options.model.model][1]
    try:
        # One program: kept on the disk, it makes the next start seconds faster.
        model = nnx.jit(
            lambda: model_class(
                experiment.config, rngs=nnx.Rngs(options.run.seed), method=options.model.method
            )
        )()
    except ValueError as error:  # irreps that do not go together, no such product
        raise InputError(f"the model cannot be made: {error}") from None
    rank = options.model.rank
    if rank and declared_error(model) < ROUNDING:
        raise InputError(
            f"--rank {rank} has no effect: with so many terms all products of this model are "
            "exact, as they are without a rank; lower it, or leave it out"
        )
    potential = Potential(
        model,
        elements=experiment.elements,
        cutoff=experiment.config.r_max,
        atomic_energies=experiment.atomic_energies.tolist(),
        scale=[experiment.scale] * number,
        shift=experiment.shift.tolist(),
        pair_repulsion=options.model.pair_repulsion,
    )
    graphdef, state = nnx.split(potential)
    dtype = np.dtype(options.run.default_dtype)
    return nnx.merge(graphdef, jax.tree.map(lambda x: x.astype(dtype), state))


def problem_of(
    experiment: Experiment, potential: Potential, part: int = 0, parts: int = 1
) -> tuple[Problem, dict[str, Loader]]:
    """What to minimise from these first weights on, and the batches of train and valid."""
    from eqnet.training import Problem

    loaders = {role: experiment.loader(role, potential, part, parts) for role in ("train", "valid")}
    options = experiment.options
    problem = Problem(
        potential,
        options.loss,
        options.optimizer,
        steps_per_epoch=loaders["train"].num_batches,
        stress=experiment.stress,
    )
    return problem, loaders


def prepare(
    options: TrainOptions, file: Path, datasets: dict[str, Dataset] | None = None
) -> Experiment:
    """Read, check, split and measure the data; nothing is written.

    Args:
        options: checked, with choices resolved.
        file: of the training structures, which options need not name.
        datasets: what `read_files` has read from them, if it was.

    Raises:
        InputError: whatever is wrong with files or options.
    """
    chosen = model_options(options)
    datasets = read_files(options, file) if datasets is None else datasets
    frames = _split(options, datasets)
    options = _resolve_loss(options, frames["train"])
    elements = elements_of(frames)
    energies, references = find_references(options, datasets["train"], frames["train"], elements)
    shift, residual = fit_shift(frames["train"], elements, energies)
    config_class, r_max = config_class_of(options.model.model), cutoff_of(options)
    items = {role: items_of(frames[role], elements, r_max) for role in frames}
    neighbors = sizes_of(items["train"]).average_num_neighbors()
    if neighbors == 0:
        raise InputError(
            f"no atom of the training structures has a neighbour within r_max = {r_max} A; "
            "raise --r_max"
        )
    config = make_config(config_class, chosen, elements=elements, neighbors=neighbors)
    options = _resolve_length(options, len(frames["train"]), config)
    return Experiment(
        options=options,
        datasets=datasets,
        frames=frames,
        items=items,
        elements=elements,
        atomic_energies=energies,
        references=references,
        scale=force_scale(frames["train"], elements, energies, shift),
        shift=shift,
        residual=residual,
        config=config,
        notes=(*repetitions(frames), *_one_batch(options, len(frames["train"]))),
    )


# ------------------------------------------------------------------------------------- data


def cutoff_of(options: TrainOptions) -> float:
    """The cutoff r_max of the model in angstrom, its own if none is given."""
    default = default_of(config_class_of(options.model.model), "r_max")
    return model_options(options).get("r_max", default)


def read_files(options: TrainOptions, file: Path) -> dict[str, Dataset]:
    """The files by role, as far as they are given.

    Raises:
        InputError: a file cannot be read, or lacks labels that are to be trained.
    """
    data, loss = options.data, options.loss
    keys = Keys(data.energy_key, data.forces_key, data.stress_key, data.virials_key)
    wanted = {"energy": loss.energy_weight, "forces": loss.forces_weight}
    require = [label for label, weight in wanted.items() if weight]
    if data.stress_key or data.virials_key or loss.stress_weight:
        require.append("stress")
    paths = {"train": file, "valid": data.valid_file, "test": data.test_file}
    given = {role: Path(path) for role, path in paths.items() if path is not None}
    datasets = {
        role: read(path, keys, require=require if role == "train" else ())
        for role, path in given.items()
    }
    if "valid" in datasets and not any(r.label in require for r in datasets["valid"].report.rows):
        raise InputError(
            f"{data.valid_file}: no frame has {' or '.join(require)}, so there is nothing to "
            "validate on; name the keys, or leave --valid_file out"
        )
    return datasets


def _split(options: TrainOptions, datasets: dict[str, Dataset]) -> dict[str, Sequence[Frame]]:
    """Frames by role; files of their own win, the rest is drawn from the training file."""
    data, frames = options.data, datasets["train"].frames
    if data.split_file is not None:
        places = {frame.index: place for place, frame in enumerate(frames)}
        given = read_split(data.split_file)
        for index in (index for part in given.parts() for index in part):
            if index not in places:
                raise InputError(
                    f"{data.split_file} names frame {index}, which is no structure of "
                    f"{datasets['train'].report.file}: it is an isolated atom or beyond the end"
                )
        parts = Split(*([places[index] for index in part] for part in given.parts()))
    else:
        parts = split(
            frames,
            num_train=data.num_train,
            num_valid=data.num_valid,
            num_test=data.num_test,
            valid_fraction=data.valid_fraction,
            test_fraction=data.test_fraction,
            seed=options.run.seed,
        )
    train, valid, test = parts.select(frames)
    found: dict[str, Sequence[Frame]] = {"train": train, "valid": valid, "test": test}
    for role in ("valid", "test"):
        if role in datasets:
            if found[role]:
                raise InputError(
                    f"--{role}_file and the split both give {role} structures: leave one out"
                )
            found[role] = datasets[role].frames
    if not found["valid"]:
        raise InputError(
            "there are no validation structures: --valid_file or --num_valid gives some"
        )
    return found


def find_references(
    options: TrainOptions, dataset: Dataset, train: Sequence[Frame], elements: Sequence[int]
) -> tuple[np.ndarray, ReferenceReport]:
    """Reference energies by the option E0s, which may be a word or energies by element."""
    how: str | dict[Any, Any] = options.data.E0s.strip()
    if how.startswith("{"):
        try:
            how = ast.literal_eval(how)
        except (ValueError, SyntaxError, TypeError):
            how = _by_symbol(options.data.E0s)
        if not isinstance(how, dict):
            raise _unreadable(options.data.E0s)
    return atomic_energies(how, train, dataset.isolated, elements)


def _by_symbol(text: str) -> dict[str, float]:
    """`{H: -13.6, O: -2041.8}`, symbols without quotes."""
    entries = [entry.partition(":") for entry in text.strip(" {}").split(",") if entry.strip()]
    try:
        return {key.strip(): float(value) for key, _, value in entries}
    except ValueError:
        raise _unreadable(text) from None


def _unreadable(text: str) -> InputError:
    return InputError(
        f'--E0s {text} cannot be read: write "{{1: -13.6, 8: -2041.8}}" or "{{H: -13.6}}"'
    )


def elements_of(frames: Mapping[str, Sequence[Frame]]) -> tuple[int, ...]:
    """Elements of the training structures; those of the others must be among them."""
    from eqnet.data.elements import symbol

    elements = sorted({int(z) for frame in frames["train"] for z in np.unique(frame.numbers)})
    for role in ("valid", "test"):
        for frame in frames.get(role, []):
            new = sorted({int(z) for z in np.unique(frame.numbers)} - set(elements))
            if new:
                raise InputError(
                    f"{frame.name} ({role}) contains {', '.join(map(symbol, new))}, which no "
                    "training structure contains; add some to the training structures"
                )
    return tuple(elements)


# ------------------------------------------------------------------------------------- the rest


def _resolve_loss(options: TrainOptions, train: Sequence[Frame]) -> TrainOptions:
    """Weights of the stress, which matter only where frames have one."""
    there = any(frame.stress is not None and frame.stress_weight > 0 for frame in train)
    two = options.stage_two
    for name, weight in (
        ("stress_weight", options.loss.stress_weight),
        ("stage_two_stress_weight", two.stage_two_stress_weight),
    ):
        if weight and not there:
            raise InputError(f"--{name} has no effect: no training structure has a stress")
    if not there:
        return options
    values: dict[str, Any] = {}
    if options.loss.stress_weight is None:
        values["stress_weight"] = 50.0 if options.loss.loss == "l1" else 1.0
    if two.stage_two and two.stage_two_stress_weight is None:
        values["stage_two_stress_weight"] = 50.0 if options.loss.loss == "l1" else 10.0
    return options.replace(values)


def _one_batch(options: TrainOptions, structures: int) -> list[str]:
    """A note if a batch has fewer structures than were asked for."""
    size = options.run.batch_size
    if size <= structures:
        return []
    return [f"--batch_size {size} is more than the {structures} training structures: one batch"]


def _resolve_length(options: TrainOptions, structures: int, config: Any) -> TrainOptions:
    """Epochs, start of the second stage, and the model's own values of its options."""
    run = options.run
    per_epoch = -(-structures // min(run.batch_size, structures))
    values: dict[str, Any] = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(options.model)
        if hasattr(config, field.name)
    }
    if values.get("hidden_irreps"):
        values |= {name: None for name in ("num_channels", "max_L", "parity") if name in values}
    elif "hidden_irreps" in values:
        values["hidden_irreps"] = None
    if hasattr(config, "rank"):
        values["rank"] = config.rank or None  # of a Config 0 is an exact product
    epochs = run.max_num_epochs
    if epochs is None:
        epochs = -(-(run.max_num_steps or DEFAULT_STEPS) // per_epoch)
        values["max_num_epochs"] = epochs
    if options.stage_two.stage_two:
        start = options.stage_two.start_stage_two or max(1, 3 * epochs // 4)
        if start >= epochs:
            raise InputError(
                f"the second stage would never begin: it starts after epoch {start}, and there are "
                f"{epochs}; lower --start_stage_two or allow more epochs"
            )
        values["start_stage_two"] = start
    return options.replace(values)
