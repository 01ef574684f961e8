"""Bands end at saddle points that symmetry knows."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc100, molecule
from ase.calculators.emt import EMT as AseEMT
from ase.constraints import FixAtoms, FixedLine
from ase.optimize import BFGS
from emt import emt_potential

from eqnet import EqnetCalculator
from eqnet.elastic_band import check_ends, exchanged, interpolate, relax_band
from eqnet.errors import InputError


def adatom(site: str) -> Atoms:
    """Aluminium on copper, relaxed along z by ASE's EMT: in a hollow, or on a bridge to another."""
    atoms = fcc100("Cu", (2, 2, 2), vacuum=8.0)
    add_adsorbate(atoms, "Al", 1.8, site)
    copper, last = FixAtoms(atoms.numbers == 29), len(atoms) - 1
    atoms.set_constraint([copper, FixedLine([last], [0, 0, 1])])
    atoms.calc = AseEMT()
    BFGS(atoms, logfile=None).run(fmax=0.001)
    energy = atoms.get_potential_energy()
    atoms.set_constraint(copper)
    atoms.info["energy"] = energy
    return atoms


def test_the_saddle_of_a_hop_is_the_bridge() -> None:
    """By symmetry; energies and relaxations of minimum and saddle are those of ASE's EMT."""
    start, bridge = adatom("hollow"), adatom("bridge")
    barrier = bridge.info["energy"] - start.info["energy"]
    end = start.copy()
    end.positions[-1, 0] -= start.cell.array[0, 0] / 2
    end.wrap()  # the way leads across the boundary of the cell
    calc = EqnetCalculator(emt_potential(), dtype="float64", skin=0.3)
    images = interpolate(start, end, 3)
    assert np.linalg.norm(images[-1].positions - start.positions, axis=1).max() < 2.6
    band = relax_band(calc, images, climb=True, fmax=0.01)
    assert band.converged and band.largest.max() < 0.01
    assert band.energy.argmax() == 2 and band.distance[2] == pytest.approx(band.distance[4] / 2)
    assert band.forward == pytest.approx(barrier, abs=1e-4)  # fmax^2 over the stiffness of the site
    assert band.backward == pytest.approx(band.forward, abs=1e-8)
    coarse = relax_band(calc, interpolate(start, end, 3), fmax=0.01)
    assert coarse.forward == pytest.approx(barrier, abs=1e-3)  # of a spline
    for image in band.images:
        twin = image.copy()
        twin.calc = AseEMT()
        np.testing.assert_allclose(image.get_forces(), twin.get_forces(), atol=1e-10)


def test_molecules_are_laid_upon_each_other() -> None:
    start = molecule("CH3CH2OH")
    end = start.copy()
    end.positions[8] += [0.1, 0.2, 0.3]
    turned = end.copy()
    turned.rotate(130, [1, 2, 3])
    turned.translate([3, 4, 5])
    ways = [interpolate(start, last, 2, "linear") for last in (end, turned)]
    for image, twin in zip(*ways, strict=True):
        np.testing.assert_allclose(image.get_all_distances(), twin.get_all_distances(), atol=1e-9)
    thirds = [image.positions - start.positions for image in ways[1]]
    np.testing.assert_allclose(thirds[1], thirds[3] / 3, atol=1e-12)


def test_atoms_in_another_order_are_found() -> None:
    start = molecule("CH3CH2OH")
    end = start.copy()
    end.rattle(0.1, seed=0)
    assert exchanged(start, end) == []
    hydrogens = np.flatnonzero(start.numbers == 1)[:3]
    turned = end.copy()
    turned.positions[hydrogens] = end.positions[np.roll(hydrogens, 1)]
    assert exchanged(start, turned) == hydrogens.tolist()
    crystal = bulk("Cu", cubic=True) * (2, 2, 2)
    crystal.pop(0)
    hop = crystal.copy()
    hop.positions[0] = 0.0  # into the vacancy: nobody's place
    assert exchanged(crystal, hop) == []
    hop.positions += hop.cell.array[0]  # images of the same places
    assert exchanged(crystal, hop) == []


def test_refusals() -> None:
    water, crystal = molecule("H2O"), bulk("Cu", cubic=True)
    swapped = water[[1, 0, 2]]
    periodic = water.copy()
    periodic.pbc = [True, False, False]
    strained = crystal.copy()
    strained.set_cell(1.01 * crystal.cell.array)
    held, otherwise = water.copy(), water.copy()
    held.set_constraint(FixAtoms([0]))
    otherwise.set_constraint(FixAtoms([1]))
    check_ends(held, water)  # pyright: ignore[reportArgumentType]
    check_ends(held, held.copy())
    for start, end, message in [
        (water, held, "the constraints of the ends differ"),
        (held, otherwise, "the constraints of the ends differ"),
        (water, molecule("NH3"), "the ends have 3 and 4 atoms"),
        (water, swapped, "atom 0 is O at the start and H at the end"),
        (water, periodic, "they must be equal"),
        (crystal, strained, "the cells of the ends differ"),
    ]:
        with pytest.raises(InputError, match=message):
            check_ends(start, end)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="one structure"):
        moved = crystal.copy()
        moved.positions[1] += crystal.cell.array[2]
        interpolate(crystal, moved, 3)
    with pytest.raises(InputError, match="at least 1 image"):
        interpolate(crystal, crystal, 0)
    moved = crystal.copy()
    moved.positions[0] += 0.5
    crystal.set_constraint(FixAtoms([0]))
    with pytest.raises(InputError, match="that the constraints of the start hold"):
        interpolate(crystal, moved, 3)


def test_an_image_without_answer_is_named() -> None:
    images = interpolate(molecule("CO"), Atoms("OC", [[0, 0, 0], [0, 0, 1.4]]), 2)
    images[2].positions[1] = images[2].positions[0]
    calc = EqnetCalculator(emt_potential(), dtype="float64")
    with pytest.raises(InputError, match="band, frame 2: atoms 0 and 1 coincide"):
        relax_band(calc, images)
