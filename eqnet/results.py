"""The end of a run: model files, test errors, report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eqnet import energy_drift, metrics, model_file
from eqnet.data.elements import symbol
from eqnet.data.frame import Frame
from eqnet.data.part import take
from eqnet.equivariance import answers_and_error, is_rounding, sentence
from eqnet.errors import InputError
from eqnet.evaluation import Answer, evaluate, finite
from eqnet.experiment import Experiment
from eqnet.potential import Potential
from eqnet.report import label_table, write_report
from eqnet.run_folder import RunFolder
from eqnet.training import Outcome, Problem
from eqnet.uncertainty import calibrate

NUM_EXAMPLES = 3  # structures with answers in a model file


def finish(
    folder: RunFolder,
    experiment: Experiment,
    problem: Problem,
    outcome: Outcome,
    *,
    progress: Callable[[int, int], None] | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Evaluate the best weights on the test structures and write everything a run leaves.

    The best and the last model file, plots, report.html and results.json, the latter last: with
    it, a run is finished. Test structures whose answers are not finite numbers are told, listed
    under "not_finite" and left out of the errors.

    Returns:
        What results.json holds.
    """
    run = experiment.options.run
    test = experiment.frames.get("test", [])
    best = problem.with_weights(outcome.best)
    answers: list[Answer] = []
    if test:
        answers = evaluate(best, test, dtype=run.default_dtype, progress=progress)
    lost = [test[i].name for i, answer in enumerate(answers) if not finite(answer)]
    if lost:
        tell(
            f"the answers for {len(lost)} of {len(test)} test structures are not finite numbers, "
            f"the first is {lost[0]}; they are left out of the test errors"
        )
        kept = [i for i, answer in enumerate(answers) if finite(answer)]
        test, answers = take(test, kept), [answers[i] for i in kept]
    errors = metrics.errors(test, answers)
    facts = {"methods": methods_of(best.model), **_facts(experiment, outcome)}
    summary = {}
    if run.drift_ps:
        summary["Conservation of energy"] = _simulate(experiment, outcome, best, facts, tell)
        tell(summary["Conservation of energy"])
    equivariance = _save(folder.best_model, best, experiment, {**facts, "test": errors})
    last = problem.with_weights(outcome.last)
    others = {name: fact for name, fact in facts.items() if name != "nve"}  # of the best weights
    _save(folder.last_model, last, experiment, {**others, "test": {}})
    validation = _validation(outcome)
    told = sentence(equivariance, errors.get("forces_rmse", validation.get("forces_rmse")))
    if not is_rounding(equivariance):
        tell(told)
    write_report(
        folder.path,
        history=outcome.history,
        frames=test,
        answers=answers,
        errors=errors,
        validation=validation,
        config=experiment.options.flat(),
        summary={"Equivariance": told, **summary, **_summary(experiment, facts)},
    )
    results = {**errors, "equivariance": equivariance, "validation": validation, **facts}
    if lost:
        results["not_finite"] = lost
    folder.write_results(results)
    return results


def _simulate(
    experiment: Experiment,
    outcome: Outcome,
    best: Potential,
    facts: dict[str, Any],
    tell: Callable[[str], None],
) -> str:
    """Adds what a simulation at constant energy shows to the facts; returns it in words."""
    if not outcome.complete:
        return "no simulation: the run is not complete"
    run, frame = experiment.options.run, experiment.frames["valid"][0]
    tell(f"simulating {run.drift_ps:g} ps at constant energy")
    try:
        facts["nve"] = energy_drift.measure(
            best, frame, run.drift_ps, dtype=run.default_dtype, device=run.device
        )
    except InputError as error:  # the training is worth more than this
        return f"no simulation: {error}"
    return energy_drift.sentence(facts["nve"])


def methods_of(model: Any) -> dict[str, list[str]]:
    """How the products of a model are computed, by their use and layer by layer."""
    return dict(zip(("messages", "powers"), model.methods, strict=False))


def _save(
    path: Path, potential: Potential, experiment: Experiment, training: dict[str, Any]
) -> dict[str, Any]:
    """Write a model file; returns the equivariance error of its examples."""
    structures = _examples(experiment)
    answers, equivariance = answers_and_error(potential, structures)
    model_file.save(
        path,
        potential,
        model_name=experiment.options.model.model,
        config=experiment.config,
        training={
            **training,
            "equivariance": equivariance,
            "data": experiment.provenance()["files"],
        },
        examples=list(zip(structures, answers, strict=True)),
        uncertainty=calibrate(potential, experiment.frames["train"], experiment.frames["valid"]),
    )
    return equivariance


def limits(experiment: Experiment) -> dict[str, Any]:
    """What decides how long a run is; a run that ended with the same limits is finished."""
    run = experiment.options.run
    names = ["max_num_epochs", "max_num_steps", "patience"] + ["drift_ps"] * bool(run.drift_ps)
    return {name: getattr(run, name) for name in names}


def _facts(experiment: Experiment, outcome: Outcome) -> dict[str, Any]:
    position = outcome.position
    return {
        "eqnet": version("eqnet"),
        "complete": outcome.complete,
        "ended_after": outcome.reason,
        "limits": limits(experiment),
        "steps": position.step,
        "epochs": position.begun,  # the last may be a part
        "best_epoch": position.best_epoch,
        "pieces": position.pieces,  # of a batch, that the memory of the device asked for
        "seconds": round(position.seconds, 1),
        "loop_wall_seconds": round(position.loop_wall, 2),  # without compilation
        "loop_cpu_seconds": round(position.loop_cpu, 2),
        "structures": {role: len(frames) for role, frames in experiment.frames.items()},
    }


def _validation(outcome: Outcome) -> dict[str, Any]:
    """The row of the best weights."""
    rows = [r for r in outcome.history if r["epoch"] == outcome.position.best_epoch]
    return rows[-1] if rows else {}


def _examples(experiment: Experiment) -> list[Frame]:
    """A few structures for the model file to replay: small, of different sizes, one periodic."""
    frames = experiment.frames["valid"]
    looks = [(not frame.pbc.all(), len(frame)) for frame in frames]  # stress is replayed too
    order = sorted(range(len(frames)), key=looks.__getitem__)
    one_of_each_size = list({looks[i][1]: i for i in reversed(order)}.values())[::-1]
    chosen = one_of_each_size[:NUM_EXAMPLES]
    chosen += [i for i in order if i not in chosen][: NUM_EXAMPLES - len(chosen)]
    return [dataclasses.replace(frames[i], info={}, arrays={}) for i in chosen]


def _summary(experiment: Experiment, facts: dict[str, Any]) -> dict[str, Any]:
    """Sections of the report beside errors, history and options."""
    energies = [
        {"element": symbol(z), "reference, eV": float(e), "shift, eV": float(s)}
        for z, e, s in zip(
            experiment.elements, experiment.atomic_energies, experiment.shift, strict=True
        )
    ]
    return {
        "Labels": label_table(experiment.datasets["train"].report),
        "Reference energies": energies,
        "Run": {name: value for name, value in facts.items() if not isinstance(value, dict)},
        "Structures": facts["structures"],
    }
