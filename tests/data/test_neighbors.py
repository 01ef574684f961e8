"""Neighbour lists against a plain loop over images, for every kind of boundary."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import KDTree

from eqnet.data.neighbors import average_num_neighbors, neighbor_list
from eqnet.errors import InputError


def brute_force(positions, cell, pbc, cutoff):
    """Set of (i, j, shift) by looking at every image that can be near, one by one."""
    periodic = np.asarray(pbc)
    vectors = np.where(periodic[:, None], cell, 0.0)
    limits = [0, 0, 0]
    if periodic.any():
        inverse = np.linalg.pinv(vectors)
        span = np.ptp(positions @ inverse, axis=0)
        reach = cutoff * np.linalg.norm(inverse, axis=0)
        limits = [
            int(np.ceil(s + r)) + 1 if p else 0 for s, r, p in zip(span, reach, pbc, strict=True)
        ]
    found = set()
    for shift in itertools.product(*(range(-n, n + 1) for n in limits)):
        r = positions[None, :] + np.array(shift) @ vectors - positions[:, None]
        near = np.linalg.norm(r, axis=-1) < cutoff
        if shift == (0, 0, 0):
            near &= ~np.eye(len(positions), dtype=bool)
        found |= {(int(i), int(j), shift) for i, j in zip(*np.nonzero(near), strict=True)}
    return found


def as_set(edges):
    shifts = map(tuple, edges.shifts.tolist())
    return set(zip(edges.centers.tolist(), edges.neighbors.tolist(), shifts, strict=True))


def random_case(seed: int):
    """A structure with a skewed cell, any periodic axes, perhaps left-handed, atoms anywhere."""
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(1.0, 5.0, 3)) + rng.uniform(-1.5, 1.5, (3, 3))
    while abs(np.linalg.det(cell)) < 4.0:
        cell = np.diag(rng.uniform(1.0, 5.0, 3)) + rng.uniform(-1.5, 1.5, (3, 3))
    if rng.random() < 0.5:
        cell = cell[[1, 0, 2]]  # the other handedness
    pbc = rng.random(3) < 0.6
    cell[~pbc] *= rng.integers(0, 2, 3)[~pbc, None]  # zero rows, or vectors that mean nothing
    n = int(rng.integers(1, 6))
    positions = rng.uniform(-3, 3, (n, 3))
    outside = np.where(pbc[None, :], rng.integers(-3, 4, (n, 3)), 0)
    return positions + outside @ cell, cell, pbc, float(rng.uniform(0.8, 4.5))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**31))
def test_equals_a_loop_over_images(seed):
    check_random_case(seed)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(st.integers(0, 2**63))
def test_equals_a_loop_over_images_ten_thousand_times(seed):
    check_random_case(seed)


def check_random_case(seed):
    positions, cell, pbc, cutoff = random_case(seed)
    try:
        edges = neighbor_list(positions, cell, pbc, cutoff)
    except InputError:
        r = positions[:, None] - positions[None]
        assert len(positions) > 1 and (np.linalg.norm(r, axis=-1) < 1.0).sum() > len(positions)
        return
    assert as_set(edges) == brute_force(positions, cell, pbc, cutoff)
    assert len(as_set(edges)) == len(edges.centers)
    check_order_and_reverse(edges)
    vectors = positions[edges.neighbors] + edges.shifts @ np.where(pbc[:, None], cell, 0.0)
    distances = np.linalg.norm(vectors - positions[edges.centers], axis=1)
    np.testing.assert_allclose(edges.distances, distances, atol=1e-9)


def check_order_and_reverse(edges):
    keys = [*edges.shifts.T[::-1], edges.neighbors, edges.centers]
    np.testing.assert_array_equal(np.lexsort(keys), np.arange(len(edges.centers)))
    np.testing.assert_array_equal(edges.centers[edges.reverse], edges.neighbors)
    np.testing.assert_array_equal(edges.neighbors[edges.reverse], edges.centers)
    np.testing.assert_array_equal(edges.shifts[edges.reverse], -edges.shifts)


def test_one_atom_in_a_cell_much_smaller_than_the_cutoff():
    edges = neighbor_list(np.array([[7.3, -2.1, 0.4]]), np.eye(3), np.ones(3, bool), 3.5)
    lattice = np.array(list(itertools.product(range(-4, 5), repeat=3)))
    assert len(edges.centers) == (np.linalg.norm(lattice, axis=1) < 3.5).sum() - 1
    check_order_and_reverse(edges)


def test_a_needle_and_a_huge_cell():
    """Work goes with the atoms, not with the volume: bins of a grid here would be 1e13."""
    heights = 3.0 * np.arange(1000)
    needle = np.stack([heights * 0 + 0.1, heights * 0 + 0.1, heights], axis=1)
    edges = neighbor_list(needle, np.diag([2.6, 2.6, 3000.0]), np.ones(3, bool), 5.0)
    # 8 images within 5 A in the plane, 9 in each of those 3 A above and below
    np.testing.assert_array_equal(np.bincount(edges.centers), np.full(1000, 8 + 2 * 9))
    corners = np.array([[0.5, 0, 0], [99_999.0, 0, 0], [50_000.0, 50_000.0, 50_000.0]])
    edges = neighbor_list(corners, 1e5 * np.eye(3), np.ones(3, bool), 5.0)
    assert as_set(edges) == {(0, 1, (-1, 0, 0)), (1, 0, (1, 0, 0))}
    np.testing.assert_allclose(edges.distances, 1.5, atol=1e-9)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read there")
def test_memory_does_not_grow_with_the_volume():
    code = (
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from eqnet.data.neighbors import neighbor_list\n"
        "peak = lambda: int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
        "def search(size):\n"
        "    places = np.random.default_rng(0).uniform(0, 20, (50, 3))\n"
        "    neighbor_list(places, np.diag(size), np.ones(3, bool), 5.0)\n"
        "search([25.0] * 3)\n"
        "before = peak()\n"
        "search([1e5] * 3), search([25.0, 25.0, 1e6]), search([1e6, 25.0, 25.0])\n"
        "assert peak() - before < 10_000, peak() - before\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_neighbours():
    for n in (0, 1):
        edges = neighbor_list(np.zeros((n, 3)), np.zeros((3, 3)), np.zeros(3, bool), 5.0)
        assert len(edges.centers) == 0 and edges.shifts.shape == (0, 3)
    assert average_num_neighbors([edges]) == 0.0


def test_a_slab_whose_vacuum_vector_is_zero_or_short_is_not_periodic_there():
    positions = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    pbc = np.array([True, True, False])
    counts = [
        len(neighbor_list(positions, np.diag([3.0, 3.0, c]), pbc, 2.5).centers)
        for c in (0.0, 0.5, 20.0)
    ]
    assert counts == [2, 2, 2]


def test_average_counts_atoms_of_all_structures():
    chain = np.array([[0.0, 0, 0], [1.0, 0, 0], [2.0, 0, 0]])
    lists = [neighbor_list(chain[:n], np.zeros((3, 3)), np.zeros(3, bool), 1.5) for n in (1, 3)]
    assert average_num_neighbors(lists) == 4 / 4


def test_coincident_atoms_and_useless_cutoffs_are_refused():
    positions = np.array([[0.0, 0, 0], [3.0, 0, 0], [3.0, 0, 1e-5]])
    with pytest.raises(InputError, match="atoms 1 and 2 coincide"):
        neighbor_list(positions, np.zeros((3, 3)), np.zeros(3, bool), 5.0)
    image = np.array([[0.0, 0, 0], [4.0, 4.0, 0]])
    with pytest.raises(InputError, match="atoms 0 and 1 coincide"):
        neighbor_list(image, 4 * np.eye(3), np.ones(3, bool), 3.0)
    for cutoff in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(InputError, match="cutoff"):
            neighbor_list(positions[:2], np.zeros((3, 3)), np.zeros(3, bool), cutoff)


@pytest.mark.parametrize("pbc", [(0, 0, 0), (1, 0, 0), (0, 1, 1), (1, 1, 1)])
@pytest.mark.parametrize("places", [[1.0, 0.0, 0.0], [-1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
@pytest.mark.parametrize("far", [950.0, 1e4, 1e7])
def test_groups_of_atoms_with_nothing_between(
    pbc: tuple[int, int, int], places: list[float], far: float
) -> None:
    """Far apart along some directions they have the neighbours of each alone, the same edges."""
    rng = np.random.default_rng(0)
    cell = np.array([[6.0, 0.3, 0.1], [0.2, 5.0, -0.4], [0.0, 0.5, 7.0]])
    axes = np.array(pbc, bool)
    groups = [rng.uniform(0, 4, (5, 3)) for _ in range(3)]
    # along directions without images; a group that met an image of another would be its neighbour
    free = np.linalg.svd(cell[axes])[2][axes.sum() :]
    step = np.asarray(places) @ free.T @ free * far
    if not np.linalg.norm(step) > 100:
        step = np.zeros(3)
        groups = groups[:1]
    every = np.concatenate([group + k * step for k, group in enumerate(groups)])
    found = neighbor_list(every, cell, axes, 3.0)
    alone = [neighbor_list(group, cell, axes, 3.0) for group in groups]
    for name in ("centers", "neighbors"):
        expected = [getattr(n, name) + 5 * k for k, n in enumerate(alone)]
        np.testing.assert_array_equal(getattr(found, name), np.concatenate(expected))
    np.testing.assert_array_equal(found.shifts, np.concatenate([n.shifts for n in alone]))
    distances = np.concatenate([n.distances for n in alone])
    np.testing.assert_allclose(found.distances, distances, atol=1e-8)
    assert len(found.centers) >= 8


@pytest.mark.parametrize("pbc", [(0, 0, 0), (1, 1, 0)])
def test_a_sheet_of_a_tenth_of_a_micrometre(pbc: tuple[int, int, int]) -> None:
    """Against a k-d tree."""
    x = 12.0 * np.arange(84)
    sheet = np.stack([*np.meshgrid(x, x), np.zeros((84, 84))], axis=-1).reshape(-1, 3)
    pairs = np.concatenate([sheet, sheet + [1.0, 0.5, 0.2], sheet + [0.0, 2.5, -1.0]])
    pairs[:, :2] += np.random.default_rng(0).normal(0, 0.1, (len(pairs), 2))
    found = neighbor_list(pairs, np.diag([1008.0, 1008.0, 0.0]), np.array(pbc, bool), 3.0)
    expected = KDTree(pairs).query_pairs(3.0, output_type="ndarray")
    assert len(found.centers) == 2 * len(expected) > 10_000


def test_an_atom_where_distances_have_no_digits() -> None:
    far = np.array([[0.0, 0.0, 0.0], [0.0, 1e30, 0.0]])
    with pytest.raises(InputError, match=r"atom 1 is 1\.0e\+30 A from the origin"):
        neighbor_list(far, np.zeros((3, 3)), np.zeros(3, bool), 3.0)
