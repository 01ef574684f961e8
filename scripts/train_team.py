"""`eqnet train` in several processes: how they meet, what all must share, what ends them all."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import jax

from eqnet.data.demo import demo_path
from eqnet.device import out_of_memory
from eqnet.errors import InputError, reason
from eqnet.experiment import Experiment
from eqnet.options import TrainOptions, free_options
from eqnet.potential import Potential
from eqnet.results import methods_of
from eqnet.run_folder import RunFolder, plain
from eqnet.scripts.train_command import TrainCommand
from eqnet.team import Team, join


def join_team(command: TrainCommand) -> Team:
    """The processes of the run."""
    if command.coordinator is not None:
        device = command.options.run.device
        return join(command.coordinator, command.num_processes, command.process_id, device)
    for name in ("num_processes", "process_id"):
        if getattr(command, name) is not None:
            raise InputError(f"--{name} has no effect without --coordinator HOST:PORT: add it")
    return Team()


@contextmanager
def run_folder(options: TrainOptions, team: Team) -> Iterator[RunFolder]:
    """Where the run is kept: by the first process; the others have one that is thrown away."""
    file = Path(options.data.train_file or demo_path())
    name = options.run.name or file.name.split(".")[0]
    if team.leads:
        yield RunFolder(options.run.work_dir, name)
        return
    with TemporaryDirectory() as apart:
        yield RunFolder(apart, name)


def check_same_everywhere(experiment: Experiment, potential: Potential, team: Team) -> None:
    """Refuse processes with other options, other data, or other ways to compute products."""
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


@contextmanager
def losing(team: Team) -> Iterator[None]:
    """The end of this process with a sentence when another one is lost."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if team.count == 1 or out_of_memory(error):
            raise
        print(
            "eqnet: error: another process of the run has ended or cannot be reached "
            f"({reason(error)}); the same command, with any number of "
            "processes, goes on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)  # at a usual end JAX would wait for the others, and then abort
