"""The options of a training run: frozen dataclasses of plain values, no JAX.

One group per part of the program that takes it whole. On the command line and in YAML files the
groups are flat: names are unique. An option that belongs to a choice (`ema_decay` to `ema`) is None
until it is set; `resolve` fills in what the choices need and refuses what would have no effect.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from eqnet.errors import InputError
from eqnet.model_options import ModelOptions, default


@dataclass(frozen=True)
class DataOptions:
    """Structures, labels and their split."""

    train_file: Annotated[
        str | None, tyro.conf.Positional, default("the built-in example", "FILE")
    ] = None
    """Labelled structures: extxyz, anything ASE reads, or a store (eV, angstrom)."""
    valid_file: Annotated[str | None, default("a part of FILE", "FILE")] = None
    """Validation structures."""
    test_file: Annotated[str | None, default("a part of FILE, or none", "FILE")] = None
    """Test structures; their errors end the run."""
    num_train: Annotated[int | None, default("the rest", "INT")] = None
    """Training structures drawn from FILE."""
    num_valid: Annotated[int | None, default("by fraction", "INT")] = None
    """Validation structures drawn from FILE."""
    valid_fraction: Annotated[float | None, default("0.1", "FLOAT")] = None
    """Validation structures drawn from FILE, as a fraction."""
    num_test: Annotated[int | None, default("0", "INT")] = None
    """Test structures drawn from FILE."""
    test_fraction: Annotated[float | None, default("0", "FLOAT")] = None
    """Test structures drawn from FILE, as a fraction."""
    split_file: Annotated[str | None, default("a random split", "FILE")] = None
    """JSON file with indices of frames of FILE: {"train": [...], "valid": [...], "test": [...]}."""
    energy_key: Annotated[str | None, default("found", "KEY")] = None
    """Name of the energy in the file."""
    forces_key: Annotated[str | None, default("found", "KEY")] = None
    """Name of the forces in the file."""
    stress_key: Annotated[str | None, default("found", "KEY")] = None
    """Name of the stress in the file (ASE sign, eV/A^3)."""
    virials_key: Annotated[str | None, default("found", "KEY")] = None
    """Name of the virials in the file (eV)."""
    E0s: str = "auto"
    """Energies of isolated atoms: auto, isolated (from IsolatedAtom frames), average,
    least_squares, or given in eV as "{1: -13.6, 8: -2041.8}"."""
    allow: Annotated[str | None, default("none", "KIND,KIND")] = None
    """Errors in the data that do not stop the run: overlap, forces_sign, stress_sign, zero_forces,
    E0s; see `eqnet check`."""


@dataclass(frozen=True)
class LossOptions:
    """The loss: what the weights are fitted to."""

    loss: Literal["mse", "huber", "l1"] = "l1"
    """Measure of the errors; l1 takes the length of the error of a force, the others components."""
    huber_delta: Annotated[float | None, default("0.01 with huber", "FLOAT")] = None
    """Error at which huber turns from quadratic to linear (eV/atom, eV/A, eV/A^3)."""
    energy_weight: Annotated[float | None, default("5 with l1, else 1", "FLOAT")] = None
    """Weight of the energy per atom."""
    forces_weight: Annotated[float | None, default("10 with l1, else 100", "FLOAT")] = None
    """Weight of the forces."""
    stress_weight: Annotated[float | None, default("with stress: 50 with l1, else 1", "FLOAT")] = (
        None
    )
    """Weight of the stress."""


@dataclass(frozen=True)
class StageTwoOptions:
    """A second stage of training with weights of its own, usually towards the energy."""

    stage_two: bool = False
    """Train a second stage."""
    start_stage_two: Annotated[int | None, default("after 3/4 of the epochs", "EPOCH")] = None
    """Epochs before the second stage."""
    stage_two_energy_weight: Annotated[float | None, default("50 with l1, else 1000", "FLOAT")] = (
        None
    )
    """Weight of the energy per atom in the second stage."""
    stage_two_forces_weight: Annotated[float | None, default("10 with l1, else 100", "FLOAT")] = (
        None
    )
    """Weight of the forces in the second stage."""
    stage_two_stress_weight: Annotated[
        float | None, default("with stress: 50 with l1, else 10", "FLOAT")
    ] = None
    """Weight of the stress in the second stage."""
    stage_two_lr: Annotated[float | None, default("lr / 10", "FLOAT")] = None
    """Learning rate at the start of the second stage."""


@dataclass(frozen=True)
class OptimizerOptions:
    """Optimiser, learning rate and average of the weights."""

    optimizer: Literal["adam", "amsgrad", "adamw", "muon"] = "adam"
    """Optimiser; muon orthogonalises the updates of matrices and leaves the rest to adam."""
    lr: float = 0.01
    """Learning rate."""
    weight_decay: Annotated[float | None, default("0, with adamw 0.01", "FLOAT")] = None
    """Decoupled decay (times lr) of weights with two or more axes."""
    clip_grad: float = 10.0
    """Largest norm of the gradient of all weights; 0 for no limit."""
    ema: bool = True
    """Validate and keep an exponential moving average of the weights."""
    ema_decay: Annotated[float | None, default("0.99", "FLOAT")] = None
    """Decay of the average per step; min(decay, (1 + step) / (10 + step)), so that short runs
    forget their start."""
    scheduler: Literal["cosine", "plateau", "exponential", "constant"] = "cosine"
    """Course of the learning rate within a stage."""
    warmup_steps: int = 0
    """Steps of linear growth of the learning rate at the start."""
    lr_final: Annotated[float | None, default("0.01 with cosine", "FLOAT")] = None
    """End of the cosine as a fraction of lr."""
    lr_factor: Annotated[float | None, default("0.8 with plateau", "FLOAT")] = None
    """Factor of the learning rate at a plateau of the validation loss."""
    scheduler_patience: Annotated[int | None, default("50 with plateau", "EPOCHS")] = None
    """Epochs without improvement that make a plateau."""
    lr_scheduler_gamma: Annotated[float | None, default("0.9993 with exponential", "FLOAT")] = None
    """Factor of the learning rate per epoch."""


@dataclass(frozen=True)
class RunOptions:
    """Length of the run, batches, device and where the results go."""

    name: Annotated[str | None, default("of FILE", "NAME")] = None
    """Name of the run and of its model."""
    work_dir: str = "runs"
    """Folder of the runs; the run is in WORK_DIR/NAME. The same command again goes on with it."""
    seed: int = 0
    """Seed of weights, split and order of the data."""
    batch_size: int = 5
    """Structures per step."""
    valid_batch_size: Annotated[int | None, default("4 times batch_size", "INT")] = None
    """Structures per step of the validation."""
    max_num_epochs: Annotated[int | None, default("as many as make 20000 steps", "INT")] = None
    """Passes through the training structures."""
    max_num_steps: Annotated[int | None, default("no limit", "INT")] = None
    """End after so many steps, even within an epoch."""
    max_minutes: Annotated[float | None, default("no limit", "FLOAT")] = None
    """Wall-clock limit: end cleanly with what has been reached. Does not change the schedule."""
    patience: Annotated[int | None, default("no limit", "EPOCHS")] = None
    """End (or begin the second stage) after so many epochs without a better validation loss."""
    eval_interval: int = 1
    """Epochs between validations."""
    drift_ps: float = 0.0
    """Picoseconds of dynamics at constant energy (steps of 0.5 fs) when the training is complete,
    from the first validation structure at 300 K: results.json, the report and the model file then
    say how its energy drifts. 0 for none."""
    checkpoint_interval: float = 60.0
    """Seconds between checkpoints; the numbers of a resumed run do not depend on it."""
    default_dtype: Literal["float32", "float64"] = "float32"
    """Precision of weights and arithmetic on the device."""
    device: Annotated[str | None, default("JAX's choice", "{cpu,gpu,...}")] = None
    """Device to train on."""
    wandb_project: Annotated[str | None, default("off", "NAME")] = None
    """Also send the metrics to this project of Weights & Biases (needs the extra `wandb`)."""


@dataclass(frozen=True)
class TrainOptions:
    """Train a potential on a file of labelled structures.

    Everything goes to WORK_DIR/NAME. The same command again goes on where an interrupted run
    stopped, with the same numbers as a run without interruption.
    """

    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    stage_two: StageTwoOptions = field(default_factory=StageTwoOptions)
    run: RunOptions = field(default_factory=RunOptions)

    def flat(self) -> dict[str, Any]:
        """Every option by its name, in order."""
        return {name: value for _, name, value in self._walk()}

    def replace(self, values: Mapping[str, Any]) -> TrainOptions:
        """The same options with some values changed, given by name."""
        groups: dict[str, dict[str, Any]] = {}
        homes = {name: group for group, name, _ in self._walk()}
        for name, value in values.items():
            groups.setdefault(homes[name], {})[name] = value
        changed = {
            group: dataclasses.replace(getattr(self, group), **values)
            for group, values in groups.items()
        }
        return dataclasses.replace(self, **changed)

    def _walk(self) -> Iterator[tuple[str, str, Any]]:
        for group in dataclasses.fields(self):
            values = getattr(self, group.name)
            for option in dataclasses.fields(values):
                yield group.name, option.name, getattr(values, option.name)


def free_options(options: TrainOptions) -> frozenset[str]:
    """Options that may differ when a run goes on: they leave the steps already made as they are."""
    names = {"max_minutes", "checkpoint_interval", "drift_ps", "wandb_project", "work_dir", "allow"}
    names |= {
        "train_file",
        "valid_file",
        "test_file",
        "split_file",
    }  # their content is compared instead
    if not options.stage_two.stage_two:
        names.add("patience")
        # The cosine knows the end from the start; a validation between two others stands there.
        if options.optimizer.scheduler != "cosine" and options.run.eval_interval == 1:
            names |= {"max_num_epochs", "max_num_steps"}
    return frozenset(names)


_POSITIVE = {
    "r_max", "lr", "batch_size", "valid_batch_size", "max_num_epochs", "max_num_steps",
    "max_minutes", "patience", "eval_interval", "num_channels", "num_interactions", "correlation",
    "num_radial_basis", "num_cutoff_basis", "MLP_channels", "huber_delta", "num_train", "num_valid",
    "scheduler_patience", "start_stage_two", "stage_two_lr", "rank", "num_heads",
    "alpha_channels", "value_channels", "hidden_channels", "ffn_channels", "edge_channels",
    "grid_resolution", "num_frames",
}  # fmt: skip
_NOT_NEGATIVE = {
    "energy_weight", "forces_weight", "stress_weight", "stage_two_energy_weight",
    "stage_two_forces_weight", "stage_two_stress_weight", "weight_decay", "clip_grad",
    "warmup_steps", "checkpoint_interval", "drift_ps", "num_test", "max_L", "max_ell", "m_max",
    "seed",
}  # fmt: skip
_FRACTION = {"valid_fraction", "test_fraction", "ema_decay", "lr_factor", "lr_scheduler_gamma"}
_CLOSED_FRACTION = {"lr_final"}


def check(options: TrainOptions) -> None:
    """Refuse values outside their range and options without effect.

    Raises:
        InputError: naming the option and what to write instead.
    """
    for name, value in options.flat().items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            _check_range(name, value)
    _check_effect(options)
    _check_split(options.data)
    if options.loss.energy_weight == 0 and options.loss.forces_weight == 0:
        if not options.loss.stress_weight:
            raise InputError("all weights of the loss are 0: give energy_weight or forces_weight")
    if 0 < 1000 * options.run.drift_ps < 0.5:
        raise InputError("drift_ps must be 0, or at least 0.0005, a step of the simulation")
    name = options.run.name
    if name is not None and (not name.strip(". ") or any(c in name for c in "/\\\0")):
        raise InputError(f"name must be a plain file name, not {name!r}; use work_dir for folders")


def _check_range(name: str, value: float) -> None:
    if value != value or abs(value) == float("inf"):
        raise InputError(f"{name} must be a finite number, not {value}")
    if name in _POSITIVE and value <= 0:
        raise InputError(f"{name} must be greater than 0, not {value}")
    if name in _NOT_NEGATIVE and value < 0:
        raise InputError(f"{name} must not be negative, not {value}")
    if name in _FRACTION and not 0 < value < 1:
        raise InputError(f"{name} must be between 0 and 1, not {value}")
    if name in _CLOSED_FRACTION and not 0 <= value <= 1:
        raise InputError(f"{name} must be from 0 to 1, not {value}")
    if name in ("max_L", "max_ell") and value > 11:
        raise InputError(f"{name} must be at most 11, not {value}")


def _check_effect(options: TrainOptions) -> None:
    """An option of a choice that was not made would silently do nothing."""
    optimizer, stage_two = options.optimizer, options.stage_two
    needs = {
        "huber_delta": ("--loss huber", options.loss.loss == "huber"),
        "ema_decay": ("--ema", optimizer.ema),
        "lr_final": ("--scheduler cosine", optimizer.scheduler == "cosine"),
        "lr_factor": ("--scheduler plateau", optimizer.scheduler == "plateau"),
        "scheduler_patience": ("--scheduler plateau", optimizer.scheduler == "plateau"),
        "lr_scheduler_gamma": ("--scheduler exponential", optimizer.scheduler == "exponential"),
        **{
            option.name: ("--stage_two", stage_two.stage_two)
            for option in dataclasses.fields(stage_two)
            if option.name != "stage_two"
        },
    }
    values = options.flat()
    for name, (need, there) in needs.items():
        if values[name] is not None and not there:
            raise InputError(f"--{name} has no effect without {need}: add it or leave --{name} out")
    if options.model.hidden_irreps:
        for name in ("num_channels", "max_L", "parity"):
            if values[name] is not None:
                raise InputError(
                    f"--{name} has no effect with --hidden_irreps, which says it: leave it out"
                )
    last, epochs = stage_two.start_stage_two, options.run.max_num_epochs
    if last is not None and epochs is not None and last >= epochs:
        raise InputError(
            f"--start_stage_two {last} has no effect with --max_num_epochs {epochs}: lower it"
        )


def _check_split(data: DataOptions) -> None:
    pairs = [
        ("num_valid", "valid_fraction"),
        ("num_test", "test_fraction"),
        ("valid_file", "num_valid"),
        ("valid_file", "valid_fraction"),
        ("test_file", "num_test"),
        ("test_file", "test_fraction"),
        ("stress_key", "virials_key"),
        *(
            ("split_file", name)
            for name in ("num_train", "num_valid", "valid_fraction", "num_test", "test_fraction")
        ),
    ]
    for one, other in pairs:
        if getattr(data, one) is not None and getattr(data, other) is not None:
            raise InputError(f"--{one} and --{other} say the same thing twice: give one of them")


def resolve_choices(options: TrainOptions) -> TrainOptions:
    """Fill in the defaults that follow from other options (not from the data)."""
    optimizer, values = options.optimizer, {}
    l1, data = options.loss.loss == "l1", options.data
    drawn = data.valid_file is None and data.num_valid is None and data.split_file is None
    defaults: list[tuple[str, bool, Any]] = [
        ("valid_fraction", drawn, 0.1),
        ("energy_weight", True, 5.0 if l1 else 1.0),
        ("forces_weight", True, 10.0 if l1 else 100.0),
        ("huber_delta", options.loss.loss == "huber", 0.01),
        ("weight_decay", True, 0.01 if optimizer.optimizer == "adamw" else 0.0),
        ("ema_decay", optimizer.ema, 0.99),
        ("lr_final", optimizer.scheduler == "cosine", 0.01),
        ("lr_factor", optimizer.scheduler == "plateau", 0.8),
        ("scheduler_patience", optimizer.scheduler == "plateau", 50),
        ("lr_scheduler_gamma", optimizer.scheduler == "exponential", 0.9993),
        ("stage_two_energy_weight", options.stage_two.stage_two, 50.0 if l1 else 1000.0),
        ("stage_two_forces_weight", options.stage_two.stage_two, 10.0 if l1 else 100.0),
        ("stage_two_lr", options.stage_two.stage_two, optimizer.lr / 10),
        ("valid_batch_size", True, 4 * options.run.batch_size),
    ]
    given = options.flat()
    for name, wanted, value in defaults:
        if wanted and given[name] is None:
            values[name] = value
    return options.replace(values)
