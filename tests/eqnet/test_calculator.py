"""The calculator keeps ASE's contract, for every boundary condition and any order of structures."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces
from ase.collections import g2
from ase.optimize import BFGS
from ase.vibrations import VibrationsData
from morse import MODELS, by_hand, model_of, morse_potential

import eqnet.models
from eqnet import EqnetCalculator
from eqnet.data.frame import from_atoms
from eqnet.errors import InputError
from eqnet.model_file import save
from eqnet.verlet_list import VerletList, compilation

POTENTIAL = morse_potential()
TRAINED = Path(__file__).parents[1] / "references" / "model_format_1.eqnet"


@pytest.fixture(scope="module")
def calc() -> EqnetCalculator:
    return EqnetCalculator(POTENTIAL, dtype="float64", skin=0.4)


@pytest.fixture(scope="module")
def single() -> EqnetCalculator:
    return EqnetCalculator(POTENTIAL)


def ethanol(seed: int = 0) -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=seed)
    return atoms


def crystal(seed: int = 0) -> Atoms:
    """A left-handed, skewed cell smaller than the cutoff, atoms partly outside."""
    atoms = bulk("CO", "rocksalt", 4.0)
    atoms.set_cell(atoms.cell.array[[1, 0, 2]] + 0.1 * np.arange(9).reshape(3, 3) % 0.37)
    atoms.rattle(0.1, seed=seed)
    atoms.positions[1] += 2 * atoms.cell.array[0] - atoms.cell.array[2]
    return atoms


def slab() -> Atoms:
    atoms = fcc111("C", (2, 2, 2), a=3.4)  # periodic in the plane only, c is zero or vacuum
    atoms.rattle(0.05, seed=3)
    return atoms


def energy_of(atoms: Atoms) -> float:
    return by_hand(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, POTENTIAL, images=4)


@pytest.mark.parametrize("make", [ethanol, crystal, slab])
def test_energy_and_forces(calc: EqnetCalculator, make) -> None:
    atoms = make()
    atoms.calc = calc
    assert atoms.get_potential_energy() == pytest.approx(energy_of(atoms), rel=1e-12)
    # sixth-order central differences of the brute-force energy
    weights, forces = {1: 45 / 60, 2: -9 / 60, 3: 1 / 60}, atoms.get_forces()
    for atom, axis in [(0, 0), (1, 2)]:
        slope = 0.0
        for k, weight in weights.items():
            for sign in (1, -1):
                moved = atoms.copy()
                moved.positions[atom, axis] += sign * k * 0.01
                slope += sign * weight * (energy_of(moved) - energy_of(atoms)) / 0.01
        assert forces[atom, axis] == pytest.approx(-slope, rel=1e-7, abs=1e-8)


def test_forces_by_ase(calc: EqnetCalculator) -> None:
    atoms = crystal()
    atoms.calc = calc
    numerical = calculate_numerical_forces(atoms, eps=1e-4)
    np.testing.assert_allclose(atoms.get_forces(), numerical, atol=1e-5)


def test_stress(calc: EqnetCalculator) -> None:
    atoms = crystal()
    atoms.calc = calc
    stress, volume = atoms.get_stress(), atoms.get_volume()
    assert stress.shape == (6,) and stress.dtype == np.float64
    for voigt, (i, j) in enumerate([(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]):
        slope = 0.0
        for k, weight in {1: 45 / 60, 2: -9 / 60, 3: 1 / 60}.items():
            for sign in (1, -1):
                strain = np.zeros((3, 3))
                strain[i, j] += sign * k * 5e-4
                strain[j, i] += sign * k * 5e-4
                strained = atoms.copy()
                strained.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
                slope += sign * weight * (energy_of(strained) - energy_of(atoms)) / 1e-3
        assert stress[voigt] == pytest.approx(slope / volume, rel=1e-7, abs=1e-8)


def test_stress_needs_three_periodic_axes(calc: EqnetCalculator) -> None:
    for atoms in (slab(), ethanol(), Atoms("C", cell=[3, 3, 3], pbc=[1, 0, 1])):
        atoms.calc = calc
        with pytest.raises(PropertyNotImplementedError, match="three axes"):
            atoms.get_stress()
        assert np.isfinite(atoms.get_potential_energy())
        assert "stress" not in calc.results


def test_contract(single: EqnetCalculator) -> None:
    atoms = crystal()
    atoms.calc = single
    energy, forces, energies = (
        atoms.get_potential_energy(),
        atoms.get_forces(),
        atoms.get_potential_energies(),
    )
    assert type(energy) is float
    assert atoms.get_potential_energy(force_consistent=True) == energy
    assert energies.shape == (2,) and energies.dtype == forces.dtype == np.float64
    assert energies.sum() == pytest.approx(energy, rel=1e-12)
    assert set(single.results) == {"energy", "free_energy", "energies", "forces", "stress"}
    kept, kept_forces = single.results["forces"], forces.copy()
    forces += 1.0
    atoms.positions[0] += 0.1
    assert not np.array_equal(atoms.get_forces(), kept_forces)
    np.testing.assert_array_equal(kept, kept_forces)  # results are new arrays every time
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_dipole_moment()


def test_single_precision(single: EqnetCalculator, calc: EqnetCalculator) -> None:
    for atoms in (ethanol(), crystal(), slab()):
        far = atoms.copy()
        far.positions += 1000.0 if not atoms.pbc.any() else 100 * atoms.cell.array.sum(0)
        double = atoms.copy()
        atoms.calc, far.calc, double.calc = single, single, calc
        assert abs(atoms.get_potential_energy() - double.get_potential_energy()) < 2e-6
        assert abs(far.get_potential_energy() - double.get_potential_energy()) < 2e-6
        np.testing.assert_allclose(atoms.get_forces(), double.get_forces(), atol=1e-5)


def test_twenty_sizes_with_four_compilations() -> None:
    """Clusters of 1 to 20 molecules of water, in any order."""
    calculator = EqnetCalculator(POTENTIAL)
    grid = 3.0 * np.argwhere(np.ones((3, 3, 3)))
    water = molecule("H2O")
    for size in np.random.default_rng(0).permutation(20) + 1:
        atoms = Atoms()
        for place in grid[:size]:
            atoms += Atoms(water.numbers, positions=water.positions + place)
        atoms.calc = calculator
        assert np.isfinite(atoms.get_forces()).all()
    assert calculator.compilations <= 4


@pytest.mark.parametrize("seed", range(4))
def test_twenty_mixed_structures_with_four_shapes(seed: int) -> None:
    """Molecules, gases of them, and crystals of 1 to 216 atoms, in any order."""
    rng = np.random.default_rng(seed)
    known = {1, 6, 8}
    molecules = [name for name in g2.names if known.issuperset(molecule(name).numbers)]
    crystals = (bulk("C", "diamond", 3.57), bulk("CO", "rocksalt", 4.3), bulk("O", "bcc", 3.3))
    crystals += (bulk("C", "diamond", 3.57, cubic=True), bulk("C", "fcc", 3.6))
    neighbors = VerletList(POTENTIAL.elements, 5.0, 0.0)
    for kind in rng.permutation(20) % 4:
        atoms = Atoms()
        if kind % 2:
            atoms = crystals[rng.integers(5)] * rng.integers(1, 4, 3)
        for place in range({0: 1, 2: int(rng.integers(1, 12))}.get(int(kind), 0)):
            one = molecule(molecules[rng.integers(len(molecules))])
            atoms += Atoms(one.numbers, one.positions + [6.0 * place, 0.0, 0.0])
        neighbors.build(from_atoms(atoms))
    assert len(neighbors.shapes) <= 4


def test_molecules_and_crystals_share_a_program() -> None:
    calculator = EqnetCalculator(POTENTIAL)
    large = crystal() * (3, 3, 3)
    for atoms in (large, ethanol(), slab(), crystal()):
        atoms.calc = calculator
        assert np.isfinite(atoms.get_forces()).all()
        assert ("stress" in calculator.results) == bool(atoms.pbc.all())
    assert calculator.compilations == 1


def test_padding_in_vain_is_compiled_away() -> None:
    """A small structure after a large one gets a shape of its own when it comes often."""
    calculator = EqnetCalculator(POTENTIAL)
    large = Atoms("C216", positions=2.0 * np.argwhere(np.ones((6, 6, 6))), calculator=calculator)
    large.get_forces()
    slots = calculator._answers.neighbors.shape.rows * calculator._answers.neighbors.shape.slots
    small = molecule("H2O")
    small.calc = calculator
    calls = 0
    while calculator.compilations == 1:
        calls += 1
        small.rattle(0.01, seed=calls)
        small.get_forces()
    assert abs(calls - compilation() // slots) < 3
    assert calculator._answers.neighbors.shape.atoms < 10


def test_any_order_and_size_with_few_compilations() -> None:
    calculator = EqnetCalculator(POTENTIAL, dtype="float64")
    fresh = []
    rng = np.random.default_rng(0)
    for _ in range(60):
        n = int(rng.integers(1, 40))
        grid = np.argwhere(np.ones((4, 4, 3)))[rng.permutation(48)[:n]] * 1.4
        atoms = Atoms(
            rng.choice([1, 6, 8], n), positions=grid + rng.normal(scale=0.05, size=(n, 3))
        )
        if rng.random() < 0.3:
            atoms.set_cell([6.0, 6.0, 5.0])
            atoms.pbc = rng.random(3) < 0.6
        atoms.calc = calculator
        fresh.append((atoms, atoms.get_potential_energy()))
    assert calculator.compilations <= 6
    for atoms, energy in fresh[::20]:
        assert energy == pytest.approx(energy_of(atoms), rel=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_permutation_and_padding(dtype: str) -> None:
    """Atom order, and a shape made for a larger structure, change nothing but rounding."""
    calculator = EqnetCalculator(POTENTIAL, dtype=dtype)
    atoms = ethanol()
    atoms.calc = calculator
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    order = np.random.default_rng(0).permutation(len(atoms))
    shuffled = atoms[order]
    shuffled.calc = calculator
    other = EqnetCalculator(POTENTIAL, dtype=dtype)
    larger = molecule("C6H6")
    larger.calc = other
    larger.get_potential_energy()
    padded = atoms.copy()
    padded.calc = other
    bound = 1e-6 if dtype == "float32" else 1e-12 * abs(energy)
    assert abs(shuffled.get_potential_energy() - energy) <= bound
    assert abs(padded.get_potential_energy() - energy) <= bound
    assert other.compilations == 1
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(shuffled.get_forces(), forces[order], atol=tolerance)
    np.testing.assert_allclose(padded.get_forces(), forces, atol=tolerance)


def test_skin_changes_nothing_and_saves_searches() -> None:
    with_skin = EqnetCalculator(POTENTIAL, dtype="float64", skin=0.5)
    without = EqnetCalculator(POTENTIAL, dtype="float64")
    atoms = bulk("C", "diamond", 3.6, cubic=True)
    rng = np.random.default_rng(1)
    for step in range(30):
        atoms.positions += rng.normal(scale=0.02, size=atoms.positions.shape)
        if step == 20:  # whole lattice vectors are a move like any other
            atoms.wrap()
        a, b = atoms.copy(), atoms.copy()
        a.calc, b.calc = with_skin, without
        assert a.get_potential_energy() == pytest.approx(b.get_potential_energy(), abs=1e-9)
        np.testing.assert_allclose(a.get_forces(), b.get_forces(), atol=1e-11)
        np.testing.assert_allclose(a.get_stress(), b.get_stress(), atol=1e-12)
    assert with_skin._answers.neighbors.builds < 15 and without._answers.neighbors.builds == 30
    assert with_skin.compilations == 1


def test_changes_are_noticed(calc: EqnetCalculator) -> None:
    atoms = crystal()
    atoms.calc = calc

    def right() -> bool:
        return atoms.get_potential_energy() == pytest.approx(energy_of(atoms), rel=1e-12)

    assert right()
    atoms.set_cell(atoms.cell.array * 1.001)
    assert right()
    atoms.numbers[0] = 1
    assert right()
    atoms.pbc = [True, False, True]
    assert right()
    atoms.positions[0, 0] += 1e-6
    assert right()
    del atoms[0]
    assert right()


def test_slab_is_not_bulk(calc: EqnetCalculator) -> None:
    """A free axis sees no images, whatever the cell says along it; a wide gap is the same."""
    atoms = slab()
    cells = {}
    for height in (0.0, 4.0, 60.0):
        one = atoms.copy()
        one.cell.array[2] = [0.3, 0.2, height]
        one.calc = calc
        cells[height] = one.get_potential_energy()
    gap = atoms.copy()
    gap.cell.array[2] = [0.0, 0.0, 60.0]
    gap.pbc = True
    gap.calc = calc
    assert max(cells.values()) - min(cells.values()) < 1e-10
    assert gap.get_potential_energy() == pytest.approx(cells[60.0], abs=1e-9)
    dense = gap.copy()
    dense.cell.array[2] = [0.0, 0.0, 5.0]
    dense.calc = calc
    assert abs(dense.get_potential_energy() - cells[60.0]) > 1e-3


def test_single_atoms(calc: EqnetCalculator, single: EqnetCalculator) -> None:
    for calculator in (calc, single):
        for index, symbol in enumerate(("H", "C", "O")):
            atoms = Atoms(symbol, positions=[[5.0, 1.0, 2.0]])
            atoms.calc = calculator
            expected = POTENTIAL.atomic_energies[index] + POTENTIAL.shift[index]
            assert atoms.get_potential_energy() == expected
            assert not atoms.get_forces().any()


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (Atoms(), "no atoms"),
        (Atoms("CNe", [[0, 0, 0], [1, 0, 0]]), r"element Ne \(atom 1\) .* knows H, C, O"),
        (Atoms("X"), "element Z = 0"),
        (Atoms("CO", [[0, 0, 0], [np.nan, 0, 0]]), r"position of atom 1 \(O\) is not finite"),
        (Atoms("CO", [[0, np.inf, 0], [0, 0, 0]]), r"position of atom 0 \(C\) is not finite"),
        (Atoms("COH", [[0, 0, 0], [1, 0, 0], [1, 0, 0]]), "atoms 1 and 2 coincide"),
        (Atoms("C", pbc=True), "lattice vectors"),
        (Atoms("C", cell=[[1, 0, 0], [2, 0, 0], [0, 0, 1]], pbc=True), "linearly dependent"),
    ],
)
def test_refusals(calc: EqnetCalculator, atoms: Atoms, message: str) -> None:
    atoms.calc = calc
    with pytest.raises(InputError, match=message):
        atoms.get_potential_energy()
    good = ethanol()
    good.calc = calc
    assert np.isfinite(good.get_potential_energy())


def test_atoms_that_meet_after_a_search(calc: EqnetCalculator) -> None:
    atoms = Atoms("CO", [[0, 0, 0], [0, 0, 0.3]])
    atoms.calc = calc
    assert np.isfinite(atoms.get_potential_energy())
    atoms.positions[1] = 0.0
    with pytest.raises(InputError, match="atoms 0 and 1 coincide"):
        atoms.get_forces()


def test_a_full_device_is_a_sentence_and_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    atoms = ethanol()
    atoms.calc = calculator = EqnetCalculator(POTENTIAL, dtype="float64")

    def full(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: trying to allocate 9876543 bytes")

    with monkeypatch.context() as patch:
        patch.setattr(calculator._answers, "_predict", full)
        words = (
            "cpu:0 ran out of memory for 9 atoms and 70 edges; use a smaller skin, .* 9876543 bytes"
        )
        with pytest.raises(InputError, match=words):
            atoms.get_potential_energy()
    assert atoms.get_potential_energy() == pytest.approx(energy_of(atoms), rel=1e-12)


def test_a_full_host_is_a_sentence_and_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    atoms = ethanol()
    atoms.calc = calculator = EqnetCalculator(POTENTIAL, dtype="float64")

    def full(*args):
        raise MemoryError("Unable to allocate 13.2 MiB")

    with monkeypatch.context() as patch:
        patch.setattr(calculator._answers.neighbors, "build", full)
        words = "the host ran out of memory for 9 atoms; use a smaller skin, .* 13.2 MiB"
        with pytest.raises(InputError, match=words):
            atoms.get_potential_energy()
    assert atoms.get_potential_energy() == pytest.approx(energy_of(atoms), rel=1e-12)


def test_very_far(single: EqnetCalculator) -> None:
    """A molecule 1e8 A away, and one atom of a crystal ten million cells outside."""
    for atoms, moved in ((ethanol(), slice(None)), (crystal(), slice(1))):
        far = atoms.copy()
        far.positions[moved] += 1e7 * atoms.cell.array[0] if atoms.pbc.any() else 1e8
        atoms.calc = far.calc = single
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        assert far.get_potential_energy() == pytest.approx(energy, abs=5e-6)
        np.testing.assert_allclose(far.get_forces(), forces, atol=1e-5)


def test_very_near() -> None:
    """A trained network on pairs nearer than any that it was trained on."""
    calculator = EqnetCalculator(TRAINED, verify=False)
    for distance in (1.001e-3, 1e-2, 0.1):
        atoms = Atoms("OH", [[0, 0, 0], [0, 0, distance]], calculator=calculator)
        assert np.isfinite(atoms.get_potential_energy()) and np.isfinite(atoms.get_forces()).all()


def test_stress_that_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    atoms = crystal()
    atoms.calc = calculator = EqnetCalculator(POTENTIAL, dtype="float64")
    predict = calculator._answers._predict

    def overflow(*args, **kwargs):
        [(node_energy, forces, stress, features)] = predict(*args, **kwargs)
        return [(node_energy, forces, stress.at[0, 1, 2].set(jnp.inf), features)]

    monkeypatch.setattr(calculator._answers, "_predict", overflow)
    with pytest.raises(InputError, match="stress is not finite"):
        atoms.get_potential_energy()


def test_precision_is_that_of_the_object() -> None:
    """Whatever the process has set: float32 stays float32, and float64 needs no switch."""
    atoms = crystal(seed=4)
    atoms.calc = EqnetCalculator(POTENTIAL)
    energy = atoms.get_potential_energy()
    with jax.enable_x64(True):
        other = atoms.copy()
        other.calc = EqnetCalculator(POTENTIAL)
        assert other.get_potential_energy() == energy
        assert {leaf.dtype for leaf in jax.tree.leaves(other.calc._answers._weights)} == {
            np.dtype("float32")
        }
    assert jnp.zeros(()).dtype == np.float32


def test_bad_options() -> None:
    with pytest.raises(InputError, match="skin"):
        EqnetCalculator(POTENTIAL, skin=-1.0)
    with pytest.raises(InputError, match="dtype 'half'"):
        EqnetCalculator(POTENTIAL, dtype="half")
    with pytest.raises(InputError, match="device 'abacus' is not available here; there is cpu"):
        EqnetCalculator(POTENTIAL, device="abacus")
    with pytest.raises(InputError, match="device 'cpu:99'"):
        EqnetCalculator(POTENTIAL, device="cpu:99")


def test_a_potential_has_its_methods() -> None:
    with pytest.raises(InputError, match="method 'dense' has no effect on a potential"):
        EqnetCalculator(POTENTIAL, method="dense")


def test_threads_share_a_calculator() -> None:
    calculator = EqnetCalculator(POTENTIAL, dtype="float64", skin=0.2)
    structures = [ethanol(seed) for seed in range(4)] + [crystal(seed) for seed in range(2)]
    expected = [energy_of(atoms) for atoms in structures]
    wrong: list[int] = []

    def work(index: int) -> None:
        atoms = structures[index].copy()
        atoms.calc = calculator
        for _ in range(5):
            atoms.positions += 1e-9  # asks for a new calculation
            if abs(atoms.get_potential_energy() - expected[index]) > 1e-6:
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(structures))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_copies(calc: EqnetCalculator) -> None:
    atoms = ethanol()
    atoms.calc = calc
    energy = atoms.get_potential_energy()
    twin = copy.deepcopy(atoms)
    other = twin.calc
    assert isinstance(other, EqnetCalculator)
    assert other is not calc and other.results["energy"] == energy
    twin.positions[0] += 0.2
    assert twin.get_potential_energy() != energy
    assert calc.results["energy"] == energy
    assert other.compilations == calc.compilations


def test_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(eqnet.models.MODELS, "morse", MODELS["morse"])
    path = tmp_path / "morse.eqnet"
    config = model_of(POTENTIAL).config
    save(path, POTENTIAL, model_name="morse", config=config, training={}, examples=[])
    atoms = ethanol()
    atoms.calc = EqnetCalculator(path, dtype="float64", skin=0.1)
    energy = atoms.get_potential_energy()
    data = pickle.dumps(atoms.calc)
    assert len(data) < 20_000
    again = pickle.loads(data)
    assert again.results["energy"] == energy and again.skin == 0.1
    atoms.positions[0] += 0.1
    twin = atoms.copy()
    twin.calc = again
    assert twin.get_potential_energy() == atoms.get_potential_energy()
    path.write_bytes(b"other")
    with pytest.raises(InputError, match="gone or changed"):
        pickle.loads(data)


def test_a_new_process_takes_a_used_calculator(tmp_path: Path) -> None:
    """What `multiprocessing` does with the method spawn."""
    water = Atoms("OH2", [[0.0, 0.0, 0.0], [0.9, 0.1, 0.0], [-0.3, 0.9, 0.2]])
    water.calc = EqnetCalculator(TRAINED, verify=False)
    energy = water.get_potential_energy()
    water.calc.results = {}  # the other process is to compute, not to copy
    (tmp_path / "water").write_bytes(pickle.dumps(water))
    code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).get_potential_energy())"
    command = [sys.executable, "-c", code, str(tmp_path / "water")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(energy, abs=1e-5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_says_that_it_cannot_compute(calc: EqnetCalculator) -> None:
    """JAX's threads stay with the parent: without the sentence the child would wait forever."""
    water = molecule("H2O")
    water.calc = calc
    energy = water.get_potential_energy()
    pickled = pickle.dumps(calc)
    out, into = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # JAX warns of forks
        child = os.fork()
    if not child:
        try:
            for calculator in (calc, pickle.loads(pickled)):
                try:
                    calculator.calculate(water, ["energy"])
                except InputError as error:
                    os.write(into, f"{error}\n".encode())
        finally:
            os._exit(0)
    os.close(into)
    os.waitpid(child, 0)
    with os.fdopen(out) as answer:
        assert answer.read().count("use spawn") == 2
    calc.results = {}
    assert water.get_potential_energy() == energy


