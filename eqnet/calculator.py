"""ASE calculator: any structure, any boundary condition, in any order, with few compilations."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ase import Atoms
from ase.calculators.calculator import (
    Calculator,
    PropertyNotImplementedError,
    all_changes,
)
from ase.stress import full_3x3_to_voigt_6_stress
from flax import nnx

from eqnet.compiled_programs import keep_compiled_programs
from eqnet.data.elements import symbol
from eqnet.data.frame import Frame, from_atoms
from eqnet.data.neighbors import neighbor_list
from eqnet.device import (
    Device,
    computing,
    everywhere,
    find_device,
    find_dtype,
    give_memory_back,
    program,
    shared_cores,
    within,
)
from eqnet.errors import InputError
from eqnet.files import digest
from eqnet.graph import AtomGraph
from eqnet.model_file import load_with_examples
from eqnet.potential import Potential
from eqnet.replay import Example, Found, compare, replay
from eqnet.verlet_list import VerletList


class EqnetCalculator(Calculator):
    """Energies, forces and stress of a potential in ASE.

        atoms.calc = EqnetCalculator("model.eqnet")

    Units and signs are ASE's: eV, eV/angstrom, and stress = dE/dstrain / V in eV/angstrom^3, in
    Voigt order xx yy zz yz xz xy. `energy` (equal to `free_energy`) is summed over atoms in
    float64, whatever `dtype` is. Stress exists for structures that are periodic in all three
    directions; the cell is not looked at along other directions.

    One object serves any sequence of structures: sizes are rounded up a ladder, so that a handful
    of compilations (`compilations`) covers them. A lock makes it usable from several threads. It
    can be copied and pickled (a file by its path); compiled code is not part of a pickle, but kept
    in the user's cache folder, where the next process finds it (`keep_compiled_programs`).

    Args:
        model: a model file, or a potential.
        device: None for JAX's default, or a name such as 'cpu', 'gpu', 'cuda:1'.
        dtype: 'float32' or 'float64', the precision of weights and messages.
        skin: neighbours are found up to cutoff + skin (angstrom) and used again until an atom has
            moved more than half the skin; results do not depend on it. 0 finds them every time.
        method: which algorithm computes the products of a model file, see `eqnet.load`.
        cores: of a CPU that share the atoms of a structure; worth it from a hundred atoms on.
        verify: replay the examples of a model file, by the program in use, before its first answer.

    Raises:
        InputError: on construction, the model cannot be used here; on calculation, no atoms, an
            unknown element, positions that are not finite, atoms on top of each other, or examples
            that give other numbers than where the model was trained.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]
    ignored_changes = {"initial_charges", "initial_magmoms"}

    def __init__(
        self,
        model: str | os.PathLike[str] | Potential,
        device: str | Device | None = None,
        dtype: str = "float32",
        skin: float = 0.0,
        *,
        method: str = "default",
        cores: int = 1,
        verify: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        keep_compiled_programs()
        if not skin >= 0:
            raise InputError(f"skin must be a distance in angstrom, 0 or more, not {skin}")
        self.skin = float(skin)
        self.dtype = str(find_dtype(dtype))
        self.method = method
        self.verify = verify
        self.cores = cores
        self._mesh = shared_cores(cores)
        self.device = find_device(device)
        self.path: Path | None = None
        self._digest = ""
        if isinstance(model, Potential):
            if method != "default":
                raise InputError(
                    f"method {method!r} has no effect on a potential, whose methods are chosen: "
                    "give the model file, or choose with eqnet.load(file, method=...)"
                )
            self._prepare(model)
        else:
            self._load(Path(model))

    def _load(self, path: Path) -> None:
        with computing(self.device, double=self.dtype == "float64", what=f"loading {path}"):
            potential, examples = load_with_examples(
                path, dtype=self.dtype, method=self.method, wanted=self.verify
            )
        self.path, self._digest = path.resolve(), digest(path)
        self._prepare(potential, examples)

    def _prepare(self, potential: Potential, examples: Sequence[Example] = ()) -> None:
        """Weights on the device, compiled functions to come."""
        self._to_replay = list(examples)
        self._lock = threading.RLock()
        self.potential = potential
        graphdef, weights = nnx.split(potential)
        with computing(self.device, double=self.dtype == "float64", what="the weights"):
            cast = jax.tree.map(lambda x: np.asarray(x).astype(self.dtype), weights)
            self._weights = self._put(cast)
        self._compiled = compiled = []

        def predict(weights: Any, graph: AtomGraph) -> Any:
            compiled.append(graph.neighbors.shape)  # runs once per compilation
            # one program for molecules and crystals: the stress costs less than can be measured
            answer = nnx.merge(graphdef, weights).predict(graph, stress=True)
            return answer.node_energy, answer.forces, answer.stress

        with computing(self.device, double=self.dtype == "float64", what="a program"):
            self._predict = program(predict)
        self._forget()

    def _put(self, values: Any) -> Any:
        """On the device, or on all that share the work."""
        return jax.device_put(values, everywhere(self._mesh, self.device))

    def _forget(self) -> None:
        """Start without neighbours."""
        self._list = VerletList(
            self.potential.elements, self.potential.cutoff, self.skin, self.dtype
        )
        self._graph: AtomGraph | None = None  # of the list, on the device

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        return len(self._compiled)

    # ------------------------------------------------------------------------------ ASE's interface

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True):
        """A property of `atoms`, calculated if it is not at hand; see ASE."""
        with self._lock:
            return super().get_property(name, atoms, allow_calculation)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Fill `results`; everything a structure has is calculated at once."""
        with self._lock:
            self.results = {}
            super().calculate(atoms, list(properties), list(system_changes))
            if self.atoms is None:
                raise InputError("the calculator was given no structure")
            frame = from_atoms(self.atoms)
            if "stress" in properties and not frame.pbc.all():
                raise PropertyNotImplementedError(
                    "stress is dE/dstrain over the volume of the cell, and a structure with "
                    f"pbc = {[bool(axis) for axis in frame.pbc]} has no volume; "
                    "it exists when all three axes are periodic"
                )
            self.results = self._answer(frame, self._numbers(frame))

    def get_spin_polarized(self) -> bool:
        """Whether electrons have a spin here: they do not."""
        return False

    def calculate_properties(self, atoms: Atoms, properties: Sequence[str]) -> Any:
        """ASE's other way to ask, under the same lock."""
        with self._lock:
            return super().calculate_properties(atoms, properties)

    def _answer(self, frame: Frame, numbers: Found) -> dict[str, Any]:
        """ASE's results. Energies are summed here, in float64."""
        potential = self.potential
        species = np.searchsorted(potential.elements, frame.numbers)
        constants = np.array(potential.atomic_energies) + np.array(potential.shift)
        energy = float(numbers.node_energy.sum()) + potential.reference_energy(species)
        results = {
            "energy": energy,
            "free_energy": energy,
            "energies": numbers.node_energy + constants[species],
            "forces": numbers.forces,
        }
        if numbers.stress is not None:
            results["stress"] = full_3x3_to_voigt_6_stress(numbers.stress)
        return results

    # ---------------------------------------------------------------------------------- calculation

    def _numbers(self, frame: Frame) -> Found:
        """Energies of atoms, forces and, if all axes are periodic, stress."""
        n = len(frame)
        with computing(self.device, double=self.dtype == "float64", what=f"{n} atoms"):
            graph = self._graph if self._list.covers(frame) else None
            if graph is None:
                self._graph = graph = self._put(self._list.build(frame))
            positions = self._put(self._list.place(frame.positions))
            self._replay()
            numbers = self._run(replace(graph, positions=positions), n)
        if not frame.pbc.all():
            numbers = numbers._replace(stress=None)
        if not all(np.isfinite(values).all() for values in numbers if values is not None):
            self._explain(frame, numbers)
        return numbers

    def _run(self, graph: AtomGraph, n: int) -> Found:
        """The program's answer for the n atoms of a graph."""
        before = self.compilations
        with within(self._mesh):
            answer = jax.device_get(self._predict(self._weights, graph))
        if self.compilations > before:
            give_memory_back()
        node_energy, forces, tensor = answer
        return Found(
            np.array(node_energy[:n], np.float64),
            np.array(forces[:n], np.float64),
            np.array(tensor[0], np.float64),
        )

    def _replay(self) -> None:
        """The examples by the program of the structure at hand; by one of theirs if it has no room.

        Raises:
            InputError: they give other numbers than where the model was trained, or none.
        """
        examples = self._to_replay
        if not examples:
            return
        assert self.path is not None
        options = {"dtype": self.dtype, "path": self.path}
        try:
            graphs = self._list.beside([example.frame for example in examples])
            if graphs is None:
                replay(self.potential, examples, **options)
            else:
                # where the structure's own graph is: elsewhere would be another program
                sizes = [len(example.frame) for example in examples]
                runs = zip(map(self._put, graphs), sizes, strict=True)
                found = [self._run(graph, size) for graph, size in runs]
                compare(self.potential, examples, found, **options)
        except InputError as error:
            if str(error).startswith(str(self.path)):
                raise
            raise InputError(f"{self.path}: its examples cannot be replayed: {error}") from None
        self._to_replay.clear()

    def _explain(self, frame: Frame, numbers: Found) -> None:
        """Raise the reason for an answer that is not finite."""
        self._forget()
        neighbor_list(frame.positions, frame.cell, frame.pbc, self.potential.cutoff)
        good = np.isfinite(numbers.node_energy) & np.isfinite(numbers.forces).all(axis=1)
        if good.all():
            raise InputError(
                "the model's stress is not finite; the structure is far from anything it was "
                "trained on"
            )
        atom = int(np.argmin(good))
        raise InputError(
            f"the model's answer for atom {atom} ({symbol(int(frame.numbers[atom]))}) is not "
            "finite; the structure is far from anything it was trained on"
        )

    # ------------------------------------------------------------------------------ copy and pickle

    def __getstate__(self) -> dict[str, Any]:
        """Plain values; weights only when there is no file to read them from."""
        kept = ("_directory", "_digest")
        state = {k: v for k, v in self.__dict__.items() if not k.startswith("_") or k in kept}
        state["device"] = f"{self.device.platform}:{self.device.id}"
        if self.path is not None:
            del state["potential"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self._mesh = shared_cores(self.cores)
        self.device = find_device(state["device"])
        if self.path is None:
            self._prepare(self.potential)
            return
        if not self.path.is_file() or digest(self.path) != self._digest:
            raise InputError(f"{self.path}: the model file has gone or changed since the pickle")
        self._load(self.path)

    def __deepcopy__(self, memo: dict[int, Any]) -> EqnetCalculator:
        """A calculator of its own that shares weights and compiled programs with this one."""
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        shared = (
            "potential",
            "device",
            "_mesh",
            "_weights",
            "_predict",
            "_compiled",
            "_graph",
            "_to_replay",
        )
        with self._lock:
            for name, value in self.__dict__.items():
                if name != "_lock":
                    setattr(twin, name, value if name in shared else copy.deepcopy(value, memo))
        twin._lock = threading.RLock()
        return twin
