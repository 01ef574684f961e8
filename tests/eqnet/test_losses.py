"""The losses against loops over structures, atoms and components."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqnet import losses
from eqnet.data.batches import Targets
from eqnet.graph import AtomGraph
from eqnet.potential import Prediction

DELTA = 0.3


def scalar(loss: str, error: float) -> float:
    """Measure of one component, for losses that go by components."""
    if loss == "mse":
        return error**2
    size = abs(error)
    return 0.5 * error**2 if size <= DELTA else DELTA * (size - 0.5 * DELTA)


def by_loops(loss, energy, forces, stress, weights, sizes) -> np.ndarray:
    """Weighted means of energy, forces and stress over what is labelled."""
    terms = []
    for kind, values in enumerate((energy, forces, stress)):
        total, labels = 0.0, 0
        for g, size in enumerate(sizes):
            weight = weights[kind][g]
            if weight == 0:
                continue
            items = [values[g]] if kind != 1 else values[g]
            for item in items:
                parts = np.ravel(item) / (size if kind == 0 else 1)
                if loss == "l1":
                    measure = float(np.sqrt(sum(float(p) ** 2 for p in parts)))
                else:
                    measure = sum(scalar(loss, float(p)) for p in parts) / len(parts)
                total += weight * measure
                labels += 1
        terms.append(total / max(labels, 1))
    return np.array(terms)


def random_batch(seed: int, *, poison: bool = True):
    """Three structures of 2, 3, 1 atoms, one padding structure and two padding atoms."""
    rng, sizes = np.random.default_rng(seed), [2, 3, 1]
    structure = np.array([0, 0, 1, 1, 1, 2, 3, 3])
    n, g = len(structure), 4
    weights = rng.uniform(0.5, 2.0, size=(3, g))
    weights[:, 3] = 0
    weights[0, 1] = weights[1, 2] = weights[2, 0] = 0  # one label of each kind is missing
    target = [rng.normal(size=s) for s in ((g,), (n, 3), (g, 3, 3))]
    found = [t + rng.normal(scale=0.5, size=t.shape) for t in target]
    errors = [f - t for f, t in zip(found, target, strict=True)]
    if poison:  # where nothing is labelled anything may stand
        target[0][1] = target[1][5] = target[2][0] = np.nan
    blank = np.zeros((n, 1), int)
    graph = AtomGraph(
        np.zeros((n, 3)), np.zeros(n, int), np.zeros((g, 3, 3)), structure, np.arange(n), blank,
        blank, np.zeros((n, 1, 3), int), blank > 0, blank, np.arange(n) < 6, np.arange(g) < 3,
    )  # fmt: skip
    targets = Targets(*target, *weights, num_atoms=np.array([2.0, 3.0, 1.0, 0.0]))
    prediction = Prediction(*map(jnp.asarray, (found[0], np.zeros(n), found[1], found[2])))
    per_structure = [errors[1][structure == i] for i in range(3)]
    return prediction, graph, targets, (errors[0], per_structure, errors[2], weights, sizes)


@pytest.mark.parametrize("loss", ["mse", "huber", "l1"])
def test_loss_equals_loops(loss: str, x64: None) -> None:
    prediction, graph, targets, expected = random_batch(3)
    sums = losses.sums(prediction, graph, targets, losses.measure(loss, DELTA))
    terms = np.asarray(sums.loss) / np.asarray(sums.labels)
    np.testing.assert_allclose(terms, by_loops(loss, *expected), rtol=1e-12)
    np.testing.assert_array_equal(sums.labels, [2, 5, 2])
    weights = np.array([1.0, 100.0, 7.0])
    total = float(losses.total(sums, jnp.asarray(weights)))
    assert total == pytest.approx(float(weights @ by_loops(loss, *expected)), rel=1e-12)
    assert losses.total_on_host(sums, weights) == pytest.approx(total, rel=1e-12)


def test_error_sums_do_not_know_weights(x64: None) -> None:
    prediction, graph, targets, (energy, forces, stress, weights, sizes) = random_batch(4)
    found = losses.in_milli(losses.sums(prediction, graph, targets, losses.squares))
    energies = [energy[g] / sizes[g] for g in (0, 2)]
    components = np.concatenate([forces[0], forces[1]]).ravel()
    stresses = stress[[1, 2]].ravel()
    expected = {}
    for name, values in (
        ("energy_per_atom", np.array(energies)),
        ("forces", components),
        ("stress", stresses),
    ):
        expected[f"{name}_mae"] = 1000 * np.mean(np.abs(values))
        expected[f"{name}_rmse"] = 1000 * np.sqrt(np.mean(values**2))
    assert found == pytest.approx(expected, rel=1e-12)


def test_sums_of_parts_are_the_sums_of_the_whole(x64: None) -> None:
    from eqnet.training import add_up

    parts = [random_batch(seed)[:3] for seed in (5, 6)]
    found = add_up([losses.sums(*part, losses.squares) for part in parts])
    absolute = sum(np.abs(losses.errors(*part)[0].forces).sum() for part in parts)
    assert found.absolute[1] == pytest.approx(float(absolute), rel=1e-14)
    np.testing.assert_array_equal(found.labels, [4, 10, 4])


def test_absent_stress_has_no_labels(x64: None) -> None:
    prediction, graph, targets, _ = random_batch(7)
    sums = losses.sums(prediction._replace(stress=None), graph, targets, losses.squares)
    assert float(sums.labels[2]) == 0 and float(sums.loss[2]) == 0
    assert "stress_mae" not in losses.in_milli(jax.device_get(sums))


def test_gradient_of_a_length_at_zero_is_zero() -> None:
    gradient = jax.grad(lambda e: losses.lengths(e).sum())(np.zeros((2, 3), np.float32))
    np.testing.assert_array_equal(gradient, np.zeros((2, 3)))


def test_huber_is_smooth_where_it_turns(x64: None) -> None:
    slope = jax.grad(lambda e: losses.huber(DELTA)(e[None])[0])
    for sign, side in itertools.product((-1, 1), (1 - 1e-9, 1 + 1e-9)):
        np.testing.assert_allclose(slope(np.array([sign * DELTA * side])), sign * DELTA, rtol=1e-8)


@pytest.mark.parametrize("loss", ["mse", "huber", "l1"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_no_measure_hides_what_is_not_finite(loss: str, bad: float, x64: None) -> None:
    error = np.zeros((2, 3))
    error[1, 2] = bad
    found = losses.measure(loss, DELTA)(jnp.asarray(error))
    assert float(found[0]) == 0 and not np.isfinite(found[1])
