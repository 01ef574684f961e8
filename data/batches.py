"""Loader: epochs of packed batches in few shapes, prepared in a background thread."""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace

import jax
import numpy as np
from numpy.typing import DTypeLike

from eqnet.data.items import Item, make_item, make_items, sizes_of, species_of
from eqnet.data.packing import (
    Shape,
    Targets,
    choose_slots,
    holds,
    ladder,
    make_shape,
    pack,
    pack_targets,
    shape_of,
    targets,
    tensor_targets,
)
from eqnet.data.tensor_labels import TensorKind
from eqnet.errors import InputError
from eqnet.graph import AtomGraph

__all__ = [
    "Item",
    "Loader",
    "Shape",
    "Targets",
    "choose_slots",
    "shape_of",
    "ladder",
    "make_item",
    "make_items",
    "pack",
    "pack_targets",
    "species_of",
]

Batch = tuple[AtomGraph, Targets]

_SAMPLE = 2000  # batches looked at when the shapes are chosen
_WASTE = 0.2  # padding of slots that is left alone rather than compiling one more shape
_ROOM = 0.03  # the same for padding of rows


class Loader:
    """Epochs of batches for training and validation.

    The order of an epoch is a function of seed and epoch alone, so a run may resume at any step.
    Structures are drawn in layers: sorted by size, cut into `batch_size` layers, and every batch
    takes one structure at random from each. Each structure still comes once per epoch, equal ones
    in uniformly random order, but the batches have nearly equal sizes and need few shapes.

    Attributes:
        pieces: graphs of a batch, see `in_pieces`.
        shapes: shapes in use; one more is added when a batch fits none of those planned.
        waste: part of the neighbour slots that is padding, over the batches of whole epochs.
    """

    def __init__(
        self,
        items: Sequence[Item],
        batch_size: int,
        *,
        reference_energy: Callable[[np.ndarray], float],
        seed: int = 0,
        shuffle: bool = True,
        dtype: DTypeLike = np.float32,
        max_shapes: int = 6,
        prefetch: int = 4,
        tensors: Mapping[str, TensorKind] | None = None,
        part: int = 0,
        parts: int = 1,
    ) -> None:
        """Choose the shapes.

        Args:
            items: the structures; lazy ones are made in the background thread, as they are needed.
            batch_size: structures of a batch; more than there are makes one batch.
            reference_energy: species [n] -> eV, subtracted from the energies in float64.
            seed: of the order.
            shuffle: False packs structures of similar size together, always in the same order.
            dtype: of the floating arrays.
            max_shapes: most shapes to plan, that is, compilations of a step.
            prefetch: batches prepared ahead.
            tensors: tensor labels that the targets have, by name.
            part: which of the parts of every batch is packed: structures part, part + parts, ...
            parts: into how many every batch is divided, all of the same shape.

        Raises:
            InputError: no structures, or a batch size below 1.
        """
        if not items:
            raise InputError("there are 0 structures to make batches of; give at least one")
        if batch_size < 1:
            raise InputError(f"the batch size is {batch_size}; give 1 or more")
        self.items, sizes = items, sizes_of(items)
        self.batch_size = min(batch_size, len(self.items))
        self.seed, self.shuffle, self.dtype = seed, shuffle, dtype
        self.prefetch = prefetch
        self.tensors = dict(tensors or {})
        self._reference_energy = reference_energy
        slots, split = choose_slots(sizes.counts)
        self._atoms, self._rows, self._edges = sizes.atoms(), sizes.rows(slots), sizes.edges()
        self.part, self.parts, self.pieces = part, parts, 1
        self._plan(slots, split, max_shapes)

    def in_pieces(self, pieces: int) -> Loader:
        """The same batches, each as so many graphs of one shape, whose arrays are [pieces, ...]."""
        if pieces == self.pieces:
            return self
        other, first = copy.copy(self), self._planned[0]
        other.pieces = pieces
        other._plan(first.slots, first.rows_per_atom, len(self._planned))
        return other

    @property
    def num_batches(self) -> int:
        """Batches of an epoch."""
        return -(-len(self.items) // self.batch_size)

    def __len__(self) -> int:
        return self.num_batches

    def order(self, epoch: int) -> list[np.ndarray]:
        """Indices of the structures of every batch of an epoch, in order."""
        n, size = len(self.items), self.batch_size
        if not self.shuffle:
            order = np.argsort(-self._rows, kind="stable")
            return [order[i : i + size] for i in range(0, n, size)]
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(n)
        full = n // size
        order, rest = order[: full * size], order[full * size :]
        order = order[np.argsort(self._rows[order], kind="stable")]
        layers = rng.permuted(order.reshape(size, full), axis=1)
        batches = list(layers.T)
        return [*batches, rest] if len(rest) else batches

    def batches(self, epoch: int, start_step: int = 0) -> Generator[Batch, None, None]:
        """Batches of an epoch from `start_step` on, prepared in a background thread."""
        ready: queue.Queue[Batch | BaseException | None] = queue.Queue(max(self.prefetch, 1))
        stop = threading.Event()

        def put(entry: Batch | BaseException | None) -> None:
            while not stop.is_set():
                try:
                    return ready.put(entry, timeout=0.1)
                except queue.Full:
                    continue

        def work() -> None:
            try:
                for indices in self.order(epoch)[start_step:]:
                    if stop.is_set():
                        return
                    put(self._batch(indices))
                put(None)
            except BaseException as error:  # handed over and raised by the consumer
                put(error)

        thread = threading.Thread(target=work, name="eqnet-loader", daemon=True)
        thread.start()
        try:
            while (entry := ready.get()) is not None:
                if isinstance(entry, BaseException):
                    raise entry
                yield entry
        finally:
            stop.set()
            thread.join()

    def _batch(self, indices: np.ndarray) -> Batch:
        shape = self._shape(indices)
        indices = indices[self.part :: self.parts]
        pieces = [self._pack(indices[p :: self.pieces], shape) for p in range(self.pieces)]
        if len(pieces) == 1:
            return pieces[0]
        return jax.tree_util.tree_map(lambda *arrays: np.stack(arrays), *pieces)

    def _pack(self, indices: np.ndarray, shape: Shape) -> Batch:
        items = [self.items[i] for i in indices]
        references = [float(self._reference_energy(item.species)) for item in items]
        labels = targets(items, shape, references, self.dtype)
        if self.tensors:
            values, weights = tensor_targets(items, shape, self.tensors, self.dtype)
            labels = replace(labels, tensors=values, tensor_weights=weights)
        return pack(items, shape, self.dtype), labels

    def _shape(self, indices: np.ndarray) -> Shape:
        """First planned shape that holds each graph of the batch, else one of the ladder."""
        atoms, rows = self._most(self._atoms, indices), self._most(self._rows, indices)
        for shape in self._planned:
            if holds(shape, atoms, rows):
                return shape
        first = self._planned[0]
        shape = make_shape(atoms, rows, self._structures, first.slots, first.rows_per_atom)
        if shape not in self.shapes:
            self.shapes.append(shape)
        return shape

    @property
    def _graphs(self) -> int:
        """Graphs of a batch: the pieces of all parts."""
        return self.parts * self.pieces

    @property
    def _structures(self) -> int:
        """Most structures of a graph."""
        return -(-self.batch_size // self._graphs)

    def _most(self, sizes: np.ndarray, indices: np.ndarray) -> int:
        """The sum of sizes over the structures of a graph of a batch, that of the largest."""
        return max(int(sizes[indices[g :: self._graphs]].sum()) for g in range(self._graphs))

    def _plan(self, slots: int, split: int, max_shapes: int) -> None:
        """Look at the batches of a number of epochs and choose few shapes with little padding."""
        epochs = max(1, min(50, _SAMPLE // self.num_batches)) if self.shuffle else 1
        batches = [batch for epoch in range(epochs) for batch in self.order(epoch)]
        atoms = np.array([self._most(self._atoms, b) for b in batches])
        rows = np.array([self._most(self._rows, b) for b in batches])
        edges = sum(int(self._edges[b].sum()) for b in batches)
        spare = int(split > 1)
        full = np.array([len(b) == self.batch_size for b in batches])
        if len(set(rows[full])) == 1 and len(set(atoms[full])) == 1 and (rows <= rows[0]).all():
            n, r = int(atoms[0]), int(rows[0])
            self._planned = [Shape(n, self._structures, r + spare, slots, split)]
        else:
            enough = max(int(rows.sum()) * (1 + _ROOM), edges / self._graphs / slots / (1 - _WASTE))
            limits = _limits(rows + spare, enough, max_shapes)
            bins = np.searchsorted(limits, rows + spare)
            tops = np.maximum.accumulate([atoms[bins <= i].max() for i in range(len(limits))])
            sizes = zip(limits if split == 1 else map(_round, tops), limits, strict=True)
            self._planned = [Shape(int(n), self._structures, r, slots, split) for n, r in sizes]
        self.shapes = list(self._planned)
        taken = sum(self._shape(batch).rows * slots for batch in batches) * self._graphs
        self.waste = 1.0 - edges / taken


def _round(size: int) -> int:
    """Next size on a fine ladder, steps of 2 to 3 %, so that unseen batches fit too."""
    step = 1 << max(0, (max(int(size), 1) - 1).bit_length() - 6)
    return -(-size // step) * step


def _limits(sizes: np.ndarray, enough: float, most: int) -> list[int]:
    """Few upper limits, ascending, such that rounding the sizes up to them adds least.

    Dynamic programming over the values that occur, from one limit on until the rounded sizes add up
    to no more than `enough`.
    """
    values, times = np.unique([_round(int(s)) for s in sizes], return_counts=True)
    m = len(values)
    before = np.concatenate([[0], np.cumsum(times)])
    cost = np.full((most + 1, m + 1), np.inf)
    cost[0, 0] = 0.0
    cut = np.zeros((most + 1, m + 1), dtype=int)
    for k in range(1, most + 1):
        for end in range(1, m + 1):
            trial = cost[k - 1, :end] + values[end - 1] * (before[end] - before[:end])
            cut[k, end] = int(np.argmin(trial))
            cost[k, end] = trial[cut[k, end]]
    count = next((k for k in range(1, most + 1) if cost[k, m] <= enough), None)
    count = int(np.argmin(cost[:, m])) if count is None else count
    limits, end = [], m
    for k in range(count, 0, -1):
        limits.append(int(values[end - 1]))
        end = cut[k, end]
    return limits[::-1]
