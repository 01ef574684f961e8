"""The loader: every frame once, the same order from the same seed, resumable, few shapes."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from eqnet.data.batches import Loader, make_items
from eqnet.data.frame import Frame
from eqnet.errors import InputError


def frames(sizes) -> list[Frame]:
    """Chains of atoms; the energy is the number of the frame, so that batches can be read."""
    return [
        Frame(
            numbers=np.ones(n, int),
            positions=np.arange(n)[:, None] * np.array([1.0, 0, 0]),
            cell=np.zeros((3, 3)),
            pbc=np.zeros(3, bool),
            energy=float(i),
            forces=np.full((n, 3), float(i)),
        )
        for i, n in enumerate(sizes)
    ]


def loader(sizes, batch_size, **options) -> Loader:
    items = make_items(frames(sizes), (1,), 2.5)
    return Loader(items, batch_size, reference_energy=lambda s: 0.0, **options)


MIXED = np.random.default_rng(0).integers(2, 30, 53)


def indices(batch) -> list[int]:
    graph, targets = batch
    return targets.energy[graph.structure_mask].astype(int).tolist()


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("sizes", [MIXED, [9] * 53])
def test_every_frame_once_in_every_epoch(sizes, shuffle):
    load = loader(sizes, 5, shuffle=shuffle)
    for epoch in (0, 3):
        batches = list(load.batches(epoch))
        assert len(batches) == len(load) == 11
        assert sorted(sum(map(indices, batches), [])) == list(range(53))
        for graph, targets in batches:
            assert graph.structure_mask.sum() in (5, 3) and graph.num_structures == 5
            atoms = np.array(sizes)[indices((graph, targets))]
            np.testing.assert_array_equal(targets.num_atoms[graph.structure_mask], atoms)
            n = atoms.sum()
            np.testing.assert_array_equal(
                targets.forces[:n, 0], np.repeat(targets.energy[graph.structure_mask], atoms)
            )


@pytest.mark.parametrize("count", [2, 3, 8])
def test_pieces_are_stacked_and_have_the_batch_between_them(count):
    whole = loader(MIXED, 6, seed=3)
    pieces = whole.in_pieces(count)
    assert (whole.pieces, pieces.pieces) == (1, count)
    for one, (graph, targets) in zip(whole.batches(1), pieces.batches(1), strict=True):
        assert graph.positions.shape[0] == graph.cell.shape[0] == count
        assert graph.cell.shape[1] == -(-6 // count)  # room for structures in each
        found = targets.energy[graph.structure_mask]
        assert sorted(found.astype(int).tolist()) == sorted(indices(one))
        assert graph.atom_mask.sum() == one[0].atom_mask.sum()
        assert graph.neighbor_mask.sum() == one[0].neighbor_mask.sum()


def test_order_depends_on_seed_and_epoch_alone():
    orders = [
        [o.tolist() for o in loader(MIXED, 5, seed=seed).order(epoch)]
        for seed, epoch in [(0, 0), (0, 0), (0, 1), (1, 0)]
    ]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2] and orders[0] != orders[3]


def test_resumes_at_any_step_with_the_same_batches():
    whole = list(loader(MIXED, 5, seed=4).batches(2))
    for start in (0, 4, 10, 11):
        rest = list(loader(MIXED, 5, seed=4).batches(2, start))
        assert len(rest) == 11 - start
        for (g, t), (h, u) in zip(whole[start:], rest, strict=True):
            for a, b in zip(
                [*vars(g).values(), *vars(t).values()],
                [*vars(h).values(), *vars(u).values()],
                strict=True,
            ):
                np.testing.assert_array_equal(a, b)


def test_equal_structures_come_in_one_shape_without_padding_and_in_uniform_order():
    load = loader([8] * 50, 5)
    assert [s.atoms for s in load.shapes] == [40]
    firsts = np.array([load.order(epoch)[0][0] for epoch in range(2000)])
    counts = np.bincount(firsts, minlength=50)
    chi_square = ((counts - 40) ** 2 / 40).sum()
    assert chi_square < 94  # 49 degrees of freedom: exceeded once in ten thousand times


def test_few_shapes_and_little_padding_for_mixed_sizes():
    load = loader(np.random.default_rng(1).integers(2, 60, 400), 8)
    planned = list(load.shapes)
    used = {g.neighbors.shape for e in range(40, 43) for g, _ in load.batches(e)}
    assert len(planned) <= 6 and load.waste < 0.25
    assert len(used | {(s.rows, s.slots) for s in load.shapes}) <= len(planned) + 1


def test_waste_is_the_part_of_slots_without_a_neighbour():
    load = loader(MIXED, 5, shuffle=False)
    masks = [g.neighbor_mask for g, _ in load.batches(0)]
    filled = sum(m.sum() for m in masks) / sum(m.size for m in masks)
    assert load.waste == pytest.approx(1 - filled)


def test_a_batch_larger_than_the_set_is_one_batch():
    load = loader([3, 4, 5], 100)
    ((graph, _),) = load.batches(0)
    assert graph.num_structures == 3 and len(load) == 1


def test_an_abandoned_epoch_leaves_no_thread_behind():
    before = threading.active_count()
    iterator = loader(MIXED, 2, prefetch=1).batches(0)
    next(iterator)
    iterator.close()
    assert threading.active_count() == before


def test_errors_of_the_thread_reach_the_caller():
    load = loader([3, 4, 5, 6], 2)
    load.items[2] = None  # type: ignore[call-overload]
    with pytest.raises(AttributeError):
        list(load.batches(0))


def test_useless_requests_are_refused():
    with pytest.raises(InputError, match="0 structures"):
        loader([], 5)
    with pytest.raises(InputError, match="batch size is 0"):
        loader([3], 0)
