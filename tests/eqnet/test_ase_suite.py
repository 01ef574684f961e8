"""The calculator in place of ASE's EMT: the same numbers, and ASE's own tests pass on it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc111, molecule
from ase.calculators.emt import EMT
from emt import emt_potential

from eqnet import EqnetCalculator

HELPERS = Path(__file__).parents[1] / "helpers"
PARTS = "md neb optimize vibrations atoms precon filter constraints".split()
#: These relax the cell of a slab by its stress, which exists for three periodic axes alone.
NO_STRESS = "not test_cellaware_bfgs_2d"


def alloy() -> Atoms:
    atoms = bulk("Cu", cubic=True) * (2, 2, 1)
    atoms.symbols[:3] = "AuNiPt"
    atoms.rattle(0.1, seed=1)
    return atoms


def surface() -> Atoms:
    atoms = fcc111("Pt", (2, 2, 3), vacuum=8)
    add_adsorbate(atoms, molecule("CO"), 1.8)
    atoms.rattle(0.05, seed=2)
    return atoms


def test_equals_emt_of_ase() -> None:
    calculator = EqnetCalculator(emt_potential(), dtype="float64")
    structures = [alloy(), surface(), molecule("CH3CH2OH"), bulk("Al"), molecule("H")]
    for atoms in structures:
        twin = atoms.copy()
        atoms.calc, twin.calc = calculator, EMT()
        assert atoms.get_potential_energy() == pytest.approx(twin.get_potential_energy(), abs=1e-11)
        np.testing.assert_allclose(atoms.get_forces(), twin.get_forces(), atol=1e-11)
        if atoms.pbc.all():
            np.testing.assert_allclose(atoms.get_stress(), twin.get_stress(), atol=1e-11)


@pytest.mark.slow
def test_the_tests_of_ase_pass(tmp_path: Path) -> None:
    """All that use EMT in these parts of `ase.test`, with our calculator in its place."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "ase_plugin", "-p", "no:cacheprovider"]
    command += ["-k", NO_STRESS, "--pyargs", *(f"ase.test.{part}" for part in PARTS)]
    environment = os.environ | {"PYTHONPATH": str(HELPERS)}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]
    assert int(run.stdout.split(" passed")[0].split()[-1]) > 400
