"""Runs ASE's own tests on `EqnetCalculator`: a pytest plugin that replaces ASE's EMT by it.

    PYTHONPATH=tests/helpers pytest -p ase_plugin -p no:cacheprovider --pyargs ase.test.md ...

The potential is EMT itself, so that energies and relaxations which ASE's tests expect come out; all
else - neighbours, forces, stress, caching, copying - is ours. The parts that apply are listed in
`tests/eqnet/test_ase_suite.py`.
"""

from __future__ import annotations

import copy
from typing import Any

import ase.calculators.emt
import numpy as np
from ase.calculators.calculator import Calculator
from emt import emt_potential

from eqnet import EqnetCalculator

_shared: list[EqnetCalculator] = []  # its compiled programs serve all


class EMT(EqnetCalculator):
    """What `from ase.calculators.emt import EMT` gives to ASE's tests."""

    implemented_properties = [*EqnetCalculator.implemented_properties, "magmom", "magmoms"]

    def __init__(self, **kwargs: Any) -> None:
        if not _shared:
            _shared.append(EqnetCalculator(emt_potential(), dtype="float64"))
        vars(self).update(vars(copy.deepcopy(_shared[0])))
        del self.implemented_properties  # those of the class
        Calculator.__init__(self, **kwargs)

    def calculate(self, atoms: Any = None, *args: Any, **kwargs: Any) -> None:
        """With the magnetic moments that ASE's EMT claims to have: none."""
        super().calculate(atoms, *args, **kwargs)
        assert self.atoms is not None
        self.results |= {"magmom": 0.0, "magmoms": np.zeros(len(self.atoms))}


ase.calculators.emt.EMT = EMT
