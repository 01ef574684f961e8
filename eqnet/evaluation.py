"""Answers of a potential for a list of structures, in large batches of few shapes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from eqnet.data.frame import Frame
from eqnet.data.items import Item, make_item, species_of
from eqnet.data.packing import Shape, holds, pack, shape_of
from eqnet.device import Device, computing, find_device, find_dtype
from eqnet.errors import InputError
from eqnet.graph import AtomGraph
from eqnet.potential import Potential, Prediction

MAX_EDGES = 32_768  # per batch: keeps the memory of a step near a gigabyte for usual models
COMPILATION = 1_000_000  # neighbour slots that cost as much to compute as one more compilation


class Answer(NamedTuple):
    """What a potential says about one structure of n atoms; float64 numpy."""

    energy: float  # eV, total
    forces: np.ndarray  # [n, 3] eV/A
    stress: np.ndarray | None  # [3, 3] eV/A^3; None unless all three axes are periodic
    node_energy: np.ndarray  # [n] eV; adds up to the total


def evaluate(
    potential: Potential,
    frames: Sequence[Frame],
    *,
    batch_size: int = 32,
    dtype: str = "float32",
    device: str | Device | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Answer]:
    """Energy, forces and, where a structure is periodic in all axes, stress of every frame.

    Structures are sorted by size and packed together, so that a handful of compilations serves any
    mixture; energies are summed in float64 on the host.

    Args:
        potential: any potential; it is not changed.
        frames: structures in any order; their labels are not looked at.
        batch_size: most structures at a time; fewer where they are large.
        dtype: "float32" or "float64", of everything on the device.
        device: None for JAX's default, or a name such as "cpu", "gpu", "cuda:1".
        progress: called with (structures done, structures in all) after each batch.

    Returns:
        One answer per frame, in their order.

    Raises:
        InputError: an element that the potential does not know, atoms on top of each other, no such
            device, or not enough memory on it.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")
    for frame in frames:  # before any work
        species_of(frame, potential.elements)
    answers: dict[int, Answer] = {}
    place, precision = find_device(device), find_dtype(dtype)
    task = f"{batch_size} structures at a time (batch_size)"
    with computing(place, double=dtype == "float64", what=task):
        graphdef, params = nnx.split(potential)
        params = jax.tree.map(lambda x: np.asarray(x).astype(precision), params)
        params = jax.device_put(params, place)
        for batch in _ahead(batches(potential, frames, batch_size, precision)):
            stress = any(item.frame.volume > 0 for item in batch.items)
            prediction = _predict(graphdef, params, batch.graph, stress=stress)
            found = _unpack(potential, batch.items, jax.device_get(prediction))
            answers.update(zip(batch.indices, found, strict=True))
            if progress is not None:
                progress(len(answers), len(frames))
    return [answers[i] for i in range(len(frames))]


def finite(answer: Answer) -> bool:
    """Whether energy, forces and stress of an answer are finite numbers."""
    parts = (answer.energy, answer.forces, 0.0 if answer.stress is None else answer.stress)
    return all(bool(np.isfinite(part).all()) for part in parts)


@functools.partial(jax.jit, static_argnames=("graphdef", "stress"))
def _predict(graphdef: Any, params: Any, graph: AtomGraph, *, stress: bool) -> Prediction:
    return nnx.merge(graphdef, params).predict(graph, stress=stress)


def _unpack(
    potential: Potential, items: Sequence[Item], prediction: Prediction
) -> Iterator[Answer]:
    """Cut the numbers of a batch into those of its structures, in float64."""
    constants = [potential.reference_energy(np.array([s])) for s in range(len(potential.elements))]
    start = 0
    for g, item in enumerate(items):
        atoms = slice(start, start + item.num_atoms)
        learned = np.asarray(prediction.node_energy[atoms], np.float64)
        stress = None
        if prediction.stress is not None and item.frame.volume > 0:
            stress = np.asarray(prediction.stress[g], np.float64)
        yield Answer(
            energy=float(learned.sum()) + potential.reference_energy(item.species),
            forces=np.asarray(prediction.forces[atoms], np.float64),
            stress=stress,
            node_energy=learned + np.take(constants, item.species),
        )
        start += item.num_atoms


class Batch(NamedTuple):
    """Some structures, packed."""

    indices: list[int]  # among the frames
    items: list[Item]
    graph: AtomGraph


def batches(
    potential: Potential, frames: Sequence[Frame], batch_size: int, dtype: np.dtype
) -> Iterator[Batch]:
    """All frames, the largest first, so that smaller batches find shapes that hold them."""
    shapes = _Shapes(batch_size)

    def packed(indices: list[int], items: list[Item]) -> Batch:
        return Batch(indices, items, pack(items, shapes.choose(items), dtype=dtype))

    indices: list[int] = []
    items: list[Item] = []
    for i in sorted(range(len(frames)), key=lambda i: -len(frames[i])):
        item = make_item(frames[i], potential.elements, potential.cutoff)
        edges = sum(other.num_edges for other in items) + item.num_edges
        if items and (len(items) == batch_size or edges > MAX_EDGES):
            yield packed(indices, items)
            indices, items = [], []
        indices.append(i)
        items.append(item)
    if items:
        yield packed(indices, items)


class _Shapes:
    """Shapes in use. Each one is a compilation, so a new one must be worth it.

    A batch takes a larger shape that is there as long as all the padding that this has cost is
    cheaper than compiling; that is never worse than twice the best choice in hindsight.
    """

    def __init__(self, structures: int) -> None:
        self.structures = structures
        self.known: list[Shape] = []
        self.wasted = 0

    def choose(self, items: Sequence[Item]) -> Shape:
        needed = shape_of(items)._replace(structures=self.structures)
        size = needed.rows * needed.slots
        holding = [shape for shape in self.known if _holds(shape, items)]
        best = min(holding, key=lambda shape: shape.rows * shape.slots, default=needed)
        waste = best.rows * best.slots - size
        if holding and (waste <= size // 4 or self.wasted + waste <= COMPILATION):
            self.wasted += max(waste, 0)
            return best
        self.known.append(needed)
        return needed


def _holds(shape: Shape, items: Sequence[Item]) -> bool:
    atoms = sum(item.num_atoms for item in items)
    rows = sum(item.num_rows(shape.slots) for item in items)
    most = max(-(-int(item.counts.max()) // shape.slots) for item in items)
    return most <= shape.rows_per_atom and holds(shape, atoms, rows)


def _ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, the next one made in a thread while the present one is worked on."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield batch


def naive(frames: Sequence[Frame]) -> list[Answer]:
    """Answers of a predictor that knows only the composition, as a level to compare with.

    Energy: one energy per element, least squares on the labels of these very frames (the best such
    predictor). Forces: zero. Stress: the mean label.
    """
    labelled = [i for i, frame in enumerate(frames) if frame.energy is not None]
    elements = sorted({int(z) for frame in frames for z in np.unique(frame.numbers)})
    counts = np.array([[np.sum(frame.numbers == z) for z in elements] for frame in frames], float)
    energies = np.zeros(len(frames))
    if labelled:
        labels = np.array([frames[i].energy for i in labelled], float)
        energies = counts @ np.linalg.lstsq(counts[labelled], labels, rcond=None)[0]
    stresses = [frame.stress for frame in frames if frame.stress is not None]
    stress = np.mean(stresses, axis=0) if stresses else None
    answers = []
    for frame, energy in zip(frames, energies, strict=True):
        n = len(frame)
        answers.append(Answer(float(energy), np.zeros((n, 3)), stress, np.full(n, energy / n)))
    return answers
