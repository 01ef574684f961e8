"""`eqnet train FILE [options]`: from labelled structures to a model file and a report.

eqnet train
eqnet train molecules.xyz --test_fraction 0.1 --r_max 5 --num_channels 32
eqnet train --config recipe.yaml molecules.xyz --name second --seed 1
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from eqnet.errors import InputError
from eqnet.options import DataOptions, TrainOptions, check, resolve_choices

if TYPE_CHECKING:
    from eqnet.experiment import Experiment
    from eqnet.potential import Potential
    from eqnet.progress import Progress
    from eqnet.run_folder import RunFolder
    from eqnet.team import Team


@dataclass(frozen=True)
class TrainCommand:
    """Train a potential on a file of labelled structures.

    Everything goes to WORK_DIR/NAME. The same command again goes on where an interrupted run
    stopped, with the same numbers as a run without interruption.
    """

    options: TrainOptions = field(default_factory=TrainOptions)
    config: Annotated[
        str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: none)")
    ] = None
    """YAML file of options by the names below; what is given here wins over it."""
    coordinator: Annotated[
        str | None, tyro.conf.arg(metavar="HOST:PORT|auto", help_behavior_hint="(default: none)")
    ] = None
    """Train in several processes, each with a part of every batch: run the command once for each,
    with the address of the first; auto where Slurm, Open MPI or Kubernetes start them."""
    num_processes: Annotated[
        int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: as started)")
    ] = None
    """How many processes there are, with --coordinator HOST:PORT."""
    process_id: Annotated[
        int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: as started)")
    ] = None
    """Which of them this is, from 0, with --coordinator HOST:PORT."""


# What `eqnet train` alone does: the built-in example, in a few minutes on two cores.
DEMO: dict[str, Any] = {
    "name": "ethanol",
    "num_train": 450,
    "num_valid": 50,
    "num_test": 100,
    "r_max": 4.0,
    "num_channels": 32,
    "max_num_epochs": 80,
}
# Options that take the place of each other.
INSTEAD = (
    {"num_train", "split_file"},
    {"num_valid", "valid_fraction", "valid_file", "split_file"},
    {"num_test", "test_fraction", "test_file", "split_file"},
    {"num_channels", "hidden_irreps", "preset"},
    {"max_num_epochs", "max_num_steps"},
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    started = time.monotonic()
    command = read_command(list(sys.argv[1:] if argv is None else argv))
    options = command.options
    check(options)
    find_files(options.data)
    from eqnet.data.findings import allowed

    allowed(options.data.allow)
    options = resolve_choices(options)
    if options.run.wandb_project is not None and find_spec("wandb") is None:
        raise InputError("--wandb_project needs the package wandb: pip install wandb")
    from rich.console import Console

    from eqnet.progress import Progress

    team = _team(command)
    progress = Progress(None if team.leads else Console(quiet=True))
    with _computing(options), _run_folder(options, team) as folder:
        return _train(options, folder, progress, started, team)


def _team(command: TrainCommand) -> Team:
    """The processes of the run."""
    from eqnet.team import Team, join

    if command.coordinator is not None:
        device = command.options.run.device
        return join(command.coordinator, command.num_processes, command.process_id, device)
    for name in ("num_processes", "process_id"):
        if getattr(command, name) is not None:
            raise InputError(f"--{name} has no effect without --coordinator HOST:PORT: add it")
    return Team()


@contextmanager
def _run_folder(options: TrainOptions, team: Team) -> Iterator[RunFolder]:
    """Where the run is kept: by the first process; the others have one that is thrown away."""
    from eqnet.data.demo import demo_path
    from eqnet.run_folder import RunFolder

    file = Path(options.data.train_file or demo_path())
    name = options.run.name or file.name.split(".")[0]
    if team.leads:
        yield RunFolder(options.run.work_dir, name)
        return
    with TemporaryDirectory() as apart:
        yield RunFolder(apart, name)


def find_files(data: DataOptions) -> None:
    """Refuse a missing file before JAX is loaded, which takes seconds."""
    for path in (data.train_file, data.valid_file, data.test_file, data.split_file):
        if path is not None and not Path(path).exists():
            raise InputError(f"{path}: there is no such file")


def read_command(argv: list[str], kind: type[Any] = TrainCommand, name: str = "train") -> Any:
    """A command line: its flags, then the options of --config, then the defaults.

    `kind` has the fields `options` and `config`, and what else its command takes.
    """
    from eqnet.scripts.command_line import from_file, parse

    argv = file_first(argv)
    file, options = value_of("config", argv), TrainOptions()
    if file is not None:
        options = options.replace(from_file(TrainOptions, Path(file)))
    command = parse(kind, argv, command=name, default=kind(options=options, config=file))
    if command.options.data.train_file is None:
        command = replace(command, options=with_demo(command.options))
    return command


def with_demo(options: TrainOptions) -> TrainOptions:
    """The settings of the built-in example, as far as nothing else was asked for."""
    plain = TrainOptions().flat()
    given = {name: value for name, value in options.flat().items() if value != plain[name]}
    settings = dict(DEMO)
    for alternatives in INSTEAD:
        if alternatives & set(given):
            settings = {k: v for k, v in settings.items() if k not in alternatives}
    return options.replace({**settings, **given})


def file_first(argv: list[str]) -> list[str]:
    """`--train_file FILE`, as it is spelt in YAML, is FILE."""
    for i, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name.replace("-", "_") == "__train_file":
            rest = argv[:i] + argv[i + 1 + (not equals) :]
            if not equals and i + 1 == len(argv):
                raise InputError("--train_file needs the name of a file")
            return [value if equals else argv[i + 1], *rest]
    return argv


def value_of(option: str, argv: list[str]) -> str | None:
    """What follows --option, or comes after its `=`; None if it is not there."""
    for i, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name == f"--{option}":
            return value if equals else (argv[i + 1] if i + 1 < len(argv) else None)
    return None


@contextmanager
def _computing(options: TrainOptions) -> Iterator[None]:
    """Device and precision of the run; a device that is full ends it with a sentence."""
    import jax

    from eqnet.device import find_device

    device = find_device(options.run.device)
    try:
        with jax.default_device(device), jax.enable_x64(options.run.default_dtype == "float64"):
            yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(
            f"{device.platform}:{device.id} ran out of memory; lower --batch_size, "
            "--valid_batch_size or --num_channels, and go on with another --name"
        ) from None


def _train(
    options: TrainOptions, folder: RunFolder, progress: Progress, started: float, team: Team
) -> int:
    from eqnet.lock import Lock

    try:
        prepared = _prepare(options, folder, progress)
    except InputError:
        team.any(True)
        raise
    if team.any(False):
        raise InputError("another process of the run was refused, see its message")
    if team.any(prepared is None) or prepared is None:
        return 0
    experiment, potential = prepared
    _check_same_everywhere(experiment, potential, team)
    data = experiment.provenance()
    with _writing(folder):
        folder.path.mkdir(parents=True, exist_ok=True)
    with _writing(folder), Lock(folder.lock, progress.tell):
        progress.open_log(folder.log)
        if folder.exists:
            folder.check_same(experiment.options, data)  # it may have been made meanwhile
            if note := folder.other_versions(data):
                progress.tell(note)
        folder.write_config(experiment.options, data)
        return _fit(experiment, potential, folder, progress, started, team)


def _check_same_everywhere(experiment: Experiment, potential: Potential, team: Team) -> None:
    """Refuse processes with other options, other data, or other ways to compute products."""
    from eqnet.options import free_options
    from eqnet.results import methods_of
    from eqnet.run_folder import plain

    options, free = experiment.options, free_options(experiment.options)
    facts = {name: v for name, v in plain(options.flat()).items() if name not in free}
    data = experiment.provenance()
    facts |= {"files": data["files"], "versions": data["versions"]}
    text = json.dumps(facts | {"methods": methods_of(potential.model)}, sort_keys=True)
    here = hashlib.sha256(text.encode()).hexdigest()
    if team.any(team.text_from_first(here) != here):
        raise InputError(
            "the processes of the run differ in their options, files, versions or, with --method "
            "auto, in the methods that are fastest for them: start all with the same command"
        )


def _prepare(
    options: TrainOptions, folder: RunFolder, progress: Progress
) -> tuple[Experiment, Potential] | None:
    """The data and the first weights, all that can be wrong found; None if the run is finished."""
    from eqnet.data.demo import demo_path
    from eqnet.data.findings import find, refuse
    from eqnet.experiment import build, prepare
    from eqnet.run_folder import check_can_go_on

    file = Path(options.data.train_file or demo_path())
    options = options.replace({"name": folder.name})
    folder.check_free()
    experiment = prepare(options, file)
    train = experiment.datasets["train"]
    found = find(train, experiment.frames, experiment.items, experiment.references)
    warnings = refuse(found, options.data.allow)
    data = experiment.provenance()
    if folder.exists:
        folder.check_same(experiment.options, data)
        if _is_finished(folder, experiment, progress):
            return None
        check_can_go_on(folder.path)
    potential = build(experiment)
    _show_data(progress, experiment, warnings)
    return experiment, potential


@contextmanager
def _writing(folder: RunFolder) -> Iterator[None]:
    """What the system refuses, such as writing to a full disk, becomes a sentence."""
    try:
        yield
    except BrokenPipeError:  # of the terminal, no file
        raise
    except OSError as error:
        raise InputError(
            f"{error.filename or folder.path}: {error.strerror or error}; mend that and run the "
            "same command again, it goes on from the last checkpoint"
        ) from None


def _is_finished(folder: RunFolder, experiment: Experiment, progress: Progress) -> bool:
    from eqnet.results import limits

    results = folder.read_results()
    if not results.get("complete") or results.get("limits") != limits(experiment):
        return False
    progress.tell(
        f"{folder.path} is finished (ended after {results['ended_after']}): see "
        f"{folder.path / 'report.html'}; train under another --name, or delete the folder first"
    )
    return True


def _show_data(progress: Progress, experiment: Experiment, warnings: Sequence[str]) -> None:
    """What was read and what was derived from it."""
    from eqnet.scripts.train_tables import energies_table, label_table, split_line

    for data in experiment.datasets.values():
        progress.show(label_table(data.report))
        for note in data.report.notes:
            progress.tell(f"note: {note}")
    progress.show(energies_table(experiment))
    for note in (*experiment.references.notes, *experiment.notes):
        progress.tell(f"note: {note}")
    for warning in warnings:
        progress.tell(f"WARNING: {warning}")
    progress.tell(split_line(experiment))


def _fit(
    experiment: Experiment,
    potential: Potential,
    folder: RunFolder,
    progress: Progress,
    started: float,
    team: Team,
) -> int:
    from eqnet.checkpoint import Checkpoints
    from eqnet.experiment import problem_of
    from eqnet.fit import Fit
    from eqnet.results import finish, methods_of
    from eqnet.run_folder import History
    from eqnet.scripts.train_tables import method_line, model_line, waste_line
    from eqnet.team import leave

    options = experiment.options
    problem, loaders = problem_of(experiment, potential, team.index, team.count)
    if team.count > 1:
        progress.tell(f"{team.count} processes share every batch")
    progress.tell(waste_line(loaders))
    progress.tell(model_line(problem, options))
    if options.model.method == "auto":
        progress.tell(method_line(methods_of(potential.model)))
    checkpoints = Checkpoints(folder.checkpoints, tell=progress.tell)
    checkpoints.remove_leftovers()
    with _sending(options, progress, team.leads):
        fit = Fit(
            problem,
            options,
            loaders["train"],
            loaders["valid"],
            checkpoints=checkpoints,
            history=History(folder.path),
            progress=progress,
            started=started,
            team=team,
        )
        with _losing(team):
            outcome = fit.run()
        leave(team)
        if outcome.signal is not None:
            progress.tell(
                f"stopped by signal {outcome.signal} after step {outcome.position.step}, which is "
                "saved; the same command goes on from there"
            )
            return 128 + outcome.signal
        if not team.leads:
            return 0
        progress.tell(
            f"training ended after {outcome.reason}; evaluating, and "
            "writing model files with their examples and uncertainty"
        )
        results = finish(folder, experiment, problem, outcome, tell=progress.tell)
    _show_results(progress, experiment, folder, results)
    return 0


@contextmanager
def _losing(team: Team) -> Iterator[None]:
    """The end of this process with a sentence when another one is lost."""
    import jax

    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if team.count == 1 or "RESOURCE_EXHAUSTED" in str(error):
            raise
        print(
            "eqnet: error: another process of the run has ended or cannot be reached "
            f"({str(error).splitlines()[0][:200]}); the same command, with any number of "
            "processes, goes on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)  # at a usual end JAX would wait for the others, and then abort


@contextmanager
def _sending(options: TrainOptions, progress: Progress, leads: bool = True) -> Iterator[None]:
    """Send rows of the history to Weights & Biases, if that was asked for."""
    project = options.run.wandb_project
    if project is None or not leads:
        yield
        return
    import wandb  # pyright: ignore[reportMissingImports]

    run = wandb.init(
        project=project, name=options.run.name, id=options.run.name, resume="allow",
        config=options.flat(), dir=options.run.work_dir,
    )  # fmt: skip
    progress.listeners.append(lambda row: run.log(row, step=row["step"]))
    try:
        yield
    finally:
        run.finish()


def _show_results(
    progress: Progress, experiment: Experiment, folder: RunFolder, results: dict[str, Any]
) -> None:
    from eqnet import metrics
    from eqnet.data.part import take
    from eqnet.evaluation import naive

    lost = results.get("not_finite", [])
    test = experiment.frames.get("test", [])
    test = take(test, [i for i, frame in enumerate(test) if frame.name not in lost])
    if test:
        progress.show(metrics.table(results, metrics.errors(test, naive(test))))
        progress.tell("naive: composition energies fitted to the test labels, no forces")
    elif not lost:
        progress.tell("no test structures: --test_file, --num_test or --test_fraction gives some")
    frame = experiment.frames["valid"][0]  # the last one of the file may be an isolated atom
    structure = f"{frame.file} --index {frame.index}"
    progress.tell(f"model:  {folder.best_model}")
    progress.tell(f"report: {folder.path / 'report.html'}")
    if not results["complete"]:
        progress.tell("the run is not complete: the same command goes on with it")
    progress.tell(f"next:   eqnet md {folder.best_model} {structure} --temperature 300")


if __name__ == "__main__":
    from eqnet.scripts import run

    sys.exit(run("train"))
