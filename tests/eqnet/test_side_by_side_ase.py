"""Structures that are computed together have the answers, and the errors, that each has alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc100, fcc111, molecule
from ase.calculators.calculator import Calculator, PropertyNotImplementedError
from ase.calculators.emt import EMT as AseEMT
from ase.constraints import FixAtoms
from ase.mep import NEB, NEBTools
from ase.optimize import BFGS, FIRE
from emt import emt_potential
from morse import morse_potential

from eqnet import EqnetCalculator
from eqnet.data.frame import Frame
from eqnet.errors import InputError
from eqnet.side_by_side import SideBySide

POTENTIAL = morse_potential()
TRAINED = Path(__file__).parents[1] / "references" / "model_format_1.eqnet"
PROPERTIES = ("energy", "free_energy", "energies", "forces", "stress")


def calculator(**options: Any) -> EqnetCalculator:
    return EqnetCalculator(POTENTIAL, dtype="float64", **options)


@cache
def one_by_one() -> EqnetCalculator:
    """What is compared with."""
    return calculator()


def calculator_of(atoms: Atoms) -> Calculator:
    assert isinstance(atoms.calc, Calculator)
    return atoms.calc


def mixture() -> list[Atoms]:
    """A molecule, a crystal smaller than the cutoff, a slab, one atom, and a wire."""
    crystal = bulk("CO", "rocksalt", 4.0)
    crystal.positions[1] += 2 * crystal.cell.array[0]
    slab = fcc111("C", (2, 1, 2), a=3.4)
    wire = Atoms("CO", [[0, 0, 0], [0, 0, 1.3]], cell=[0, 0, 2.9], pbc=[False, False, True])
    structures = [molecule("CH3CH2OH"), crystal, slab, Atoms("H"), wire]
    for seed, atoms in enumerate(structures):
        atoms.rattle(0.05, seed=seed)
    return structures


def check_same(structures: list[Atoms]) -> None:
    for atoms in structures:
        twin = atoms.copy()
        twin.calc = one_by_one()
        for name in PROPERTIES:
            if name == "stress" and not atoms.pbc.all():
                with pytest.raises(PropertyNotImplementedError, match="has no volume"):
                    atoms.get_stress()
                continue
            here, there = (np.array(calculator_of(a).get_property(name, a)) for a in (atoms, twin))
            np.testing.assert_allclose(here, there, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("skin", [0.0, 0.4])
def test_answers_are_those_of_each_alone(skin: float) -> None:
    structures = mixture()
    group = SideBySide(calculator(skin=skin), structures)
    check_same(structures)
    assert group.sweeps == 1
    for seed, atoms in enumerate(structures):  # far enough for other neighbours
        atoms.rattle(0.3, seed=10 + seed)
    structures[1].set_cell(1.03 * structures[1].cell.array, scale_atoms=True)
    structures[2].symbols[0] = "O"
    check_same(structures)
    assert group.sweeps == 2


def test_one_call_for_all_that_moved_and_none_for_those_at_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    structures = [molecule("CH3CH2OH") for _ in range(8)]
    calc = calculator(skin=0.3)
    group, asked = SideBySide(calc, structures), []
    answers = calc.answers

    def count(frames: Sequence[Frame]) -> Any:
        asked.append(len(frames))
        return answers(frames)

    monkeypatch.setattr(calc, "answers", count)
    for moving in (8, 8, 5, 3, 3):
        for seed, atoms in enumerate(structures[:moving]):
            atoms.rattle(0.01, seed=seed)
        for atoms in structures:
            atoms.get_forces()
            atoms.get_potential_energy()
    assert asked == [8, 8, 8, 3, 3] and group.sweeps == 5
    structures[7].rattle(0.01)
    structures[7].get_forces()
    assert asked[-1] == 1
    assert calc.compilations == 1  # smaller groups have room in the program of the first
    check_same(structures)


def test_the_atoms_asked_about_count() -> None:
    structures = [molecule("H2O"), molecule("NH3")]
    structures[1].symbols[0] = "O"
    SideBySide(calculator(), structures)
    other = structures[0].copy()
    other.rattle(0.1)
    energy = calculator_of(structures[0]).get_potential_energy(other)
    other.calc = one_by_one()
    assert energy == pytest.approx(other.get_potential_energy(), abs=1e-10)
    check_same(structures)


def test_a_structure_without_answer_is_named_and_troubles_no_other() -> None:
    structures = [molecule("H2O") for _ in range(5)]
    structures[1].symbols[1] = "Xe"
    structures[3].positions[2] = structures[3].positions[1]
    structures[4].positions[0, 0] = np.nan
    SideBySide(calculator(skin=0.2), structures, name="water.xyz", indices=[10, 11, 12, 13, 14])
    for i, message in [
        (1, r"water.xyz, frame 11: element Xe \(atom 1\) is unknown"),
        (3, "water.xyz, frame 13: atoms 1 and 2 coincide"),
        (4, r"water.xyz, frame 14: the position of atom 0 \(O\) is not finite"),
    ]:
        with pytest.raises(InputError, match=message):
            structures[i].get_forces()
    check_same([structures[0], structures[2]])
    structures[3].positions[2, 0] += 0.9  # mended
    structures[0].rattle(0.01)
    check_same([structures[0], structures[3]])
    structures[3].positions[2] = structures[3].positions[1] + 1e-9  # within the skin's reach
    with pytest.raises(InputError, match="frame 13: atoms 1 and 2 coincide"):
        structures[3].get_forces()
    structures[0].rattle(0.01)
    check_same([structures[0]])


def test_refusals() -> None:
    water = molecule("H2O")
    with pytest.raises(InputError, match="there are no structures"):
        SideBySide(calculator(), [])
    with pytest.raises(InputError, match="one structure is there twice"):
        SideBySide(calculator(), [water, molecule("H2O"), water])


def test_examples_of_the_file_are_replayed_by_the_program_of_the_group() -> None:
    structures = [molecule("CH3CH2OH"), molecule("H2O")]
    calc = EqnetCalculator(TRAINED, dtype="float64")
    SideBySide(calc, structures)
    assert sum(len(examples) for _, examples in calc._answers.to_replay) > 0
    assert np.isfinite(structures[1].get_forces()).all()
    assert calc.compilations == 1 and not calc._answers.to_replay


# ------------------------------------------------------------------------------ ASE's EMT and NEB


def hop(make: Any = fcc100, **options: Any) -> tuple[Atoms, Atoms]:
    """Both ends of the hop of an aluminium atom on copper."""
    start = make("Cu", (2, 2, 2), vacuum=8.0, **options)
    add_adsorbate(start, "Al", 1.8, "hollow")
    start.set_constraint(FixAtoms(start.numbers == 29))
    end = start.copy()
    end.positions[-1] += start.cell.array[0] / 2
    return start, end


def band_with(calculators: Any, start: Atoms, end: Atoms) -> tuple[list[Atoms], int]:
    images = [start, *(start.copy() for _ in range(3)), end]
    neb = NEB(images, climb=True, method="improvedtangent")
    neb.interpolate("idpp", mic=True)
    calculators(images)
    optimizer = FIRE(neb, logfile=None)  # pyright: ignore[reportArgumentType]
    assert optimizer.run(fmax=0.02, steps=60)
    return images, optimizer.nsteps


def test_neb_is_that_of_ases_emt() -> None:
    def separate(images: list[Atoms]) -> None:
        for image in images:
            image.calc = AseEMT()

    start, end = hop()
    for atoms in (start, end):
        atoms.calc = AseEMT()
        BFGS(atoms, logfile=None).run(fmax=0.01)
    there, steps = band_with(separate, start.copy(), end.copy())
    calc, groups = EqnetCalculator(emt_potential(), dtype="float64", skin=0.3), []
    here, own_steps = band_with(
        lambda images: groups.append(SideBySide(calc, images)), start.copy(), end.copy()
    )
    assert own_steps == steps and groups[0].sweeps == steps + 1
    for image, twin in zip(here, there, strict=True):
        np.testing.assert_allclose(image.positions, twin.positions, atol=1e-8)
        energies = image.get_potential_energy(), twin.get_potential_energy()
        assert energies[0] == pytest.approx(energies[1], abs=1e-9)
    barriers = [NEBTools(images).get_barrier() for images in (here, there)]
    np.testing.assert_allclose(barriers[0], barriers[1], atol=1e-8)
    assert 0.05 < barriers[0][0] < 1.0
    assert calc.compilations <= 2  # all images with the ends, and those between them
    assert calc._answers.neighbors.builds < steps / 2
