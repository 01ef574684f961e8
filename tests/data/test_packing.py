"""Packed graphs: every edge where it belongs, padding that touches nothing, labels beside it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from eqnet.data.batches import (
    Shape,
    choose_slots,
    ladder,
    make_item,
    pack,
    pack_targets,
    shape_of,
)
from eqnet.data.frame import Frame
from eqnet.data.neighbors import neighbor_list
from eqnet.errors import InputError

ELEMENTS = (1, 6, 8)


def frame(n: int, seed: int, *, size: float = 0.0, pbc=(False, False, False), **labels) -> Frame:
    """Atoms at random, no two closer than 0.7 A, far outside their cell where there is one."""
    rng = np.random.default_rng(seed)
    box = size or 1.6 * n ** (1 / 3) + 1
    cell = size * (np.eye(3) + 0.2 * rng.normal(size=(3, 3))) if size else np.zeros((3, 3))
    positions: list[np.ndarray] = []
    while len(positions) < n:
        trial = rng.uniform(0, box, 3)
        if all(np.linalg.norm(trial - x) > 0.7 for x in positions):
            positions.append(trial)
    away = rng.integers(-3, 4, (n, 3)) * np.array(pbc)
    return Frame(
        numbers=rng.choice(ELEMENTS, n),
        positions=np.array(positions) + away @ cell + 100.0,
        cell=cell,
        pbc=np.array(pbc),
        **labels,
    )


FRAMES = [
    frame(5, 0),
    frame(9, 1, size=3.2, pbc=(True, True, True)),
    frame(1, 2),
    frame(7, 3, size=4.0, pbc=(True, False, True)),
]
ITEMS = [make_item(f, ELEMENTS, 3.0) for f in FRAMES]


def edges_of(graph) -> list[tuple]:
    """Every real edge as (structure, i, j, vector), atoms counted within their structure."""
    first = np.searchsorted(graph.structure, graph.structure, side="left")
    found = []
    for r, k in zip(*np.nonzero(graph.neighbor_mask), strict=True):
        i, j = graph.centers[r], graph.neighbors[r, k]
        g = graph.structure[i]
        vector = graph.positions[j] + graph.shifts[r, k] @ graph.cell[g] - graph.positions[i]
        found.append((int(g), int(i - first[i]), int(j - first[i]), *np.round(vector, 5) + 0.0))
    return sorted(found)


def edges_expected(frames) -> list[tuple]:
    """The same from the positions of the frames as they are, not moved."""
    found = []
    for g, f in enumerate(frames):
        cell = np.where(f.pbc[:, None], f.cell, 0.0)
        e = neighbor_list(f.positions, cell, f.pbc, 3.0)
        vectors = f.positions[e.neighbors] + e.shifts @ cell - f.positions[e.centers]
        found += [
            (g, int(i), int(j), *v)
            for i, j, v in zip(e.centers, e.neighbors, np.round(vectors, 5) + 0.0, strict=True)
        ]
    return sorted(found)


def shapes() -> list[Shape | None]:
    atoms = sum(len(f) for f in FRAMES)
    most = max(int(i.counts.max()) for i in ITEMS)
    found: list[Shape | None] = [None, Shape(atoms, 4, atoms, most, 1), Shape(40, 6, 40, most, 1)]
    for slots in (1, 3, 6):
        rows = sum(item.num_rows(slots) for item in ITEMS)
        found.append(Shape(atoms, 4, rows + 1, slots, -(-most // slots)))
        found.append(Shape(atoms + 3, 5, rows + 9, slots, -(-most // slots) + 2))
    return found


@pytest.mark.parametrize("shape", shapes())
def test_edges_and_padding(shape):
    graph = pack(ITEMS, shape, dtype=np.float64)
    for got, want in zip(edges_of(graph), edges_expected(FRAMES), strict=True):
        np.testing.assert_allclose(got, want, atol=3e-5)
    check_contract(graph)
    n = sum(len(f) for f in FRAMES)
    assert graph.atom_mask.sum() == n and graph.structure_mask.sum() == len(FRAMES)
    np.testing.assert_array_equal(
        graph.species[:n], np.searchsorted(ELEMENTS, np.concatenate([f.numbers for f in FRAMES]))
    )


def check_contract(graph) -> None:
    """What the table of AtomGraph promises about rows, reverse and padding."""
    rows, slots = graph.neighbors.shape
    atoms = graph.num_atoms
    flat = np.arange(rows * slots).reshape(rows, slots)
    pad = ~graph.neighbor_mask
    np.testing.assert_array_equal(graph.reverse.ravel()[graph.reverse.ravel()], flat.ravel())
    np.testing.assert_array_equal(graph.reverse[pad], flat[pad])
    centers = np.broadcast_to(graph.centers[:, None], (rows, slots))
    np.testing.assert_array_equal(graph.neighbors[pad], centers[pad])
    assert not graph.shifts[pad].any()
    np.testing.assert_array_equal(centers.ravel()[graph.reverse.ravel()], graph.neighbors.ravel())
    back = graph.shifts.reshape(-1, 3)[graph.reverse.ravel()]
    np.testing.assert_array_equal(back, -graph.shifts.reshape(-1, 3))
    if graph.rows.shape[1] == 1:
        assert rows == atoms
        np.testing.assert_array_equal(graph.rows[:, 0], np.arange(atoms))
        np.testing.assert_array_equal(graph.centers, np.arange(atoms))
    else:
        assert not graph.neighbor_mask[-1].any()
        for atom in np.flatnonzero(graph.atom_mask):
            mine = set(graph.rows[atom]) - {rows - 1}
            assert mine == set(np.flatnonzero(graph.centers[:-1] == atom)) or atom == atoms - 1
            assert len(mine) == (graph.rows[atom] != rows - 1).sum()
    assert (np.diff(graph.structure) >= 0).all()
    assert (graph.structure[~graph.atom_mask] == graph.num_structures - 1).all()
    assert not graph.cell[~graph.structure_mask].any()
    assert all(
        a.dtype == np.int32 for a in (graph.reverse, graph.shifts, graph.rows, graph.species)
    )


def test_model_functions_see_the_same_sums(x64):
    """Sum over neighbours of a function of the vectors, through rows of every kind."""
    import jax.numpy as jnp

    from eqnet.graph import displacements, gather_neighbors, sum_rows

    expected = np.zeros(sum(len(f) for f in FRAMES))
    start = np.cumsum([0] + [len(f) for f in FRAMES])
    for g, i, j, *vector in edges_expected(FRAMES):
        expected[start[g] + i] += (1 + start[g] + j) * np.exp(-np.dot(vector, vector))
    for shape in shapes()[1:6:2]:
        graph = pack(ITEMS, shape, dtype=np.float64)
        r = displacements(graph)
        value = np.exp(-np.sum(np.square(r), -1)) * graph.neighbor_mask
        index = gather_neighbors(1.0 + jnp.arange(graph.num_atoms), graph)
        got = np.asarray(sum_rows((value * index).sum(1), graph))[: len(expected)]
        np.testing.assert_allclose(got, expected, rtol=1e-3)


def test_positions_are_centred_and_wrapped_without_losing_digits():
    item = ITEMS[1]
    assert np.abs(item.positions.mean(0)).max() < 1e-12
    fractions = item.positions @ np.linalg.inv(item.cell)
    assert np.ptp(fractions, axis=0).max() <= 1.0
    np.testing.assert_allclose(item.offset + item.positions, FRAMES[1].positions, atol=1e-12)
    far = dataclasses.replace(FRAMES[0], positions=FRAMES[0].positions + 1e6)
    moved = pack([make_item(far, ELEMENTS, 3.0)]).positions
    np.testing.assert_allclose(moved, pack([ITEMS[0]]).positions, atol=1e-6)


def test_rows_that_are_not_periodic_are_zero_in_the_graph():
    slab = frame(4, 5, size=5.0, pbc=(True, True, False))
    assert not pack([make_item(slab, ELEMENTS, 3.0)]).cell[0, 2].any()


def test_ladder_is_a_ladder():
    sizes = [ladder(n) for n in range(1, 5000)]
    assert all(s >= n and (n <= 16 or s <= 1.125 * n) for n, s in enumerate(sizes, 1))
    assert sizes == sorted(sizes) and all(ladder(s) == s for s in sizes)
    assert len(set(sizes)) < 90


def test_slots_fit_equal_atoms_exactly_and_split_long_rows():
    assert choose_slots([np.full(9, 8)]) == (8, 1)
    assert choose_slots([np.full(5, 4), np.full(5, 3)]) == (4, 1)
    slots, split = choose_slots([np.array([10] * 50 + [70])])
    assert split > 1 and slots * split >= 70 and slots < 35
    assert choose_slots([np.zeros(3, int)]) == (2, 1)


def test_what_does_not_fit_is_refused():
    shape = shape_of(ITEMS)
    smaller = (
        shape._replace(structures=3),
        shape._replace(atoms=21),
        shape._replace(slots=1),
    )
    for small in smaller:
        with pytest.raises(InputError, match="do not fit"):
            pack(ITEMS, small)
    with pytest.raises(InputError, match="0 structures to pack"):
        pack([])


def test_unknown_elements_are_refused_by_name():
    odd = dataclasses.replace(FRAMES[2], numbers=np.array([118]), file="a.xyz", index=3)
    with pytest.raises(InputError, match=r"a.xyz, frame 3 contains Og, .* H, C, O"):
        make_item(odd, ELEMENTS, 3.0)


def test_coincident_atoms_name_file_and_frame():
    positions = np.zeros((2, 3))
    twice = dataclasses.replace(
        FRAMES[0], numbers=np.array([1, 1]), positions=positions, file="b.xyz", index=7
    )
    with pytest.raises(InputError, match=r"b.xyz, frame 7: atoms 0 and 1 coincide"):
        make_item(twice, ELEMENTS, 3.0)


def test_targets_subtract_references_before_the_cast():
    rng = np.random.default_rng(0)
    forces = rng.normal(size=(5, 3))
    full = dataclasses.replace(
        FRAMES[0],
        energy=-50_000.123456,
        forces=forces,
        stress=np.eye(3),
        energy_weight=2.0,
        stress_weight=0.5,
    )
    items = [make_item(f, ELEMENTS, 3.0) for f in (FRAMES[2], full)]
    shape = shape_of(items)._replace(structures=3)
    targets = pack_targets(items, shape, lambda species: -10_000.0 * len(species))
    np.testing.assert_allclose(targets.energy, [0, -0.123456, 0], rtol=1e-6)
    np.testing.assert_allclose(targets.forces[1:6], forces.astype(np.float32))
    assert not targets.forces[0].any() and not targets.forces[6:].any()
    np.testing.assert_array_equal(targets.energy_weight, [0, 2, 0])
    np.testing.assert_array_equal(targets.forces_weight, [0, 1, 0])
    np.testing.assert_array_equal(targets.stress_weight, [0, 0.5, 0])
    np.testing.assert_array_equal(targets.num_atoms, [1, 5, 1])
    assert targets.energy.dtype == np.float32
