"""ASE calculator: any structure, any boundary condition, in any order, with few compilations."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Sequence
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
from flax import nnx

from eqnet.answers import Answers
from eqnet.committee import VARIANCES, Member, Source, open_member, warn_outside
from eqnet.compiled_programs import keep_compiled_programs
from eqnet.data.frame import Frame, from_atoms
from eqnet.device import Device, computing, find_device, find_dtype, shared_cores
from eqnet.errors import Forked, InputError
from eqnet.files import digest
from eqnet.potential import Potential
from eqnet.tensor_evaluation import predict
from eqnet.tensor_file import load as load_tensors
from eqnet.tensor_model import TensorModel
from eqnet.uncertainty import NOVEL


class EqnetCalculator(Calculator):
    """Energies, forces and stress of a potential in ASE.

        atoms.calc = EqnetCalculator("model.eqnet")

    Units and signs are ASE's: eV, eV/angstrom, and stress = dE/dstrain / V in eV/angstrom^3, in
    Voigt order xx yy zz yz xz xy. `energy` (equal to `free_energy`) is summed over atoms in
    float64, whatever `dtype` is. Stress exists for structures that are periodic in all three
    directions; the cell is not looked at along other directions. `stresses` [n, 6] are its parts,
    computed when they are asked for, see `eqnet.atomic_stress`.

    One object serves any sequence of structures: sizes are rounded up a ladder, so that a handful
    of compilations (`compilations`) covers them. A lock makes it usable from several threads. It
    can be copied and pickled (a file by its path); compiled code is not part of a pickle, but kept
    in the user's cache folder, where the next process finds it (`keep_compiled_programs`).

    A committee, `EqnetCalculator(["a.eqnet", "b.eqnet"])`, answers with the mean of its members;
    `results` then has `energy_variance` (eV^2), `forces_variance` [n, 3] and `stress_variance` [6]
    too. A model file that `eqnet train` wrote knows how sure it is, at next to no cost:
    `energy_uncertainty` is the standard deviation of the energy in eV and `novelty` [n] how far
    each atom is from all those of the training, 1 being the farthest validated; beyond 2 comes an
    `eqnet.errors.OutOfDomain` warning. See `eqnet.uncertainty`.

    Args:
        model: a model file or a potential, or several of them for a committee.
        device: None for JAX's default, or a name such as 'cpu', 'gpu', 'cuda:1'.
        dtype: 'float32' or 'float64', the precision of weights and messages.
        skin: neighbours are found up to cutoff + skin (angstrom) and used again until an atom has
            moved more than half the skin; results do not depend on it. 0 finds them every time.
        method: which algorithm computes the products of a model file, see `eqnet.load`.
        cores: of a CPU that share the atoms of a structure; worth it from a hundred atoms on.
        verify: replay the examples of a model file, by the program in use, before its first answer.
        tensors: the file of a tensor model (`eqnet train_tensors`), which adds properties such as
            `dipole`, computed when they are asked for.

    Raises:
        InputError: on construction, the model cannot be used here; on calculation, no atoms, an
            unknown element, positions that are not finite, atoms on top of each other, or examples
            that give other numbers than where the model was trained.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress", "stresses"]
    ignored_changes = {"initial_charges", "initial_magmoms"}
    _forked: Forked | None = None  # why a pickle could not be opened

    def __init__(
        self,
        model: Source | Sequence[Source],
        device: str | Device | None = None,
        dtype: str = "float32",
        skin: float = 0.0,
        *,
        method: str = "default",
        cores: int = 1,
        verify: bool = True,
        tensors: str | os.PathLike[str] | None = None,
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
        self.tensors = None if tensors is None else Path(tensors).resolve()
        self._digest = "" if self.tensors is None else digest(self.tensors)
        sources = [model] if isinstance(model, (str, os.PathLike, Potential)) else list(model)
        self._prepare([self._member(source) for source in sources])

    def _member(self, source: Source) -> Member:
        if not isinstance(source, Potential):
            return open_member(
                Path(source),
                dtype=self.dtype,
                method=self.method,
                device=self.device,
                examples=self.verify,
            )
        if self.method != "default":
            raise InputError(
                f"method {self.method!r} has no effect on a potential, whose methods are chosen: "
                "give the model file, or choose with eqnet.load(file, method=...)"
            )
        return Member(source)

    def _prepare(self, members: Sequence[Member]) -> None:
        """What the models answer, and what may be asked of them."""
        self._answers = Answers(
            members, dtype=self.dtype, device=self.device, mesh=self._mesh, skin=self.skin
        )
        self.members = tuple(members)
        self.cutoff = max(member.potential.cutoff for member in members)
        self.implemented_properties = [*type(self).implemented_properties]
        if len(members) > 1:
            self.implemented_properties += VARIANCES
        if any(member.uncertainty is not None for member in members):
            alone = ["energy_uncertainty"] if len(members) == 1 else []
            self.implemented_properties += ["novelty", *alone]
        self._tensor_model: TensorModel | None = None
        if self.tensors is not None:
            with computing(self.device, double=self.dtype == "float64", what=f"{self.tensors}"):
                self._tensor_model = load_tensors(
                    self.tensors, dtype=self.dtype, verify=self.verify
                )
            names = [name for name, _ in self._tensor_model.kinds]
            if own := [name for name in names if name in self.implemented_properties]:
                raise InputError(
                    f"{self.tensors}: its {own[0]} would hide those of the potential: train "
                    "it under another name"
                )
            self.implemented_properties += names
        self._outside = False
        self._lock = threading.RLock()

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        return self._answers.compilations

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
        """Fill `results`; all of a structure at once, but for the tensors that are not wanted."""
        with self._lock:
            self._refuse_fork()
            super().calculate(atoms, list(properties), list(system_changes))
            frame = frame_of(self.atoms, properties)
            self.results = {}  # not before: what cannot be asked for leaves them as they are
            (answer,) = self.answers([frame])
            if isinstance(answer, InputError):
                raise answer
            if "stresses" in properties:
                answer["stresses"] = self._answers.stresses(frame)
            self.results = answer | self._tensors_of(frame, properties)

    def answers(self, frames: Sequence[Frame]) -> list[dict[str, Any] | InputError]:
        """What `results` holds, of several structures by one call of one program.

        A structure without an answer has the reason in its place; it names the frame if the frame
        names a file.

        Raises:
            InputError: the model or the device have no answers at all.
        """
        with self._lock:
            self._refuse_fork()
            answers = self._answers.of(frames)
            self._warn(frames, answers)
            return answers

    def _warn(
        self, frames: Sequence[Frame], answers: Sequence[dict[str, Any] | InputError]
    ) -> None:
        """Of the atom that is least like those of the training, if it was none of the last time."""
        known = [
            (answer["novelty"], frame)
            for frame, answer in zip(frames, answers, strict=True)
            if not isinstance(answer, InputError) and "novelty" in answer
        ]
        if known:
            novelty, frame = max(known, key=lambda pair: pair[0].max())
            before, self._outside = self._outside, bool(novelty.max() > NOVEL)
            if self._outside and not before:
                warn_outside(novelty, frame)

    def get_spin_polarized(self) -> bool:
        """Whether electrons have a spin here: they do not."""
        return False

    def calculate_properties(self, atoms: Atoms, properties: Sequence[str]) -> Any:
        """ASE's other way to ask, under the same lock."""
        with self._lock:
            return super().calculate_properties(atoms, properties)

    def _tensors_of(self, frame: Frame, properties: Sequence[str]) -> dict[str, np.ndarray]:
        """Those of the tensor model, if one of them is wanted."""
        model = self._tensor_model
        if model is None or not {name for name, _ in model.kinds} & set(properties):
            return {}
        return predict(model, [frame], batch_size=1, dtype=self.dtype, device=self.device)[0]

    def get_hessian(self, atoms: Atoms | None = None) -> np.ndarray:
        """Second derivatives of the energy by positions, [n, 3, n, 3] in eV/angstrom^2, float64.

        Mean over the members of a committee. `ase.vibrations.VibrationsData(atoms, hessian)` takes
        it; of a periodic structure it is that of the cell's own atoms, all images moving alike.
        """
        with self._lock:
            self._refuse_fork()
            frame = frame_of(atoms if atoms is not None else self.atoms)
            return self._answers.hessian(frame)

    # ------------------------------------------------------------------------------ copy and pickle

    def __getstate__(self) -> dict[str, Any]:
        """Plain values; weights only when there is no file to read them from."""
        kept = ("_directory", "_digest")
        state = {k: v for k, v in self.__dict__.items() if k[0] != "_" or k in kept}
        state["device"] = f"{self.device.platform}:{self.device.id}"
        state["members"] = [
            _on_the_host(member) if member.path is None else (member.path, member.digest)
            for member in self.members
        ]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self._lock = threading.RLock()
        try:
            self._open_again(state)
        except Forked as error:  # told when it is used: a pool that fails to unpickle waits forever
            self._forked = error

    def _refuse_fork(self) -> None:
        if self._forked is not None:
            raise self._forked

    def _open_again(self, state: dict[str, Any]) -> None:
        """Device and members of a pickle."""
        self._mesh = shared_cores(self.cores)
        self.device = find_device(state["device"])
        if self.tensors is not None:
            _check_unchanged(self.tensors, self._digest)
        members = []
        for kept in state["members"]:
            if not isinstance(kept, Member):
                _check_unchanged(*kept)
                kept = self._member(kept[0])
            members.append(kept)
        self._prepare(members)

    def __deepcopy__(self, memo: dict[int, Any]) -> EqnetCalculator:
        """A calculator of its own that shares weights and compiled programs with this one."""
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        shared = ("members", "device", "_mesh", "_tensor_model")
        with self._lock:
            for name, value in self.__dict__.items():
                if name != "_lock":
                    setattr(twin, name, value if name in shared else copy.deepcopy(value, memo))
        twin._lock = threading.RLock()
        return twin


def frame_of(
    atoms: Atoms | None, properties: Sequence[str] = (), *, file: str = "", index: int = 0
) -> Frame:
    """The structure that a calculator was given; `file` and `index` are for errors.

    Raises:
        InputError: no structure was given.
        PropertyNotImplementedError: stress is asked for, and it has no volume.
    """
    if atoms is None:
        raise InputError("the calculator was given no structure")
    frame = from_atoms(atoms, file=file, index=index)
    if {"stress", "stresses"} & set(properties):
        check_volume(frame)
    return frame


def check_volume(frame: Frame) -> None:
    """Refuse to speak of stress without a volume.

    Raises:
        PropertyNotImplementedError: the structure is not periodic in all three directions.
    """
    if not frame.pbc.all():
        raise PropertyNotImplementedError(
            "stress is dE/dstrain over the volume of the cell, and a structure with "
            f"pbc = {[bool(axis) for axis in frame.pbc]} has no volume; "
            "it exists when all three axes are periodic"
        )


def _check_unchanged(path: Path, known: str) -> None:
    """Refuse another file than that of the pickle."""
    if not path.is_file() or digest(path) != known:
        raise InputError(f"{path}: the model file has gone or changed since the pickle")


def _on_the_host(member: Member) -> Member:
    """With numpy weights: JAX's would come out of a pickle as float32."""
    graphdef, state = nnx.split(member.potential)
    return member._replace(potential=nnx.merge(graphdef, jax.tree.map(np.asarray, state)))
