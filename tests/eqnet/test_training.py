"""One step: against finite differences and numpy, compiled once per shape, unharmed by NaN."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run

from eqnet import training
from eqnet.errors import InputError
from eqnet.training import Problem, Program


def problem(**values) -> Problem:
    chosen = small_run.options(default_dtype="float64", **values)
    return Problem(small_run.other_potential("float64"), chosen.loss, chosen.optimizer, 4)


def state_of(made: Problem, lr: float = 0.01):
    stage = training.stage_state(lr, 0, 100, (2.0, 30.0, 0.0), jnp.float64)
    return training.first_state(made, stage, 0)


def batches(tmp_path: Path, pieces: int = 1, data=None, **values):
    chosen = small_run.options(default_dtype="float64", **values)
    fit = small_run.fit(tmp_path, chosen, data=data)
    return list((fit.train if pieces == 1 else fit.train.in_pieces(pieces)).batches(0))


def loss_by_hand(made: Problem, weights, batch) -> float:
    """2 mean (dE/n)^2 + 30 mean dF^2 from predictions alone."""
    graph, targets = batch
    found = made.with_weights(weights).predict(graph)
    mask = np.asarray(graph.atom_mask) & (targets.forces_weight[graph.structure] > 0)
    real = np.asarray(graph.structure_mask)
    energy = (np.asarray(found.energy) - targets.energy)[real] / targets.num_atoms[real]
    forces = (np.asarray(found.forces) - targets.forces)[mask]
    return float(2 * np.mean(energy**2) + 30 * np.mean(forces**2))


@pytest.mark.parametrize("pieces", [1, 2, 3, 5])
def test_sgd_like_step_follows_finite_differences(pieces: int, tmp_path: Path, x64: None) -> None:
    """The first step of Adam is lr times the sign of the gradient of the loss.

    Some structures lack forces; the last of five pieces has no structure.
    """
    made = problem(loss="mse", scheduler="constant", ema=False, clip_grad=0.0)
    data = [
        replace(frame, forces=None) if frame.index % 3 == 0 else frame
        for frame in small_run.frames(11)
    ]
    batch = batches(tmp_path / "whole", data=data, batch_size=4)[0]
    in_pieces = batches(tmp_path / "pieces", pieces, data=data, batch_size=4)[0]
    state = state_of(made)
    before = [np.array(w) for w in state.params]
    loss = loss_by_hand(made, tuple(map(jnp.asarray, before)), batch)
    after = jax.jit(training.train_step(made, pieces=pieces))(state, *in_pieces)
    assert float(after.loss_sum) == pytest.approx(loss, rel=1e-12)
    for k, weight in enumerate(before):
        for i in np.ndindex(weight.shape):
            slopes = []
            for sign in (1, -1):
                moved = [w.copy() for w in before]
                moved[k][i] += sign * 1e-5
                slopes.append(loss_by_hand(made, tuple(map(jnp.asarray, moved)), batch))
            gradient = (slopes[0] - slopes[1]) / 2e-5
            update = np.asarray(after.params[k])[i] - weight[i]
            expected = -0.01 * gradient / (abs(gradient) + 1e-8)
            assert update == pytest.approx(expected, rel=1e-6)


def test_pieces_take_the_memory_of_one(tmp_path: Path, x64: None) -> None:
    made, memory = problem(), {}
    for pieces in (1, 8):
        batch = batches(tmp_path / f"{pieces}", pieces, small_run.frames(68), batch_size=64)[0]
        step = jax.jit(training.train_step(made, pieces=pieces))
        stats = step.lower(state_of(made), *batch).compile().memory_analysis()
        assert stats is not None
        memory[pieces] = stats.temp_size_in_bytes
    assert memory[8] < memory[1] / 4


def test_average_of_the_weights(tmp_path: Path, x64: None) -> None:
    made = problem(ema_decay=0.5)
    step, state = Program(training.train_step(made)), state_of(made)
    average = np.asarray(state.params[0])
    for k, batch in enumerate(batches(tmp_path)):
        state = step(state, *batch)
        keep = min(0.5, (1 + k) / (10 + k))
        average = keep * average + (1 - keep) * np.asarray(state.params[0])
    np.testing.assert_allclose(state.ema[0], average, rtol=1e-13)


def test_compiles_once_per_shape(tmp_path: Path, x64: None) -> None:
    made = problem()
    step, state = Program(training.train_step(made), donate=True), state_of(made)
    for batch in batches(tmp_path) * 2:
        state = step(state, *batch)
    assert step.compilations == 1
    for batch in batches(tmp_path / "other", batch_size=3)[:1]:
        state = step(state, *batch)
    assert step.compilations == 2
    assert int(state.step) == 9


def test_a_step_without_a_finite_loss_changes_nothing(tmp_path: Path, x64: None) -> None:
    made = problem()
    step, state = Program(training.train_step(made)), state_of(made)
    good = batches(tmp_path)
    state = step(state, *good[0])
    graph, targets = good[1]
    forces = np.array(targets.forces)
    forces[0, 0] = np.nan
    bad = step(state, graph, replace(targets, forces=forces))
    assert int(bad.bad_step) == 1
    after = step(bad, *good[2])  # and nothing after it either
    for found in (bad, after):
        same = replace(found, bad_step=state.bad_step, rate=state.rate)
        for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(state), strict=True):
            np.testing.assert_array_equal(a, b)


def test_structures_without_neighbours_are_trained_on(tmp_path: Path, x64: None) -> None:
    """An atom and two far ones beside a molecule: the loss of a prediction, finite gradients."""
    data, chosen = small_run.frames(7), small_run.options(default_dtype="float64", batch_size=3)
    data[1] = replace(data[1], numbers=np.array([8]), positions=np.zeros((1, 3)),
                      forces=np.zeros((1, 3)))  # fmt: skip
    data[2] = replace(data[2], numbers=np.array([1, 1]), positions=50.0 * np.eye(2, 3),
                      forces=np.zeros((2, 3)))  # fmt: skip
    (batch,) = small_run.fit(tmp_path, chosen, train=3, data=data).train.batches(0)
    made = problem(loss="mse", ema=False)
    state = state_of(made)
    loss = loss_by_hand(made, state.params, batch)
    after = jax.jit(training.train_step(made))(state, *batch)
    assert float(after.loss_sum) == pytest.approx(loss, rel=1e-12) and int(after.bad_step) < 0
    assert all(np.isfinite(weight).all() for weight in after.params)


def test_nan_stops_the_run_and_names_the_frames(tmp_path: Path) -> None:
    data = small_run.frames(11)
    forces = np.array(data[4].forces)
    forces[1, 2] = np.nan
    data[4] = replace(data[4], forces=forces)
    chosen = small_run.options(max_num_epochs=3)
    fit = small_run.fit(tmp_path, chosen, data=data)
    order = [list(map(int, batch)) for batch in fit.train.order(0)]
    at = next(i for i, batch in enumerate(order) if 4 in batch)
    names = "; ".join(f"w.xyz, frame {i}" for i in order[at])
    with pytest.raises(InputError, match=rf"at step {at} \(epoch 1\), with the batch of {names}; "):
        fit.run()
    again = small_run.fit(tmp_path, chosen, data=data)
    again._restore()
    assert again.position.step == at == int(again.state.step)
    assert all(np.isfinite(w).all() for w in again.state.params)
    healthy = small_run.fit(tmp_path / "healthy", chosen)
    for batch, _ in zip(healthy.train.batches(0), range(at), strict=False):
        healthy.state = healthy.step(healthy.state, *batch)
    for a, b in zip(again.state.params, healthy.state.params, strict=True):
        np.testing.assert_array_equal(a, b)


def test_nan_in_validation_names_the_frames(tmp_path: Path) -> None:
    data = small_run.frames(11)
    data[8] = replace(data[8], energy=float("nan"))
    fit = small_run.fit(tmp_path, small_run.options(valid_batch_size=1), data=data)
    with pytest.raises(InputError, match="validation loss .* with the batch of w.xyz, frame 8; "):
        fit.run()
