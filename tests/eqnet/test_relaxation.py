"""Structures that relax side by side go the way that each goes alone with ASE."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT as AseEMT
from ase.cluster import Octahedron
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from emt import emt_potential
from morse import morse_potential

from eqnet import EqnetCalculator
from eqnet.errors import InputError
from eqnet.relaxation import OPTIMIZERS, relax
from eqnet.side_by_side import SideBySide

POTENTIAL = emt_potential()


def metals() -> list[Atoms]:
    """Clusters, a molecule and a crystal with a vacancy, of copper and aluminium."""
    held = Octahedron("Cu", 3, cutoff=1)
    held.set_constraint(FixAtoms([0, 1, 2]))
    vacancy = bulk("Al", cubic=True) * (2, 1, 1)
    del vacancy[3]
    structures = [
        held,
        Atoms("CuAl", [[0, 0, 0], [0, 0, 2.4]]),
        Octahedron("Al", 2),
        vacancy,
        Octahedron("Cu", 2),
    ]
    structures[4].symbols[2] = "Al"
    for seed, atoms in enumerate(structures):
        atoms.rattle(0.1, seed=seed)
    return structures


def with_ase(
    structures: list[Atoms], optimizer: str, fmax: float, *, cell: bool = False
) -> list[int]:
    """Relax one after the other with ASE's own EMT; the steps it took."""
    steps = []
    for atoms in structures:
        atoms.calc = AseEMT()
        target = FrechetCellFilter(atoms) if cell else atoms
        alone = OPTIMIZERS[optimizer](target, logfile=None)
        assert alone.run(fmax=fmax, steps=300)
        steps.append(alone.nsteps)
    return steps


@pytest.mark.parametrize("optimizer", ["bfgs", "lbfgs", "fire"])
@pytest.mark.parametrize("room", [4000, 12])
def test_as_ases_emt(optimizer: Any, room: int) -> None:
    structures, twins = metals(), metals()
    calc = EqnetCalculator(POTENTIAL, dtype="float64", skin=0.3)
    ways = relax(calc, structures, optimizer=optimizer, fmax=0.02, room=room)
    assert all(way.converged and way.largest < 0.02 and not way.error for way in ways)
    assert [way.steps for way in ways] == with_ase(twins, optimizer, 0.02)
    for atoms, twin in zip(structures, twins, strict=True):
        np.testing.assert_allclose(atoms.positions, twin.positions, atol=1e-8)
        energies = atoms.get_potential_energy(), twin.get_potential_energy()
        assert energies[0] == pytest.approx(energies[1], abs=1e-9)
    assert calc.compilations <= (2 if room == 4000 else 4)


def test_sweeps_are_the_steps_of_the_slowest(monkeypatch: pytest.MonkeyPatch) -> None:
    sweeps, sweep = [], SideBySide._sweep

    def count(group: SideBySide, *args: Any) -> None:
        sweeps.append(group)
        sweep(group, *args)

    monkeypatch.setattr(SideBySide, "_sweep", count)
    calc = EqnetCalculator(POTENTIAL, dtype="float64", skin=0.3)
    ways = relax(calc, metals(), fmax=0.02)
    assert len(sweeps) == max(way.steps for way in ways) + 1


def test_cells_as_ases_emt() -> None:
    def crystals() -> list[Atoms]:
        alloy = bulk("Cu", cubic=True, a=3.9)
        alloy.symbols[0] = "Al"
        structures = [alloy, bulk("Al", a=4.1) * (1, 1, 2), bulk("Cu", a=3.5)]
        for seed, atoms in enumerate(structures):
            atoms.rattle(0.03, seed=seed)
        return structures

    structures, twins = crystals(), crystals()
    calc = EqnetCalculator(POTENTIAL, dtype="float64", skin=0.3)
    ways = relax(calc, structures, fmax=0.01, cell=True)
    assert [way.steps for way in ways] == with_ase(twins, "bfgs", 0.01, cell=True)
    for atoms, twin in zip(structures, twins, strict=True):
        np.testing.assert_allclose(atoms.cell.array, twin.cell.array, atol=1e-7)
        np.testing.assert_allclose(atoms.get_stress(), twin.get_stress(), atol=1e-8)


def test_one_without_answer_ends_where_it_was_and_the_others_go_on() -> None:
    structures = [molecule("H2O") for _ in range(3)]
    for seed, atoms in enumerate(structures):
        atoms.rattle(0.05, seed=seed)
    structures[2].positions[1] = structures[2].positions[2]
    calc = EqnetCalculator(morse_potential(), dtype="float64")
    answers, calls = calc.answers, []

    def overflow(frames: Any) -> Any:
        found = answers(frames)
        calls.append([frame.index for frame in frames])
        if len(calls) == 3:
            found[calls[-1].index(1)] = InputError("not finite")
        return found

    calc.answers = overflow  # pyright: ignore[reportAttributeAccessIssue]
    first, second, third = relax(calc, structures, fmax=0.02)
    assert first.converged and not (second.converged or third.converged)
    assert second.steps == 1 and second.error == "not finite"
    assert third.steps == 0 and "frame 2: atoms 1 and 2 coincide" in third.error
    assert structures[2].calc is None
    twin = structures[1].copy()
    twin.calc = EqnetCalculator(morse_potential(), dtype="float64")
    np.testing.assert_allclose(structures[1].get_forces(), twin.get_forces(), atol=1e-10)
    assert all(2 not in frames for frames in calls[1:])


def test_an_unknown_element_is_told_before_anything_is_computed() -> None:
    calc = EqnetCalculator(POTENTIAL, dtype="float64")
    structures = [Atoms("Cu2", [[0, 0, 0], [0, 0, 2.4]]), Atoms("He")]
    with pytest.raises(InputError, match="structures, frame 1: element He"):
        relax(calc, structures)
    assert calc.compilations == 0
