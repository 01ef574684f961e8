"""Arrays of irreps: order of storage, and the way to and from e3nn-jax."""

from __future__ import annotations

import e3nn_jax as e3nn
import jax
import numpy as np

from eqnet.irreps import Irreps, IrrepsArray, regrouped, spherical_irreps


def test_regrouped_sorts_and_merges() -> None:
    assert str(regrouped("2x1o + 3x0e + 1x1o + 0x2e")) == "3x0e+3x1o"
    assert str(spherical_irreps(3)) == "1x0e+1x1o+1x2e+1x3o"


def test_channels_are_fastest() -> None:
    array = np.arange(2 + 6, dtype=np.float32)
    scalars, vectors = IrrepsArray(Irreps("2x0e+2x1o"), array).blocks
    np.testing.assert_array_equal(scalars, [[0, 1]])
    np.testing.assert_array_equal(vectors, [[2, 3], [4, 5], [6, 7]])


def test_round_trip_through_e3nn() -> None:
    irreps = e3nn.Irreps("3x0e+2x1o+1x2e")
    theirs = e3nn.normal(irreps, jax.random.key(0), (4,))
    ours = IrrepsArray.from_e3nn(theirs)
    np.testing.assert_array_equal(ours.to_e3nn().array, theirs.array)
    # the second vector of the first row, component y: mul-major there, m-major here
    assert ours.blocks[1][0, 1, 1] == theirs.array[0, 3 + 3 + 1]


def test_blocks_join_again_and_it_is_a_pytree() -> None:
    array = np.random.default_rng(0).normal(size=(5, 11)).astype(np.float32)
    x = IrrepsArray(Irreps("2x0e+3x1o"), array)
    np.testing.assert_array_equal(IrrepsArray.from_blocks(x.irreps, x.blocks).array, x.array)
    doubled = jax.tree.map(lambda v: 2 * v, x)
    assert doubled.irreps == x.irreps
    np.testing.assert_array_equal(doubled.array, 2 * x.array)
