"""Answers of a pair potential against loops over pairs and images, for mixed structures."""

import itertools

import numpy as np
import pytest
from pair_potential import ELEMENTS, REFERENCE, by_hand, pair_potential, random_frame

from eqnet import evaluation
from eqnet.data.frame import Frame
from eqnet.errors import InputError
from eqnet.evaluation import evaluate, naive


@pytest.fixture(scope="module")
def potential():
    return pair_potential()


@pytest.fixture(scope="module")
def mixture():
    rng = np.random.default_rng(5)
    boundaries = [(False, False, False), (True, True, True), (True, True, False)]
    frames = [random_frame(rng, n, boundaries[n % 3], n) for n in (3, 1, 4, 8, 6, 2, 5, 7, 16, 1)]
    lonely = Frame(np.array([8]), np.zeros((1, 3)), np.zeros((3, 3)), np.zeros(3, bool))
    return [*frames, lonely]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-11), ("float32", 1e-5)])
def test_answers_agree_with_loops(potential, mixture, dtype, tolerance):
    answers = evaluate(potential, mixture, dtype=dtype, batch_size=4)
    assert len(answers) == len(mixture)
    for frame, answer in zip(mixture, answers, strict=True):
        energy, forces, virial = by_hand(frame)
        size = 1 + np.abs(forces).max()
        assert answer.energy == pytest.approx(energy, abs=tolerance * size)
        assert answer.node_energy.sum() == pytest.approx(energy, rel=1e-12, abs=tolerance * size)
        np.testing.assert_allclose(answer.forces, forces, atol=tolerance * size)
        if frame.pbc.all():
            assert answer.stress is not None
            volume = abs(np.linalg.det(frame.cell))
            np.testing.assert_allclose(answer.stress, virial / volume, atol=tolerance * size)
        else:
            assert answer.stress is None
        for array in (answer.forces, answer.node_energy):
            assert array.dtype == np.float64


def test_energies_keep_their_digits_in_float32(potential):
    """A thousand oxygen atoms: -2 million eV, and still right to a microelectronvolt."""
    positions = np.array(list(itertools.product(range(10), repeat=3))) * 30.0
    frame = Frame(np.full(1000, 8), positions, np.zeros((3, 3)), np.zeros(3, bool))
    assert evaluate(potential, [frame])[0].energy == pytest.approx(-2041250.0, abs=1e-6)


def test_batches_do_not_matter(potential, mixture):
    together = evaluate(potential, mixture, dtype="float64")
    for batch_size in (1, 3):
        apart = evaluate(potential, mixture, dtype="float64", batch_size=batch_size)
        for one, other in zip(together, apart, strict=True):
            assert one.energy == pytest.approx(other.energy, rel=1e-12)
            np.testing.assert_allclose(one.forces, other.forces, atol=1e-10)


def compiled() -> int:
    """Shapes for which there is a program."""
    return evaluation._predict._cache_size()  # pyright: ignore[reportAttributeAccessIssue]


def test_few_compilations(potential):
    """Sixty structures of many sizes need a handful of shapes, a second call none."""
    rng = np.random.default_rng(6)
    frames = [random_frame(rng, int(n)) for n in rng.integers(2, 40, 60)]
    before = compiled()
    evaluate(potential, frames, batch_size=8)
    first = compiled() - before
    assert 1 <= first <= 5
    evaluate(potential, frames[::-1], batch_size=8)
    assert compiled() - before == first


def test_progress(potential, mixture):
    calls = []
    evaluate(potential, mixture, batch_size=4, progress=lambda *numbers: calls.append(numbers))
    done = [number for number, _ in calls]
    assert done == sorted(done) and done[-1] == len(mixture)
    assert {total for _, total in calls} == {len(mixture)}


def test_nothing_to_do(potential):
    assert evaluate(potential, []) == []
    assert naive([]) == []


def test_unknown_element(potential):
    frame = Frame(
        np.array([1, 6]), np.eye(3)[:2], np.zeros((3, 3)), np.zeros(3, bool), file="x.xyz", index=7
    )
    with pytest.raises(InputError, match=r"x\.xyz, frame 7 .*\bC\b.* H, O"):
        evaluate(potential, [frame])


@pytest.mark.parametrize("options", [{"dtype": "float16"}, {"batch_size": 0}, {"device": "abacus"}])
def test_bad_options(potential, mixture, options):
    with pytest.raises(InputError, match=next(iter(options))):
        evaluate(potential, mixture, **options)


def test_errors_in_the_packing_thread_are_raised(potential):
    frame = Frame(np.array([1, 1]), np.zeros((2, 3)), np.zeros((3, 3)), np.zeros(3, bool))
    with pytest.raises(InputError):
        evaluate(potential, [frame])


def test_naive_is_the_best_of_its_kind():
    """Energies that are linear in the composition are explained exactly; forces are zero."""
    rng = np.random.default_rng(7)
    frames = []
    for _ in range(6):
        numbers = rng.choice(ELEMENTS, int(rng.integers(1, 9)))
        energy = sum(REFERENCE[z] for z in numbers)
        stress = rng.normal(size=(3, 3))
        arrays = rng.normal(size=(2, len(numbers), 3))
        frames.append(
            Frame(numbers, arrays[0], np.eye(3), np.ones(3, bool), energy, arrays[1], stress)
        )
    answers = naive([*frames, Frame(np.array([8]), np.zeros((1, 3)), np.eye(3), np.ones(3, bool))])
    for frame, answer in zip(frames, answers, strict=False):
        assert answer.energy == pytest.approx(frame.energy, rel=1e-9)
        assert not answer.forces.any()
        assert answer.stress is not None
        np.testing.assert_allclose(answer.stress, np.mean([f.stress for f in frames], axis=0))
    assert answers[-1].energy == pytest.approx(-2041.25, rel=1e-9)  # an unlabelled one
