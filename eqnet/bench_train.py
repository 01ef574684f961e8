"""Benchmark of accuracy: trainings of the same length in time, on the same structures.

Everything is under one folder, and what is there is not done again:

    split.json                the structures of all runs
    VARIANT.yaml              options of a variant: of a tensor product, or of a model
    VARIANT.json              what an epoch costs, and how many fit into the time
    VARIANT-SEED.yaml         options of a run, for `eqnet train --config`
    VARIANT-SEED/             the run, as `eqnet train` leaves it
    VARIANT-SEED.nve.json     how well its model keeps the energy in a simulation
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from eqnet import bench_drift
from eqnet.bench_jobs import Cores, Job, work_off
from eqnet.bench_variants import Variant
from eqnet.errors import InputError
from eqnet.experiment import Experiment
from eqnet.metrics import QUANTITIES
from eqnet.options import TrainOptions, free_options
from eqnet.run_folder import RunFolder, plain, write


@dataclass(frozen=True)
class Work:
    """What every variant does.

    Attributes:
        options: of all runs; the structures of each role are fixed.
        files: SHA-256 of the files by role.
        minutes: of the loop of a training.
        out: folder.
        places: cores of the processes that run at a time.
        tell: takes a line of text for people.
        nve_ps: length of the simulation with each trained model, picoseconds; 0 for none.
        time_step: of the simulations, fs.
    """

    options: TrainOptions
    files: dict[str, str]
    minutes: float
    out: Path
    places: Sequence[Cores]
    tell: Callable[[str], None]
    nve_ps: float
    time_step: float


class Stopped(Exception):
    """A signal ended the work; what is done stays."""

    def __init__(self, signal: int):
        super().__init__(f"signal {signal}")
        self.signal = signal


def fix_split(experiment: Experiment, options: TrainOptions, out: Path) -> TrainOptions:
    """Options that give any seed the structures of an experiment, by a file of indices in `out`.

    Raises:
        InputError: the folder holds another split, or cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out} cannot be made ({error.strerror})") from None
    if options.data.split_file is not None:
        return options
    file = out / "split.json"
    parts = experiment.provenance()["split"]
    own = [role for role in parts if role == "train" or role not in experiment.datasets]
    text = json.dumps({role: parts[role]["frames"] for role in own}) + "\n"
    if file.exists() and file.read_text() != text:
        raise _other(out, "the structures of the training were others")
    write(file, text)
    drawn = ("num_train", "num_valid", "valid_fraction", "num_test", "test_fraction")
    return options.replace({**dict.fromkeys(drawn), "split_file": str(file)})


def _other(out: Path, what: str) -> InputError:
    return InputError(f"{out} holds another comparison ({what}): choose another --out")


# ------------------------------------------------------------------------------------- the runs


def train_all(variants: Sequence[Variant], work: Work) -> dict[Variant, dict[str, Any]]:
    """Probe, train and simulate with every variant.

    Returns:
        What was told of each, with its finished `runs` and their simulations, `nve`.

    Raises:
        InputError: the folder holds another comparison, or nothing could be trained.
        Stopped: by a signal.
    """
    refused: list[str] = []

    def refuse(text: str) -> None:
        refused.append(text)
        work.tell(f"note: {text}")

    plans = _plans(variants, work, refuse)
    _train(plans, work, refuse)
    found = {}
    for variant, plan in plans.items():
        runs = {seed: _results(variant, seed, work) for seed in _seeds(variant, work)}
        plan["runs"] = {seed: run for seed, run in runs.items() if _finished(run, plan)}
        if plan["runs"]:
            found[variant] = plan
    if not found:
        raise InputError(f"nothing could be trained: {refused[0]}")
    _simulate(found, work, refuse)
    return found


