"""Optimisers, schedule, average and plateau against the published recursions in numpy."""

from __future__ import annotations

import math
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from eqnet.optimizer import Plateau, course, ema_decay, optimizer
from eqnet.options import OptimizerOptions, TrainOptions, resolve_choices


def resolved(**values) -> OptimizerOptions:
    return resolve_choices(TrainOptions(optimizer=OptimizerOptions(**values))).optimizer


def updates_of(transform, gradients, weights) -> list[list[np.ndarray]]:
    """The updates that a transformation makes of some gradients, one after the other."""
    state, found = transform.init(weights), []
    for gradient in gradients:
        update, state = transform.update(tuple(map(jnp.asarray, gradient)), state, weights)
        found.append([np.asarray(part) for part in update])
    return found


def gradients(number: int) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return [rng.normal(size=(3, 4)) for _ in range(number)]


def adam_by_hand(
    gradients: list[np.ndarray], *, amsgrad: bool = False, limit: float = math.inf
) -> list[np.ndarray]:
    """Updates for learning rate 1: Kingma and Ba, algorithm 1; Reddi et al. for the maximum."""
    m = v = top = np.zeros_like(gradients[0])
    updates = []
    for t, gradient in enumerate(gradients, 1):
        gradient = gradient * min(1.0, limit / np.linalg.norm(gradient))
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        corrected = v / (1 - 0.999**t)
        top = np.maximum(top, corrected)
        root = np.sqrt(top if amsgrad else corrected)
        updates.append(-m / (1 - 0.9**t) / (root + 1e-8))
    return updates


@pytest.mark.parametrize("kind", ["adam", "amsgrad", "adamw"])
@pytest.mark.parametrize("clip", [0.0, 1.5])
def test_adam_family(kind: str, clip: float, x64: None) -> None:
    options = resolved(optimizer=kind, clip_grad=clip)
    weights = (jnp.asarray(np.random.default_rng(1).normal(size=(3, 4))),)
    found = updates_of(optimizer(options), [(g,) for g in gradients(4)], weights)
    expected = adam_by_hand(gradients(4), amsgrad=kind == "amsgrad", limit=clip or math.inf)
    decay = 0.01 if kind == "adamw" else 0.0
    for update, by_hand in zip(found, expected, strict=True):
        np.testing.assert_allclose(update[0], by_hand - decay * np.asarray(weights[0]), rtol=1e-10)


def test_decay_leaves_vectors_alone(x64: None) -> None:
    transform = optimizer(resolved(optimizer="adam", weight_decay=0.5))
    weights = (jnp.ones(3), jnp.ones((2, 2)))
    found = updates_of(transform, [(np.zeros(3), np.zeros((2, 2)))], weights)[0]
    np.testing.assert_array_equal(found[0], np.zeros(3))
    np.testing.assert_allclose(found[1], -0.5 * np.ones((2, 2)))


def test_muon_orthogonalises_matrices_and_leaves_the_rest_to_adam(x64: None) -> None:
    transform = optimizer(resolved(optimizer="muon", clip_grad=0.0))
    rng = np.random.default_rng(0)
    weights = (jnp.asarray(rng.normal(size=(6, 4))), jnp.asarray(rng.normal(size=5)))
    gradient = (rng.normal(size=(6, 4)), rng.normal(size=5))
    matrix, vector = updates_of(transform, [gradient], weights)[0]
    values = np.linalg.svd(matrix, compute_uv=False)
    # Five Newton-Schulz steps bring singular values near 1; rms of 0.2 per entry of the update.
    assert values.max() / values.min() < 2.0
    np.testing.assert_allclose(values.mean(), 0.2 * np.sqrt(6), rtol=0.25)
    first = 0.9 * 0.1 / (1 - 0.9**2) + 1  # of Nesterov's Adam: the sign of the gradient times this
    np.testing.assert_allclose(vector, -first * np.sign(gradient[1]), rtol=1e-6)
    assert np.sum(matrix * gradient[0]) < 0  # downhill


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (dict(scheduler="constant"), lambda k: 1.0),
        (dict(scheduler="plateau"), lambda k: 1.0),
        (
            dict(scheduler="cosine", lr_final=0.1),
            lambda k: 0.1 + 0.9 * (1 + math.cos(math.pi * k / 80)) / 2,
        ),
        (
            dict(scheduler="exponential", lr_scheduler_gamma=0.9),
            lambda k: 0.9 ** (k / 8),
        ),
    ],
)
@pytest.mark.parametrize("warmup", [0, 10])
def test_course(options: dict, expected, warmup: int) -> None:
    chosen = resolved(**options, warmup_steps=warmup)
    for k in (0, 1, 9, 10, 40, 79, 80):
        warm = min(1.0, (k + 1) / warmup) if warmup else 1.0
        found = float(course(chosen, 8, jnp.asarray(k), jnp.asarray(80)))
        assert found == pytest.approx(warm * expected(k), rel=2e-6)
        cold = float(course(chosen, 8, jnp.asarray(k), jnp.asarray(80), jnp.asarray(False)))
        assert cold == pytest.approx(expected(k), rel=2e-6)


def test_average_forgets_its_start() -> None:
    """With the growing decay the first value fades as 1 / steps^9, not as 0.999^steps."""
    average, first = 0.0, 1.0
    for step in range(200):
        keep = float(ema_decay(jnp.asarray(step, jnp.float32), 0.999))
        assert keep == pytest.approx(min(0.999, (1 + step) / (10 + step)), rel=1e-6)
        average, first = keep * average + (1 - keep) * 5.0, first * keep
    assert first < 1e-12
    assert average == pytest.approx(5.0, rel=1e-6)


def test_plateau_counts_as_torch_does() -> None:
    """The rates of torch's ReduceLROnPlateau(patience=2, factor=0.5), by its rules."""
    series = [1.0, 0.9, 0.91, 0.92, 0.93, 0.9, 0.9, 0.9, 0.8, 0.79995, 0.8, 0.8, 0.8]
    best, bad, rate, expected = math.inf, 0, 1.0, []
    for loss in series:
        if loss < best * (1 - 1e-4):
            best, bad = loss, 0
        else:
            bad += 1
        if bad > 2:
            rate, bad = rate * 0.5, 0
        expected.append(rate)
    plateau, rate, found = Plateau(0.5, 2), 1.0, []
    for epoch, loss in enumerate(series, 1):
        plateau, lower = plateau.update(epoch, loss)
        rate *= plateau.factor if lower else 1.0
        found.append(rate)
    assert found == expected
    assert expected[-1] == 0.125


def test_plateau_takes_no_nan_for_an_improvement() -> None:
    plateau, lower = Plateau(0.5, 0, best=1.0, best_epoch=3).update(4, math.nan)
    assert lower and plateau == replace(plateau, best=1.0)
