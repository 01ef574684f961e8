"""Uncertainty of the last layer, against numpy on features written down by hand."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from flax import nnx
from morse import morse_potential

from eqnet import EqnetCalculator
from eqnet.calculator import Member
from eqnet.data.frame import Frame, from_atoms, to_atoms
from eqnet.errors import OutOfDomain
from eqnet.graph import AtomGraph, displacements, sum_rows
from eqnet.models import MACE, MACEConfig
from eqnet.potential import Potential
from eqnet.uncertainty import RIDGE, Uncertainty, calibrate
from eqnet.verlet_list import VerletList

CENTERS, CUTOFF, SCALE = np.array([0.9, 1.3, 1.8, 2.4]), 3.0, (2.0, 0.5)


class Bumps(nnx.Module):
    """Energies are linear in sums of bumps over the neighbours."""

    def __init__(self) -> None:
        self.readout = nnx.Param(jnp.array([[0.7], [-0.4], [0.3], [0.1]]))

    def __call__(self, graph: AtomGraph) -> jax.Array:
        r = jnp.linalg.norm(displacements(graph), axis=-1)[..., None]
        bumps = jnp.exp(-4 * (r - CENTERS) ** 2) * jnp.where(r < CUTOFF, (1 - r / CUTOFF) ** 3, 0)
        features = sum_rows(jnp.where(graph.neighbor_mask[..., None], bumps, 0).sum(1), graph)
        return (features @ self.readout[...])[:, 0]


@pytest.fixture(scope="module")
def potential() -> Potential:
    with jax.enable_x64(True):
        return Potential(
            Bumps(),
            elements=(1, 8),
            cutoff=CUTOFF,
            atomic_energies=(-10.0, -2000.0),
            scale=SCALE,
            shift=(0.0, 0.3),
        )


def waters(number: int, seed: int, spread: float = 0.08) -> list[Frame]:
    """Pairs of water molecules."""
    rng = np.random.default_rng(seed)
    one = np.array([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    both = np.concatenate([one, one @ np.diag([-1, 1, -1]) + [0, 0.4, 2.4]])
    return [
        from_atoms(Atoms("OH2OH2", both + rng.normal(scale=spread, size=(6, 3))), index=i)
        for i in range(number)
    ]


def by_hand(frame: Frame) -> np.ndarray:
    """Features of the atoms, derivatives of energies by the readout, in a double loop."""
    out = np.zeros((len(frame), len(CENTERS)))
    for i, x in enumerate(frame.positions):
        for j, y in enumerate(frame.positions):
            r = np.linalg.norm(x - y)
            if i != j and r < CUTOFF:
                out[i] += np.exp(-4 * (r - CENTERS) ** 2) * (1 - r / CUTOFF) ** 3
        out[i] *= SCALE[0] if frame.numbers[i] == 1 else SCALE[1]
    return out


def inverse(rows: np.ndarray) -> np.ndarray:
    second = sum(np.outer(row, row) for row in rows)
    return np.linalg.inv(second + RIDGE * np.trace(second) / 4 * np.eye(4))


def test_energy_and_novelty(potential: Potential) -> None:
    train, valid = waters(30, 0), waters(200, 1)
    metric = inverse(np.array([by_hand(frame).sum(0) for frame in train]))
    # labels that differ from the model's as weights drawn from 0.01^2 metric do
    rng, root = np.random.default_rng(2), np.linalg.cholesky(metric)
    weights = np.array([0.7, -0.4, 0.3, 0.1])
    labelled, squares = [], []
    for frame in valid:
        total = by_hand(frame).sum(0)
        error = 0.01 * total @ root @ rng.normal(size=4)
        energy = total @ weights + error + 2 * (-2000 + 0.3) + 4 * -10
        labelled.append(replace(frame, energy=float(energy)))
        squares.append(error**2 / (total @ metric @ total))
    found = calibrate(potential, train, labelled)
    assert found is not None
    np.testing.assert_allclose(found.energy_metric, np.mean(squares) * metric, rtol=1e-7)
    assert found.energy(by_hand(valid[0])) == pytest.approx(
        0.01 * np.sqrt(by_hand(valid[0]).sum(0) @ metric @ by_hand(valid[0]).sum(0)), rel=0.15
    )  # 200 draws know their variance to 10 %, its root to 5 %

    for index, z in enumerate((1, 8)):
        near = inverse(np.concatenate([by_hand(f)[f.numbers == z] for f in train]))
        far = np.concatenate([by_hand(f)[f.numbers == z] for f in valid])
        edge = max(f @ near @ f for f in far)
        other = by_hand(waters(1, 3, 0.3)[0])[train[0].numbers == z]
        expected = [np.sqrt(f @ near @ f / edge) for f in other]
        novelty = found.novelty(other, np.full(len(other), index))
        np.testing.assert_allclose(novelty, expected, rtol=1e-6)


def test_without_energies_or_a_readout(potential: Potential) -> None:
    found = calibrate(potential, waters(10, 0), waters(10, 1))
    assert found is not None and found.energy(by_hand(waters(1, 2)[0])) is None
    assert calibrate(morse_potential(), waters(2, 0), waters(2, 1)) is None


def test_features_times_weights_are_energies() -> None:
    """For MACE, whose readouts end in maps without bias, in every layer."""
    config = MACEConfig(
        elements=(1, 8), r_max=3.0, num_channels=4, max_L=1, max_ell=1, correlation=2,
    )  # fmt: skip
    with jax.enable_x64(True):
        model = MACE(config, rngs=nnx.Rngs(0))
        potential = Potential(
            model, elements=(1, 8), cutoff=3.0, atomic_energies=(0, 0), scale=SCALE, shift=(0, 0)
        )
        graph = VerletList((1, 8), 3.0, 0.0, "float64").build(waters(1, 0)[0])
        answer = jax.jit(lambda graph: potential.predict(graph, features=True))(graph)
        last = [readout.mlp.weights[-1][...].ravel() for readout in model.readouts]
        assert answer.features is not None
        np.testing.assert_allclose(
            answer.features @ np.concatenate(last), answer.node_energy, atol=1e-12
        )
        plain = jax.jit(potential.predict)(graph)
        np.testing.assert_allclose(answer.forces, plain.forces, atol=1e-12)


def test_calculator_warns_once(potential: Potential) -> None:
    train, valid = waters(30, 0), waters(30, 1)
    found = calibrate(potential, train, [replace(f, energy=-4040.0) for f in valid])
    calc = EqnetCalculator(potential, dtype="float64")
    calc._prepare([Member(potential, uncertainty=found)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for frame in valid[:5]:
            calc.calculate(to_atoms(frame), ["energy"])
            features = by_hand(frame)
            assert found is not None
            assert calc.results["energy_uncertainty"] == pytest.approx(found.energy(features))
            assert calc.results["novelty"].max() <= 1.0
    strange = to_atoms(valid[0])
    strange.positions *= 0.5
    with pytest.warns(OutOfDomain, match=r"atom \d \([HO]\) is .* times as far"):
        calc.calculate(strange, ["energy"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calc.calculate(strange, ["energy"])  # said already


def test_property_by_name(potential: Potential) -> None:
    found = calibrate(potential, waters(9, 0), waters(9, 1))
    calc = EqnetCalculator(potential, dtype="float64")
    calc._prepare([Member(potential, uncertainty=found)])
    atoms = to_atoms(waters(1, 1)[0])
    novelty = calc.get_property("novelty", atoms)
    assert novelty is not None and novelty.shape == (6,)


def test_file(potential: Potential, tmp_path: Path) -> None:
    """What `arrays` gives is what a file keeps."""
    found = calibrate(potential, waters(9, 0), waters(9, 1))
    assert found is not None
    shapes = {name: array.shape for name, array in found.arrays().items()}
    assert shapes == Uncertainty.shapes(elements=2, size=4)