def test_optimiser(calc: EqnetCalculator) -> None:
    atoms = molecule("H2O")
    atoms.calc = calc
    assert BFGS(atoms, logfile=None).run(fmax=1e-6, steps=100)  # pyright: ignore
    assert np.abs(atoms.get_forces()).max() < 1e-6


def test_committee(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Means and variances of the members' own answers, whatever their cutoffs."""
    monkeypatch.setitem(eqnet.models.MODELS, "morse", MODELS["morse"])
    potentials = [
        morse_potential(r_max=r_max, steepness=steepness)
        for r_max, steepness in [(4.0, 1.3), (3.5, 1.2), (4.2, 1.5)]
    ]
    sources: list = list(potentials)
    sources[1] = tmp_path / "b.eqnet"
    config = model_of(potentials[1]).config
    save(sources[1], potentials[1], model_name="morse", config=config, training={}, examples=[])
    committee = EqnetCalculator(sources, dtype="float64")
    for atoms in (ethanol(), crystal()):
        alone = []
        for potential in potentials:
            single = EqnetCalculator(potential, dtype="float64")
            single.calculate(atoms, ["energy"])
            alone.append(single.results)
        committee.calculate(atoms, ["energy"])
        again = pickle.loads(pickle.dumps(committee))
        again.calculate(atoms, ["energy"])
        for name in ("energy", "forces", "energies", "stress"):
            if name == "stress" and not atoms.pbc.all():
                continue
            values = np.array([results[name] for results in alone])
            for calculator in (committee, again):
                mean = calculator.results[name]
                np.testing.assert_allclose(mean, values.sum(0) / 3, rtol=1e-12, atol=1e-12)
            if name != "energies":
                expected = ((values - values.sum(0) / 3) ** 2).sum(0) / 2
                np.testing.assert_allclose(
                    committee.results[f"{name}_variance"], expected, rtol=1e-6, atol=1e-15
                )
        variance = committee.get_property("energy_variance", atoms)
        assert variance is not None and variance > 0
    assert committee.compilations <= 2


def test_committee_of_other_elements() -> None:
    with pytest.raises(InputError, match=r"same elements, .* knows H, C, O and .* H, O"):
        EqnetCalculator([POTENTIAL, morse_potential((1, 8))])
    with pytest.raises(InputError, match="at least one model"):
        EqnetCalculator([])


@pytest.mark.parametrize("make", [ethanol, crystal, slab])
def test_hessian(calc: EqnetCalculator, make) -> None:
    """Against sixth-order differences of the forces, of small steps: pairs cross the cutoff."""
    atoms = make()
    hessian = calc.get_hessian(atoms)
    n = len(atoms)
    assert hessian.shape == (n, 3, n, 3) and hessian.dtype == np.float64
    np.testing.assert_array_equal(hessian, hessian.transpose(2, 3, 0, 1))
    for atom, axis in [(0, 0), (1, 2)]:
        slope = np.zeros((n, 3))
        for k, weight in {1: 45 / 60, 2: -9 / 60, 3: 1 / 60}.items():
            for sign in (1, -1):
                moved = atoms.copy()
                moved.positions[atom, axis] += sign * k * 1e-3
                calc.calculate(moved, ["forces"])
                slope -= sign * weight * calc.results["forces"] / 1e-3
        np.testing.assert_allclose(hessian[atom, axis], slope, rtol=1e-6, atol=1e-7)
    assert len(VibrationsData(atoms, hessian).get_energies()) == 3 * n
