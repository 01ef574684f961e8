"""The loop: exact resume from anywhere, stages, plateaus, limits, signals, a full device."""

from __future__ import annotations

import csv
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import small_run
from morse import by_hand, morse_potential

from eqnet.data.frame import Frame
from eqnet.errors import InputError
from eqnet.fit import Fit
from eqnet.training import Outcome, Problem, Program, TrainState

TIMES = ("wall_s", "structures_per_s", "compilations")


def rows(folder: Path) -> list[dict]:
    """The history without what depends on the clock and on the process."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def assert_same_end(one: Outcome, other: Outcome) -> None:
    for a, b in zip((*one.last, *one.best), (*other.last, *other.best), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert one.position.step == other.position.step
    assert one.position.best_epoch == other.position.best_epoch


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """These processes do not lose power: no waiting for the disk."""
    monkeypatch.setattr("eqnet.checkpoint._sync", lambda path: None)


class Killed(Exception):
    pass


def kill_after(fit: Fit, steps: int) -> None:
    """Make the fit die, without any last words, after some more steps."""
    step, left = fit.step, [steps]

    def dying(*args):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return step(*args)

    dying.compilations, dying.seconds = 0, 0.0  # type: ignore[attr-defined]
    dying.cpu_seconds = 0.0  # type: ignore[attr-defined]
    fit.step = dying  # type: ignore[assignment]


BASES = {
    "cosine": dict(warmup_steps=3),
    "plateau": dict(scheduler="plateau", scheduler_patience=1, lr_factor=0.5, lr=0.05),
    "stage two": dict(stage_two=True, start_stage_two=2, eval_interval=2, optimizer="amsgrad"),
    "float64": dict(default_dtype="float64", ema=False, loss="huber"),
}


@pytest.mark.parametrize("name", BASES)
def test_resume_is_exact_wherever_it_died(tmp_path: Path, name: str) -> None:
    """Checkpoints at other moments, deaths between them: the same bits and the same history."""
    with jax.enable_x64(name == "float64"):
        check_resume(tmp_path, name)


def check_resume(tmp_path: Path, name: str) -> None:
    values = {"max_num_epochs": 4, **BASES[name]}
    unbroken = small_run.fit(tmp_path / "unbroken", small_run.options(**values)).run()
    assert unbroken.complete and unbroken.position.step == 16
    assert 0 < unbroken.position.loop_wall < unbroken.position.seconds
    broken = small_run.options(**values, checkpoint_interval=0.0)
    for steps in (1, 4, 6) if name == "cosine" else (6,):
        fit = small_run.fit(tmp_path / "broken", broken)
        kill_after(fit, steps)
        with pytest.raises(Killed):
            fit.run()
    end = small_run.fit(tmp_path / "broken", broken).run()
    assert end.complete
    assert_same_end(unbroken, end)
    assert rows(tmp_path / "unbroken") == rows(tmp_path / "broken")
    with (tmp_path / "broken" / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in table] == [r["epoch"] for r in rows(tmp_path / "broken")]


def test_history_is_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    """Work after the last checkpoint is done again, and its rows are not written twice."""
    chosen = small_run.options(max_num_epochs=6, checkpoint_interval=1e9)
    unbroken = small_run.fit(tmp_path / "unbroken", chosen).run()
    fit = small_run.fit(tmp_path / "broken", chosen)
    kill_after(fit, 18)  # in the fifth epoch, with nothing saved but the start
    with pytest.raises(Killed):
        fit.run()
    assert len(rows(tmp_path / "broken")) == 4
    with (tmp_path / "broken" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 5, "st')  # killed while writing
    end = small_run.fit(tmp_path / "broken", chosen).run()
    assert_same_end(unbroken, end)
    assert rows(tmp_path / "unbroken") == rows(tmp_path / "broken")


def test_rows_are_on_the_disk_before_the_checkpoint_that_knows_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = small_run.fit(tmp_path, small_run.options(max_num_epochs=2))
    synced, pairs, save = {}, [], fit.checkpoints.save

    def fsync(descriptor: int) -> None:
        synced[os.fstat(descriptor).st_ino] = os.fstat(descriptor).st_size

    def saving(*args) -> None:
        there = [
            path.stat()
            for path in (tmp_path / "metrics.jsonl", tmp_path / "metrics.csv")
            if path.exists()
        ]
        pairs.append([(synced.get(file.st_ino), file.st_size) for file in there])
        save(*args)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(fit.checkpoints, "save", saving)
    fit.run()
    assert pairs[0] == [] and len(pairs[-1]) == 2
    assert all(on_disk == size for on_disk, size in pairs[-1])


def test_damaged_newest_checkpoint_costs_time_and_nothing_else(tmp_path: Path) -> None:
    chosen = small_run.options(max_num_epochs=4, checkpoint_interval=0.0)
    unbroken = small_run.fit(tmp_path / "unbroken", chosen).run()
    fit = small_run.fit(tmp_path / "broken", chosen)
    kill_after(fit, 9)
    with pytest.raises(Killed):
        fit.run()
    newest = tmp_path / "broken" / "checkpoints" / f"{fit.checkpoints.steps()[-1]:09d}"
    largest = max(newest.rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    largest.write_bytes(largest.read_bytes()[:-7])
    again = small_run.fit(tmp_path / "broken", chosen)
    end = again.run()
    assert "is damaged" in again.progress.console.file.getvalue()  # type: ignore[attr-defined]
    assert_same_end(unbroken, end)
    assert rows(tmp_path / "unbroken") == rows(tmp_path / "broken")


def test_signal_finishes_the_step_and_saves(tmp_path: Path) -> None:
    chosen = small_run.options(max_num_epochs=5)
    unbroken = small_run.fit(tmp_path / "unbroken", chosen).run()
    fit = small_run.fit(tmp_path / "broken", chosen)
    step, calls = fit.step, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args)

    interrupted.compilations, interrupted.seconds = 0, 0.0  # type: ignore[attr-defined]
    interrupted.cpu_seconds = 0.0  # type: ignore[attr-defined]
    fit.step = interrupted  # type: ignore[assignment]
    end = fit.run()
    assert (end.signal, end.complete, end.position.step) == (signal.SIGTERM, False, 7)
    assert fit.checkpoints.steps()[-1] == 7
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert_same_end(unbroken, small_run.fit(tmp_path / "broken", chosen).run())


def test_wall_clock_limit_ends_cleanly_and_can_go_on(tmp_path: Path) -> None:
    unbroken = small_run.fit(tmp_path / "unbroken", small_run.options(max_num_epochs=3)).run()
    short = small_run.options(max_num_epochs=3, max_minutes=1e-6)
    end = small_run.fit(tmp_path / "broken", short).run()
    assert (end.complete, end.position.step, end.signal) == (False, 1, None)
    assert [row["epoch"] for row in end.history] == [1]  # validated, so that there is a best
    end = small_run.fit(tmp_path / "broken", small_run.options(max_num_epochs=3)).run()
    assert_same_end(unbroken, end)
    assert rows(tmp_path / "unbroken") == rows(tmp_path / "broken")


def test_number_of_steps_ends_within_an_epoch(tmp_path: Path) -> None:
    end = small_run.fit(tmp_path, small_run.options(max_num_epochs=9, max_num_steps=6)).run()
    assert (end.complete, end.position.step, end.position.batch) == (True, 6, 2)
    assert end.position.begun == 2 >= end.position.best_epoch
    assert [(row["epoch"], row["step"]) for row in end.history] == [(1, 4), (2, 6)]
    cosine = 0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * 5 / 6))  # the schedule ends there, too
    assert end.history[-1]["lr"] == pytest.approx(0.01 * cosine, rel=1e-5)


def test_steps_that_end_with_an_epoch_validate_it(tmp_path: Path) -> None:
    """Between two validations, too: the last weights are those of the lowest rate."""
    chosen = small_run.options(max_num_epochs=9, max_num_steps=16, eval_interval=3)
    fit = small_run.fit(tmp_path, chosen)
    end = fit.run()
    assert (end.complete, end.position.epoch, end.position.batch) == (True, 4, 0)
    assert [(row["epoch"], row["step"]) for row in end.history] == [(3, 12), (4, 16)]
    assert end.position.begun == 4


def test_no_second_stage_begins_after_the_last_step(tmp_path: Path) -> None:
    """The kept weights are those of the first one, and so is what is said of them."""
    chosen = small_run.options(
        max_num_epochs=9, max_num_steps=16, stage_two=True, start_stage_two=4, eval_interval=3
    )
    end = small_run.fit(tmp_path, chosen).run()
    assert (end.complete, end.position.step, end.position.stage) == (True, 16, 1)
    losses = {row["epoch"]: row["valid_loss"] for row in end.history}
    assert end.position.best_loss == losses[end.position.best_epoch] == min(losses.values())


def test_a_longer_run_goes_on_from_a_shorter_one(tmp_path: Path) -> None:
    common = dict(scheduler="constant", optimizer="adamw")
    whole = small_run.fit(tmp_path / "a", small_run.options(max_num_epochs=5, **common)).run()
    small_run.fit(tmp_path / "b", small_run.options(max_num_epochs=2, **common)).run()
    end = small_run.fit(tmp_path / "b", small_run.options(max_num_epochs=5, **common)).run()
    assert_same_end(whole, end)


FULL = "RESOURCE_EXHAUSTED: trying to allocate 9876543 bytes"


def full_device(
    monkeypatch: pytest.MonkeyPatch, train: int, valid: int = 1, *, first: int = 0, last: int = 99
) -> None:
    """A device for one of so many pieces of a batch, after the step `first`; `last` is fatal."""
    call, steps = Program.__call__, [0]

    def limited(self, given, graph, targets):
        training = isinstance(given, TrainState)
        steps[0] += training
        if steps[0] > last:
            raise Killed
        pieces = graph.positions.shape[0] if graph.positions.ndim == 3 else 1
        if pieces >= (train if training else valid) or steps[0] <= first:
            return call(self, given, graph, targets)
        if training:  # donated, and lost
            jax.tree.map(lambda x: x.delete(), given)
        raise jax.errors.JaxRuntimeError(FULL)

    monkeypatch.setattr(Program, "__call__", limited)


def tell_into(fit: Fit) -> list[str]:
    told: list[str] = []
    fit.progress.tell = told.append  # type: ignore[method-assign]
    return told


def assert_same_to_rounding(one: Outcome, other: Outcome) -> None:
    for a, b in zip((*one.last, *one.best), (*other.last, *other.best), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)
    for name in ("step", "epoch", "batch", "stage", "lr", "best_epoch"):
        assert getattr(one.position, name) == getattr(other.position, name)
    assert len(one.history) == len(other.history)
    for row, twin in zip(one.history, other.history, strict=True):
        same = {name: value for name, value in row.items() if name not in TIMES}
        assert same == pytest.approx({name: twin[name] for name in same}, rel=1e-10)


SIXES = {"batch_size": 6, "valid_batch_size": 4, "default_dtype": "float64"}
SIXES |= {"stage_two": True, "start_stage_two": 3, "eval_interval": 2, "max_num_epochs": 6}


def test_a_full_device_takes_batches_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, x64: None
) -> None:
    """The run is that with enough memory to rounding, and goes on in pieces when resumed."""
    chosen = small_run.options(**SIXES, checkpoint_interval=1e-9)
    whole = small_run.fit(tmp_path / "whole", chosen, train=17).run()
    with monkeypatch.context() as patch:
        full_device(patch, 3, 2, first=5, last=15)
        fit = small_run.fit(tmp_path / "run", chosen, train=17)
        told = tell_into(fit)
        with pytest.raises(Killed):
            fit.run()
    assert [line for line in told if "a batch of training" in line] == [
        f"the device ran out of memory ({FULL}): from here on a batch of training is worked on "
        f"in {n} pieces, one after the other, with the same result to rounding"
        for n in (2, 4)
    ]
    again = small_run.fit(tmp_path / "run", chosen, train=17)
    outcome = again.run()
    assert (again.train.pieces, again.validation.loader.pieces) == (4, 2)
    assert outcome.position.step == 18
    assert_same_to_rounding(outcome, whole)


def test_a_validation_in_pieces_leaves_the_training_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, x64: None
) -> None:
    """Here the last one, after an end within an epoch."""
    chosen = small_run.options(**SIXES, max_num_steps=4)
    whole = small_run.fit(tmp_path / "whole", chosen, train=17).run()
    full_device(monkeypatch, 1, 3)
    fit = small_run.fit(tmp_path / "run", chosen, train=17)
    outcome = fit.run()
    assert (fit.train.pieces, fit.validation.loader.pieces) == (1, 4)
    assert_same_to_rounding(outcome, whole)


def test_an_error_that_comes_with_the_last_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, x64: None
) -> None:
    """Programs run on their own; what goes wrong is known when their numbers are fetched."""
    chosen = small_run.options(**SIXES, max_num_steps=4)
    whole = small_run.fit(tmp_path / "whole", chosen, train=17).run()
    check = Fit._check_finite

    def late(self: Fit):
        if self.position.step == 4 and self.train.pieces == 1:
            raise jax.errors.JaxRuntimeError(FULL)
        return check(self)

    monkeypatch.setattr(Fit, "_check_finite", late)
    outcome = small_run.fit(tmp_path / "run", chosen, train=17).run()
    assert outcome.position.pieces == 2
    assert_same_to_rounding(outcome, whole)


def test_a_device_too_small_for_one_structure_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_device(monkeypatch, 100)
    fit = small_run.fit(tmp_path, small_run.options(batch_size=3))
    told = tell_into(fit)
    words = r"ran out of memory with one structure at a time \(RESOURCE.* 9876543 bytes\); train"
    with pytest.raises(InputError, match=words):
        fit.run()
    assert [line.split(" pieces")[0][-1] for line in told if "out of memory" in line] == ["2", "3"]


def test_other_errors_of_the_device_are_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(Program, "__call__", broken)
    fit = small_run.fit(tmp_path, small_run.options())
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        fit.run()
    assert fit.checkpoints.steps() == [0]


def test_second_stage_has_its_own_weights_and_rate(tmp_path: Path) -> None:
    chosen = small_run.options(
        max_num_epochs=6, stage_two=True, start_stage_two=4, stage_two_lr=0.002, lr_final=0.1
    )
    fit = small_run.fit(tmp_path, chosen)
    end = fit.run()
    np.testing.assert_array_equal(fit.state.stage.weights, [50.0, 10.0, 0.0])
    by_epoch = {row["epoch"]: row["lr"] for row in end.history}
    assert [row["stage"] for row in end.history] == [1, 1, 1, 1, 2, 2]

    def cosine(step: int, steps: int) -> float:
        return 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * step / steps))

    assert by_epoch[4] == pytest.approx(0.01 * cosine(15, 16), rel=1e-5)
    assert by_epoch[5] == pytest.approx(0.002 * cosine(3, 8), rel=1e-5)
    assert by_epoch[6] == pytest.approx(0.002 * cosine(7, 8), rel=1e-5)
    assert end.position.best_epoch > 4  # losses of different stages are not compared


def test_patience_begins_the_second_stage_then_ends_the_run(tmp_path: Path) -> None:
    chosen = small_run.options(
        max_num_epochs=40, patience=2, stage_two=True, start_stage_two=30, lr=1e-12,
        stage_two_lr=1e-12, scheduler="constant", ema=False,
    )  # fmt: skip
    end = small_run.fit(tmp_path, chosen).run()  # nothing improves: weights do not move
    assert end.reason == "no better validation loss for 2 epochs"
    assert end.position.stage == 2
    assert end.position.epoch < 12


def test_patience_waits_for_validations(tmp_path: Path) -> None:
    """Fewer epochs of patience than lie between validations end no run that improves."""
    chosen = small_run.options(max_num_epochs=9, patience=2, eval_interval=3, scheduler="constant")
    end = small_run.fit(tmp_path, chosen).run()
    assert [row["epoch"] for row in end.history] == [3, 6, 9]


def test_best_weights_are_those_of_the_best_row(tmp_path: Path) -> None:
    fit = small_run.fit(
        tmp_path, small_run.options(max_num_epochs=4, lr=0.4, ema=False, scheduler="constant")
    )
    end = fit.run()
    losses = [row["valid_loss"] for row in end.history]
    assert end.position.best_epoch == 1 + int(np.argmin(losses))
    assert end.position.best_loss == min(losses) < losses[-1]
    fit.state = replace(fit.state, params=end.best)
    fit._validate()
    assert fit.history.rows[-1]["valid_loss"] == pytest.approx(min(losses), rel=1e-6)


def test_validation_errors_equal_those_of_single_predictions(tmp_path: Path, x64: None) -> None:
    """Against one structure at a time, unpacked, with the total energies of the frames."""
    from eqnet.data.batches import pack

    fit = small_run.fit(tmp_path, small_run.options(max_num_epochs=1, default_dtype="float64"))
    row = fit.run().history[-1]
    assert isinstance(fit.problem, Problem)
    potential = fit.problem.with_weights(fit.best)
    energies, forces = [], []
    for item in fit.validation.loader.items:
        graph = pack([item], dtype=np.float64)
        found = potential.predict(graph)
        total = float(np.sum(found.node_energy)) + potential.reference_energy(item.species)
        assert item.frame.energy is not None and item.frame.forces is not None
        energies.append((total - item.frame.energy) / 3)
        forces.append(np.asarray(found.forces)[np.asarray(graph.atom_mask)] - item.frame.forces)
    for name, errors in (("energy_per_atom", energies), ("forces", forces)):
        values = np.ravel(errors)
        assert row[f"{name}_mae"] == pytest.approx(1000 * np.mean(np.abs(values)), rel=1e-7)
        assert row[f"{name}_rmse"] == pytest.approx(1000 * np.sqrt(np.mean(values**2)), rel=1e-7)


def stress_by_hand(frame: Frame, cell: np.ndarray) -> np.ndarray:
    """dE/dstrain / V of the labels' potential by central differences."""
    truth, stress, step = morse_potential(elements=(1, 8)), np.zeros((3, 3)), 1e-4
    for i, j in np.ndindex(3, 3):
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[i, j] += 0.5 * sign * step
            strain[j, i] += 0.5 * sign * step
            moved = frame.positions @ strain, cell @ strain
            energies.append(by_hand(frame.numbers, *moved, np.ones(3, bool), truth, images=2))
        stress[i, j] = (energies[0] - energies[1]) / (2 * step) / np.linalg.det(cell)
    return stress


