"""What an epoch of a training costs, in a process that does nothing else.

python -m eqnet.bench_probe config.yaml answer.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np

from eqnet import training
from eqnet.bench_model import peak_rss
from eqnet.device import computing, find_device
from eqnet.errors import InputError
from eqnet.experiment import Experiment, build, prepare, problem_of
from eqnet.ops.timing import Clock
from eqnet.options import TrainOptions, resolve_choices
from eqnet.run_folder import read_yaml, write
from eqnet.training import Program

EPOCHS = 3  # after a first one, which compiles
MOST_STEPS = 100  # of an epoch that are made


def main(config: str, answer: str) -> int:
    """Measure the training of a file of options; returns the exit code."""
    options = read_options(config)
    device, double = find_device(options.run.device), options.run.default_dtype == "float64"
    try:
        with computing(device, double=double, what="a step of training"):
            found = measure(options) | {"platform": device.platform}
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    write(Path(answer), json.dumps(found, indent=1) + "\n")
    return 0


def read_options(config: str) -> TrainOptions:
    """Options of a training from its YAML file, choices resolved."""
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in read_yaml(Path(config)).items()}
    return resolve_choices(TrainOptions().replace(values))


def measure(options: TrainOptions) -> dict[str, Any]:
    """Seconds of an epoch, the smallest of a few, by two clocks and without compilation.

    Args:
        options: of a training, choices resolved.

    Returns:
        train_cpu, train_wall, valid_cpu, valid_wall: seconds of the steps of an epoch and of a
        validation; peak_rss_mb: most memory of this process.

    Raises:
        InputError: whatever is wrong with data or options; the model refuses them.
    """
    return measure_experiment(prepare(options, Path(options.data.train_file or "")))


def measure_experiment(
    experiment: Experiment, *, epochs: int = EPOCHS, most_steps: int = MOST_STEPS
) -> dict[str, Any]:
    """`measure` for data that are prepared; of an epoch at most so many steps are made."""
    train, valid = _epochs(experiment, most_steps)
    found = {"train": _smallest(*train, epochs), "valid": _smallest(*valid, epochs)}
    times = {
        f"{role}_{name}": seconds
        for role, clock in found.items()
        for name, seconds in clock._asdict().items()
    }
    return {**times, "peak_rss_mb": peak_rss() / 1e6}


Epoch = tuple[Callable[[int], float], Program]


def _epochs(experiment: Experiment, most_steps: int) -> tuple[Epoch, Epoch]:
    """Functions that go through an epoch and say what part of it that was; their programs."""
    options = experiment.options
    problem, loaders = problem_of(experiment, build(experiment))
    dtype = np.dtype(options.run.default_dtype)
    stage = training.stage_state(options.optimizer.lr, 0, 1000, (1.0, 1.0, 1.0), dtype)
    state = training.first_state(problem, stage, options.run.seed)
    step = Program(training.train_step(problem), donate=True)
    validation, weights = Program(problem.sums()), training.copied(state.params)

    def train(epoch: int) -> float:
        nonlocal state
        for graph, targets in islice(loaders["train"].batches(epoch), most_steps):
            state = step(state, graph, targets)
        jax.block_until_ready(state)
        return min(1.0, most_steps / loaders["train"].num_batches)

    def validate(epoch: int) -> float:
        batches = islice(loaders["valid"].batches(0), most_steps)
        jax.block_until_ready([validation(weights, *batch) for batch in batches])
        return min(1.0, most_steps / loaders["valid"].num_batches)

    return (train, step), (validate, validation)


def _smallest(go_through: Callable[[int], float], program: Program, epochs: int) -> Clock:
    """Seconds of a whole epoch without compilation."""
    clocks = []
    for epoch in range(epochs + 1):
        start, wall, cpu = Clock.now(), program.seconds, program.cpu_seconds
        part = go_through(epoch)
        spent = start.until_now()
        clocks.append(
            Clock(
                (spent.wall - program.seconds + wall) / part,
                (spent.cpu - program.cpu_seconds + cpu) / part,
            )
        )
    return Clock(min(c.wall for c in clocks[1:]), min(c.cpu for c in clocks[1:]))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