def _plans(
    variants: Sequence[Variant], work: Work, refuse: Callable[[str], None]
) -> dict[Variant, dict[str, Any]]:
    """What an epoch of each variant costs, and how many make up the time."""
    jobs = []
    for variant in variants:
        answer = work.out / f"{variant.name}.json"
        config = _write_config(variant, work, work.options.run.seed, {"name": variant.name})
        if not answer.exists():
            jobs.append(Job(variant.name, "eqnet.bench_probe", [str(config), str(answer)]))

    def ended(job: Job, code: int, error: str) -> None:
        if code:
            refuse(f"{job.name}: {error}")

    _work_off(jobs, work, ended)
    plans = {}
    for variant in variants:
        answer = work.out / f"{variant.name}.json"
        if not answer.exists():
            continue
        plan = json.loads(answer.read_text())
        seconds = _clock(plan, "train") + _clock(plan, "valid") / work.options.run.eval_interval
        plan["epochs"] = int(60 * work.minutes / seconds)
        if plan["epochs"] < 1:
            refuse(f"{variant.name}: an epoch takes {seconds:.3g} s, which is more than --minutes")
            continue
        plans[variant] = plan
        work.tell(f"{variant.name}: {seconds:.3g} s per epoch, {plan['epochs']} epochs")
    return plans


def _train(plans: dict[Variant, dict[str, Any]], work: Work, refuse: Callable[[str], None]) -> None:
    """Train what is not finished: the first seeds of all variants first."""
    jobs = {}
    for variant, plan in plans.items():
        for number, seed in enumerate(_seeds(variant, work)):
            name = f"{variant.name}-{seed}"
            values = {"name": name, "max_num_epochs": plan["epochs"]}
            config = _write_config(variant, work, seed, values)
            if not _finished(_results(variant, seed, work), plan):
                _drift_file(name, work).unlink(missing_ok=True)  # of weights that will change
                jobs[number, name] = Job(name, "eqnet.scripts.train", ["--config", str(config)])
    left = len(jobs)
    if jobs:
        work.tell(f"runs left: {left} of {work.minutes:g} minutes each, see {work.out}/*/log.txt")

    def ended(job: Job, code: int, error: str) -> None:
        nonlocal left
        left -= 1
        if code:
            refuse(f"{job.name}: {error}")
            return
        results = RunFolder(work.out, job.name).read_results()
        work.tell(
            f"{job.name}: {results.get('energy_per_atom_mae', float('nan')):.3g} meV/atom, "
            f"{results.get('forces_mae', float('nan')):.3g} meV/A; runs left: {left}"
        )

    order = sorted(jobs, key=lambda key: key[0])
    _work_off([jobs[key] for key in order], work, ended)


def _drift_file(name: str, work: Work) -> Path:
    return work.out / f"{name}.nve.json"


def _simulate(
    found: dict[Variant, dict[str, Any]], work: Work, refuse: Callable[[str], None]
) -> None:
    """Adds the answers of the simulations at constant energy to what is found, as `nve`."""
    names = [
        f"{variant.name}-{seed}"
        for variant, plan in found.items()
        for seed in (plan["runs"] if work.nve_ps else ())
    ]
    answers = {name: _drift_file(name, work) for name in names}
    asked = bench_drift.asked(work.nve_ps, work.time_step)

    def read(name: str) -> dict[str, Any]:
        """The answer to what is asked now, if it is there."""
        file = answers.get(name)
        answer = json.loads(file.read_text()) if file is not None and file.exists() else {}
        return answer if asked.items() <= answer.items() else {}

    length = [str(work.nve_ps), str(work.time_step)]
    jobs = [
        Job(name, "eqnet.bench_drift", [str(work.out / f"{name}.yaml"), str(file), *length])
        for name, file in answers.items()
        if not read(name)
    ]
    if jobs:
        work.tell(f"simulations left: {len(jobs)} of {work.nve_ps:g} ps each")

    def ended(job: Job, code: int, error: str) -> None:
        if code:
            refuse(f"{job.name}: {error}")
        elif why := read(job.name)["unstable"]:
            work.tell(f"{job.name}: the simulation is unstable: {why}")

    _work_off(jobs, work, ended)
    for variant, plan in found.items():
        plan["nve"] = [x for x in (read(f"{variant.name}-{seed}") for seed in plan["runs"]) if x]