def test_stress_is_trained_and_validated(tmp_path: Path, x64: None) -> None:
    """Errors against single predictions; a structure that is also trained on comes closer."""
    from eqnet.data.batches import pack

    data = small_run.frames(11)
    stress = stress_by_hand(data[3], 3.5 * np.eye(3))
    periodic = dict(cell=3.5 * np.eye(3), pbc=np.ones(3, bool), energy=None, forces=None)
    data[3] = replace(data[3], **periodic, stress=stress)
    data[9] = replace(data[3], index=9)
    chosen = small_run.options(
        max_num_epochs=15, default_dtype="float64", stress_weight=3000.0, lr=0.03
    )
    fit = small_run.fit(tmp_path, chosen, data=data)
    end = fit.run()
    assert isinstance(fit.problem, Problem)
    potential = fit.problem.with_weights(fit.state.ema)
    graph = pack([fit.validation.loader.items[2]], dtype=np.float64)
    found = potential.predict(graph, stress=True).stress
    assert found is not None
    errors = np.asarray(found[0]) - stress
    row = end.history[-1]
    assert row["stress_mae"] == pytest.approx(1000 * np.mean(np.abs(errors)), rel=1e-7)
    assert row["stress_rmse"] == pytest.approx(1000 * np.sqrt(np.mean(errors**2)), rel=1e-7)
    assert row["stress_rmse"] < 0.5 * end.history[0]["stress_rmse"]
