"""Errors against hand-computed numbers and plain loops."""

import io
import math

import numpy as np
import pytest
from rich.console import Console

from eqnet import metrics
from eqnet.data.frame import Frame
from eqnet.evaluation import Answer


def structure(numbers, energy, forces, stress, config_type="Default"):
    """A frame with these labels; where its atoms are makes no difference here."""
    n = len(numbers)
    return Frame(
        np.asarray(numbers),
        np.zeros((n, 3)),
        np.eye(3),
        np.ones(3, bool),
        energy,
        forces,
        stress,
        config_type,
        file="a.xyz",
    )


def hydrogen(energy, force, stress=None, config_type="Default"):
    """Two atoms with the same number in every component."""
    tensor = None if stress is None else np.full((3, 3), stress)
    forces = None if force is None else np.full((2, 3), force)
    return structure([1, 1], energy, forces, tensor, config_type)


def says(energy, force, stress=None, atoms=2):
    tensor = None if stress is None else np.full((3, 3), stress)
    return Answer(energy, np.full((atoms, 3), force), tensor, np.zeros(atoms))


def test_errors_by_hand():
    frames = [hydrogen(1.0, 0.1, 0.01, "x"), hydrogen(2.0, 0.2, 0.02, "y")]
    answers = [says(1.003, 0.101, 0.011), says(1.999, 0.197, 0.024)]
    found = metrics.errors(frames, answers)
    expected = {
        "num_structures": 2,
        "energy_mae": 2.0,
        "energy_rmse": math.sqrt(5.0),
        "energy_per_atom_mae": 1.0,
        "energy_per_atom_rmse": math.sqrt(5.0) / 2,
        "forces_mae": 2.0,
        "forces_rmse": math.sqrt(5.0),
        "stress_mae": 2.5,
        "stress_rmse": math.sqrt(8.5),
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    assert set(found) == set(expected) | {"config_types"}
    assert found["config_types"]["x"]["energy_mae"] == pytest.approx(3.0)
    assert found["config_types"]["y"]["stress_rmse"] == pytest.approx(4.0)
    assert found["config_types"]["y"]["num_structures"] == 1


def test_errors_agree_with_loops():
    rng = np.random.default_rng(0)
    frames, answers = [], []
    energy, per_atom, forces, stress = [], [], [], []
    for _ in range(7):
        n = int(rng.integers(1, 6))
        frame = structure(np.ones(n, int), *random_labels(rng, n))
        answer = Answer(*random_labels(rng, n), rng.normal(size=n))
        frames.append(frame)
        answers.append(answer)
        assert frame.energy is not None and frame.forces is not None
        assert frame.stress is not None and answer.stress is not None
        energy.append(answer.energy - frame.energy)
        per_atom.append((answer.energy - frame.energy) / n)
        for i in range(n):
            for axis in range(3):
                forces.append(answer.forces[i, axis] - frame.forces[i, axis])
        for i in range(3):
            for j in range(3):
                stress.append(answer.stress[i, j] - frame.stress[i, j])
    found = metrics.errors(frames, answers)
    for name, deviations in {
        "energy": energy,
        "energy_per_atom": per_atom,
        "forces": forces,
        "stress": stress,
    }.items():
        mae = 1000 * sum(abs(d) for d in deviations) / len(deviations)
        rmse = 1000 * math.sqrt(sum(d * d for d in deviations) / len(deviations))
        assert found[f"{name}_mae"] == pytest.approx(mae, rel=1e-12)
        assert found[f"{name}_rmse"] == pytest.approx(rmse, rel=1e-12)


def random_labels(rng, n):
    return float(rng.normal()), rng.normal(size=(n, 3)), rng.normal(size=(3, 3))


def test_absent_labels_have_no_error():
    found = metrics.errors(
        [hydrogen(1.0, None, None, "a"), hydrogen(None, 0.1, None, "b")],
        [says(1.0, 0.0, 0.0), says(5.0, 0.0, 0.0)],
    )
    assert found["energy_mae"] == 0.0  # one perfect answer, not a missing one
    assert found["forces_mae"] == pytest.approx(100.0)
    assert "stress_mae" not in found and "stress_rmse" not in found
    assert "forces_mae" not in found["config_types"]["a"]
    assert "energy_mae" not in found["config_types"]["b"]


def test_stress_of_a_structure_that_has_none_is_left_out():
    found = metrics.errors([hydrogen(1.0, 0.1, 0.01)], [says(1.0, 0.1, None)])
    assert "stress_mae" not in found


def test_nothing_at_all():
    assert metrics.errors([], []) == {"num_structures": 0, "config_types": {}}
    with pytest.raises(ValueError, match="1 frames but 0 answers"):
        metrics.errors([hydrogen(1.0, 0.1)], [])


def test_float32_answers_are_compared_in_float64():
    frame = hydrogen(-1e6, 0.0)
    answer = says(-1e6 + 1e-3, 0.0)._replace(forces=np.full((2, 3), 1e-3, np.float32))
    found = metrics.errors([frame], [answer])
    assert found["energy_mae"] == pytest.approx(1.0, rel=1e-6)
    assert found["forces_mae"] == pytest.approx(1.0, rel=1e-6)


def test_forces_by_element():
    frame = structure([1, 8, 1], None, np.zeros((3, 3)), None)
    answer = Answer(0.0, np.array([[0.001] * 3, [0.002] * 3, [0.003] * 3]), None, np.zeros(3))
    found = metrics.force_errors_by_element([frame], [answer])
    assert list(found) == [1, 8]
    assert found[1] == pytest.approx(
        {"num_atoms": 2, "forces_mae": 2.0, "forces_rmse": math.sqrt(5.0)}
    )
    assert found[8]["forces_mae"] == pytest.approx(2.0)
    assert metrics.force_errors_by_element([hydrogen(1.0, None)], [says(1.0, 0.0)]) == {}


def test_errors_of_each_frame():
    frames = [hydrogen(1.0, 0.1), hydrogen(None, None)]
    first, second = metrics.frame_errors(frames, [says(0.9, 0.2), says(0.0, 0.0)])
    assert first["energy_per_atom"] == pytest.approx(-50.0)
    assert first["forces_rmse"] == pytest.approx(100.0)
    assert first["forces_max"] == pytest.approx(100.0)
    assert set(second) == {"file", "index", "config_type", "num_atoms"}


def printed(*args):
    text = io.StringIO()
    Console(file=text, width=80).print(metrics.table(*args))
    return text.getvalue()


def test_table():
    frames = [hydrogen(1.0, 0.1, config_type="bulk"), hydrogen(2.0, None, config_type="all")]
    measured = metrics.errors(frames, [says(1.001, 0.102), says(2.003, 0.0)])
    naive = metrics.errors(frames, [says(1.5, 0.0), says(1.5, 0.0)])
    text = printed(measured, naive)
    assert "bulk" in text and "stress" not in text
    blocks = text.count("energy/atom, meV")
    assert blocks == 3  # two config_types, of which one is called "all", and all together
    assert "naive" not in printed(measured)
    assert "no labels" in printed(metrics.errors([hydrogen(None, None)], [says(0.0, 0.0)]))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (0.01234, "0.0123"),
        (1.0, "1.00"),
        (12.34, "12.3"),
        (1234.5, "1,234"),
        (float("nan"), "nan"),
        (1e-9, "1.0e-09"),
    ],
)
def test_number(value, text):
    assert metrics.number(value) == text