def _work_off(jobs: Sequence[Job], work: Work, ended: Callable[[Job, int, str], None]) -> None:
    signal = work_off(jobs, work.places, ended)
    if signal is not None:
        raise Stopped(signal)


def _write_config(variant: Variant, work: Work, seed: int, values: dict[str, Any]) -> Path:
    """The options of a run as YAML; what is there must be the same.

    Raises:
        InputError: the folder holds another comparison.
    """
    values = {"seed": seed, "work_dir": str(work.out), **values}
    options = variant.applied(work.options).replace(values)
    path = work.out / f"{values['name']}.yaml"
    header = "".join(f"# {role} {digest}\n" for role, digest in sorted(work.files.items()))
    text = header + yaml.safe_dump(plain(options.flat()), sort_keys=False)
    if path.exists():
        before, free = path.read_text(), free_options(options)
        if before.splitlines()[: len(work.files)] != header.splitlines():
            raise _other(work.out, "on other files")
        old = yaml.safe_load(before)
        for name, value in plain(options.flat()).items():
            if old.get(name) != value and name not in free:
                raise _other(work.out, f"{name} was {old.get(name)}, is {value}")
    write(path, text)
    return path


def _seeds(variant: Variant, work: Work) -> range:
    first = work.options.run.seed
    return range(first, first + variant.seeds)


def _results(variant: Variant, seed: int, work: Work) -> dict[str, Any]:
    return RunFolder(work.out, f"{variant.name}-{seed}").read_results()


def _clock(plan: dict[str, Any], role: str) -> float:
    """Seconds by the clock to trust: of all threads on a CPU, of the wall beside a device."""
    return plan[f"{role}_{'cpu' if plan['platform'] == 'cpu' else 'wall'}"]


# ------------------------------------------------------------------------------------- the table


def rows(
    found: dict[Variant, dict[str, Any]], speeds: dict[str, dict[str, Any]], work: Work
) -> list[dict[str, Any]]:
    """One row of plain values for each variant: means over the seeds, and standard deviations.

    Args:
        found: result of `train_all`.
        speeds: what else was measured, by name of the variant.
        work: what they did.
    """
    return [
        {
            **variant.columns(work.options),
            "seeds": len(plan["runs"]),
            **_lengths(plan),
            **speeds[variant.name],
            "peak_rss_mb": plan["peak_rss_mb"],
            **bench_drift.columns(plan["nve"]),
            **_errors(list(plan["runs"].values())),
        }
        for variant, plan in found.items()
    ]


def _finished(run: dict[str, Any], plan: dict[str, Any]) -> bool:
    """Whether a run has ended, at the length of the plan."""
    return bool(run.get("complete")) and run["limits"]["max_num_epochs"] == plan["epochs"]


def _lengths(plan: dict[str, Any]) -> dict[str, Any]:
    """Epochs of a run and the time they took, the mean over the seeds."""
    clock = "cpu" if plan["platform"] == "cpu" else "wall"
    runs = list(plan["runs"].values())
    seconds = mean(run[f"loop_{clock}_seconds"] for run in runs)
    epochs = mean(run["epochs"] for run in runs)  # done, which may be fewer than planned
    return {
        "epochs": epochs,
        "clock": clock,
        "train_minutes": seconds / 60,
        "s_per_epoch": seconds / epochs,
    }


def _errors(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and sample standard deviation of the test errors; None where there are none."""
    found: dict[str, Any] = {}
    for key in [f"{quantity}_{kind}" for quantity in QUANTITIES for kind in ("mae", "rmse")]:
        values = [run[key] for run in runs if key in run]
        found[key] = mean(values) if values else None
        found[f"{key}_std"] = stdev(values) if len(values) > 1 else None
    return found
