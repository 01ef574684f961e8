"""Answers of models for structures: several by one call of one program.

Sizes are rounded up a ladder, so that few programs serve any sequence of structures, and neighbours
are used again as long as they will do.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from eqnet.atomic_stress import virials
from eqnet.committee import Member, check_members, results_of, voigt
from eqnet.data.elements import symbol
from eqnet.data.frame import Frame
from eqnet.device import Device, computing, everywhere, give_memory_back, program, within
from eqnet.errors import InputError
from eqnet.graph import AtomGraph
from eqnet.hessian import hessian
from eqnet.replay import Example, Found, compare, replay
from eqnet.verlet_list import VerletList


class Answers:
    """What one or more models say of structures, in float64 on the host.

    A deep copy shares weights and programs, and has neighbours of its own.

    Args:
        members: the models; their examples are replayed before the first answer.
        dtype: 'float32' or 'float64', the precision of weights and messages.
        device: where.
        mesh: of the devices that share the atoms, if several do.
        skin: angstrom added to the cutoff when neighbours are found.

    Attributes:
        neighbors: those of the last structures.
        to_replay: members by their index, and the examples that are left.

    Raises:
        InputError: no members, or they know different elements.
    """

    def __init__(
        self,
        members: Sequence[Member],
        *,
        dtype: str,
        device: Device,
        mesh: Mesh | None,
        skin: float,
    ) -> None:
        check_members(members)
        self.members, self.dtype = tuple(members), dtype
        self.to_replay = [(i, member.examples) for i, member in enumerate(members)]
        self._device, self._mesh = device, mesh
        self._compiled = compiled = []
        split = [nnx.split(member.potential) for member in members]
        graphdefs = [graphdef for graphdef, _ in split]
        uncertain = [member.uncertainty is not None for member in members]
        with computing(device, double=dtype == "float64", what="the weights"):
            cast = jax.tree.map(lambda x: np.asarray(x).astype(dtype), [s for _, s in split])
            self._weights = self._put(cast)

        def predict(weights: Any, graph: AtomGraph) -> Any:
            compiled.append(graph.neighbors.shape)  # runs once per compilation
            # one program for molecules and crystals: the stress costs less than can be measured
            answers = [
                nnx.merge(graphdef, state).predict(graph, stress=True, features=features)
                for graphdef, features, state in zip(graphdefs, uncertain, weights, strict=True)
            ]
            return [(a.node_energy, a.forces, a.stress, a.features) for a in answers]

        with computing(device, double=dtype == "float64", what="a program"):
            self._predict = program(predict)
            self._hessian = program(partial(hessian, graphdefs))
            self._virials = program(partial(virials, graphdefs))
        elements, cutoff = members[0].potential.elements, max(m.potential.cutoff for m in members)
        self.neighbors = VerletList(elements, cutoff, skin, dtype)
        self._graph: AtomGraph | None = None  # of the neighbours, on the device

    def __deepcopy__(self, memo: dict[int, Any]) -> Answers:
        twin = copy.copy(self)
        twin.neighbors = copy.deepcopy(self.neighbors, memo)
        twin.to_replay = list(self.to_replay)
        return twin

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        return len(self._compiled)

    def of(self, frames: Sequence[Frame]) -> list[dict[str, Any] | InputError]:
        """ASE's `results` of structures; see `eqnet.committee.results_of`.

        A structure without an answer has the reason in its place; it names the frame if the frame
        names a file.

        Raises:
            InputError: the models or the device have no answers at all.
        """
        if not frames:
            return []
        try:
            found = self._numbers(frames)
        except InputError:
            with self._computing(frames):
                reasons = [self.neighbors.trouble(frame) for frame in frames]
            if not any(reasons):
                raise
            pairs = zip(frames, reasons, strict=True)
            others = iter(self.of([frame for frame, reason in pairs if reason is None]))
            return [reason or next(others) for reason in reasons]
        return [
            self._reason(frame, numbers) or results_of(self.members, frame, numbers)
            for frame, numbers in zip(frames, found, strict=True)
        ]

    def stresses(self, frame: Frame) -> np.ndarray:
        """[n, 6] eV/angstrom^3, which add up to the stress; see `eqnet.atomic_stress`."""
        found = self._whole(self._virials, frame)[: len(frame)]
        return voigt(found) / frame.volume

    def hessian(self, frame: Frame) -> np.ndarray:
        """[n, 3, n, 3] eV/angstrom^2; see `eqnet.hessian`."""
        n = len(frame)
        return self._whole(self._hessian, frame)[:n, :, :n]

    def _whole(self, function: Any, frame: Frame) -> np.ndarray:
        """What a program of weights and graph says of one structure, with padding."""
        with self._computing([frame]):
            graph = self._at([frame])
            with within(self._mesh):
                return np.array(jax.device_get(function(self._weights, graph)), np.float64)

    # ---------------------------------------------------------------------------------- calculation

    def _put(self, values: Any) -> Any:
        """On the device, or on all that share the work."""
        return jax.device_put(values, everywhere(self._mesh, self._device))

    def _computing(self, frames: Sequence[Frame]) -> Any:
        what = partial(self.neighbors.size_of, frames)
        return computing(self._device, double=self.dtype == "float64", what=what)

    def _numbers(self, frames: Sequence[Frame]) -> list[list[Found]]:
        """Each member's energies of atoms, forces and, if all axes are periodic, stress."""
        sizes = [len(frame) for frame in frames]
        with self._computing(frames):
            found = self._run(self._at(frames), sizes)
        return [
            numbers if frame.pbc.all() else [member._replace(stress=None) for member in numbers]
            for frame, numbers in zip(frames, found, strict=True)
        ]

    def _at(self, frames: Sequence[Frame]) -> AtomGraph:
        """The graph of structures on the device, from the list in use if that will do."""
        graph = self._graph
        if graph is None or not self.neighbors.covers(*frames):
            self._graph = None  # an error below leaves none behind
            self._graph = graph = self._put(self.neighbors.build(*frames))
        positions = np.concatenate([frame.positions for frame in frames])
        self._replay()
        return replace(graph, positions=self._put(self.neighbors.place(positions)))

    def _run(self, graph: AtomGraph, sizes: Sequence[int]) -> list[list[Found]]:
        """Each member's answers for the structures of a graph, which have so many atoms."""
        before = self.compilations
        with within(self._mesh):
            answers = jax.device_get(self._predict(self._weights, graph))
        if self.compilations > before:
            give_memory_back()
        found, start = [], 0
        for g, size in enumerate(sizes):
            own = slice(start, start + size)
            found.append(
                [
                    Found(
                        np.array(node_energy[own], np.float64),
                        np.array(forces[own], np.float64),
                        np.array(tensor[g], np.float64),
                        None if features is None else np.array(features[own], np.float64),
                    )
                    for node_energy, forces, tensor, features in answers
                ]
            )
            start += size
        return found

    def _replay(self) -> None:
        """The examples by the program of the structure at hand; by one of theirs if it has no room.

        Raises:
            InputError: they give other numbers than where the model was trained, or none.
        """
        while self.to_replay:
            index, examples = self.to_replay[0]
            self._replay_member(index, examples)
            del self.to_replay[0]

    def _replay_member(self, index: int, examples: Sequence[Example]) -> None:
        if not examples:
            return
        potential, path = self.members[index].potential, self.members[index].path
        assert path is not None
        try:
            graphs = self.neighbors.beside([example.frame for example in examples])
            if graphs is None:
                replay(potential, examples, dtype=self.dtype, path=path)
            else:
                # where the structure's own graph is: elsewhere would be another program
                sizes = [len(example.frame) for example in examples]
                runs = zip(map(self._put, graphs), sizes, strict=True)
                found = [self._run(graph, [size])[0][index] for graph, size in runs]
                compare(potential, examples, found, dtype=self.dtype, path=path)
        except InputError as error:
            if str(error).startswith(str(path)):
                raise
            raise InputError(f"{path}: its examples cannot be replayed: {error}") from None

    def _reason(self, frame: Frame, found: Sequence[Found]) -> InputError | None:
        """The reason for an answer that is not finite; None for others."""
        for numbers in found:
            if all(np.isfinite(values).all() for values in numbers if values is not None):
                continue
            good = np.isfinite(numbers.node_energy) & np.isfinite(numbers.forces).all(axis=1)
            atom = int(np.argmin(good))
            what = f"answer for atom {atom} ({symbol(int(frame.numbers[atom]))})"
            where = f"{frame.name}: " if frame.file else ""
            return self.neighbors.trouble(frame) or InputError(
                f"{where}the model's {'stress' if good.all() else what} is not finite; the "
                "structure is far from anything it was trained on"
            )
        return None
