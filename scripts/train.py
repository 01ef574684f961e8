"""`eqnet train FILE [options]`: from labelled structures to a model file and a report.

eqnet train
eqnet train molecules.xyz --test_fraction 0.1 --r_max 5 --num_channels 32
eqnet train --config recipe.yaml molecules.xyz --name second --seed 1
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqnet.errors import InputError
from eqnet.options import TrainOptions, check, resolve_choices
from eqnet.scripts.train_command import find_files, read_command

if TYPE_CHECKING:
    from eqnet.experiment import Experiment
    from eqnet.potential import Potential
    from eqnet.progress import Progress
    from eqnet.run_folder import RunFolder
    from eqnet.team import Team


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
    from eqnet.scripts.train_team import join_team, run_folder

    team = join_team(command)
    progress = Progress(None if team.leads else Console(quiet=True))
    with _computing(options), run_folder(options, team) as folder:
        return _train(options, folder, progress, started, team)


@contextmanager
def _computing(options: TrainOptions) -> Iterator[None]:
    """Device and precision of the run; a device that is full ends it with a sentence."""
    import jax

    from eqnet.device import find_device, out_of_memory

    device = find_device(options.run.device)
    try:
        with jax.default_device(device), jax.enable_x64(options.run.default_dtype == "float64"):
            yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        where = "the host" if isinstance(error, MemoryError) else f"{device.platform}:{device.id}"
        raise InputError(
            f"{where} ran out of memory; lower --batch_size, "
            "--valid_batch_size or --num_channels, and go on with another --name"
        ) from None


def _train(
    options: TrainOptions, folder: RunFolder, progress: Progress, started: float, team: Team
) -> int:
    from eqnet.lock import Lock
    from eqnet.scripts.train_team import check_same_everywhere

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
    check_same_everywhere(experiment, potential, team)
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
    from eqnet.scripts.train_team import losing
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
        with losing(team):
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
