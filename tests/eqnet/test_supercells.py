"""A crystal written in a larger cell has the same energy per atom and the same forces.

Any cell (skewed, left-handed, smaller than the cutoff), any periodic axes, atoms outside it, and
larger cells that are no mere repetitions. The model's two layers see atoms of the images' images.
"""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from eqnet.data.frame import Frame
from eqnet.data.items import make_item
from eqnet.data.packing import Shape, pack
from eqnet.errors import InputError
from eqnet.models.nequip import NequIP, NequIPConfig
from eqnet.potential import Potential, Prediction

ELEMENTS, CUTOFF = (1, 8), 3.0
SHAPE = Shape(atoms=18, structures=2, rows=150, slots=16, rows_per_atom=8)


@pytest.fixture(scope="module")
def predict():
    """Energies and forces of frames in one compiled program."""
    with jax.enable_x64():
        config = NequIPConfig(
            ELEMENTS, r_max=CUTOFF, hidden_irreps="3x0e+2x1o", num_interactions=2,
            radial_MLP=(8,), MLP_channels=4, avg_num_neighbors=8.0,
        )  # fmt: skip
        model = NequIP(config, rngs=nnx.Rngs(1))
        potential = Potential(
            model, elements=ELEMENTS, cutoff=CUTOFF,
            atomic_energies=[-3.0, -5.0], scale=[1.0, 1.5], shift=[0.5, 0.0],
        )  # fmt: skip
        graphdef, weights = nnx.split(potential)
        weights = jax.tree.map(lambda x: np.asarray(x).astype(np.float64), weights)

    @jax.jit
    def program(graph):
        return nnx.merge(graphdef, weights).predict(graph)

    def call(frames: list[Frame]) -> Prediction:
        items = [make_item(frame, ELEMENTS, CUTOFF) for frame in frames]
        with jax.enable_x64():
            return jax.device_get(program(pack(items, SHAPE, np.float64)))

    return call


def random_crystal(rng: np.random.Generator) -> Frame:
    """One to three atoms, none nearer than half an angstrom to another or to an image."""
    while True:
        cell = np.diag(rng.uniform(1.6, 4.0, 3)) + rng.uniform(-1.2, 1.2, (3, 3))
        pbc = rng.random(3) < 0.7
        numbers = rng.choice(ELEMENTS, rng.integers(1, 4))
        positions = rng.uniform(-1, 2, (len(numbers), 3)) @ cell
        frame = Frame(numbers, positions, cell, pbc)
        try:
            item = make_item(frame, ELEMENTS, CUTOFF)
        except InputError:  # atoms at the same place
            continue
        if item.neighbors.distances.min(initial=1.0) > 0.5 and item.counts.max() < 120:
            return frame


def random_supercell(rng: np.random.Generator, pbc: np.ndarray) -> np.ndarray:
    """Rows are the new lattice vectors in the old ones: 2 to 5 cells, turned axes allowed."""
    while True:
        matrix = np.where(np.outer(pbc, pbc), rng.integers(-2, 3, (3, 3)), np.eye(3, dtype=int))
        if 2 <= abs(round(np.linalg.det(matrix))) <= 5 or not pbc.any():
            return matrix


def enlarged(frame: Frame, matrix: np.ndarray, rng: np.random.Generator) -> Frame:
    """The same crystal in the larger cell; every atom is moved by a random new lattice vector."""
    larger = matrix @ frame.cell
    inverse = np.linalg.inv(matrix)
    span = range(-10, 11)
    inside = []
    for shift in itertools.product(*(span if axis else range(1) for axis in frame.pbc)):
        fractions = np.array(shift) @ inverse
        if ((fractions > -1e-9) & (fractions < 1 - 1e-9)).all():
            inside.append(np.array(shift) @ frame.cell)
    copies = abs(round(np.linalg.det(matrix)))
    assert len(inside) == copies
    positions = np.concatenate([frame.positions + shift for shift in inside])
    moved = np.where(frame.pbc, rng.integers(-2, 3, positions.shape), 0) @ larger
    return Frame(np.tile(frame.numbers, copies), positions + moved, larger, frame.pbc)


def check(predict, seed: int) -> None:
    rng = np.random.default_rng(seed)
    small = random_crystal(rng)
    large = enlarged(small, random_supercell(rng, small.pbc), rng)
    n, m = len(small), len(large)
    answer = predict([small, large])
    energies = np.asarray(answer.node_energy)
    one, many = energies[:n], energies[n : n + m].reshape(-1, n)
    scale = max(1.0, float(abs(one).max()))
    assert abs(many - one).max() < 1e-10 * scale
    assert abs(answer.energy[1] / m - answer.energy[0] / n) < 1e-10 * scale
    forces = np.asarray(answer.forces)
    largest = max(1.0, float(abs(forces).max()))
    repeated = forces[n : n + m].reshape(-1, n, 3)
    assert abs(repeated - forces[:n]).max() < 1e-10 * largest


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**31))
def test_supercells(predict, seed: int) -> None:
    check(predict, seed)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(st.integers(0, 2**63))
def test_supercells_ten_thousand_times(predict, seed: int) -> None:
    check(predict, seed)
