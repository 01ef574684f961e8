"""Pairs of structures by brute force, and what is published of who tells them apart."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest
from flax import nnx

from eqnet.geometric_pairs import PAIRS, Pair, chain
from eqnet.models import MODELS
from eqnet.separation import FACTOR, Variant, distinctions


def told_apart(
    pairs: str, model: str, layers: int, degree: int | None = None, correlation: int | None = None
) -> dict[str, bool]:
    config = Variant(model, layers, degree, correlation).config()
    found = distinctions(
        lambda seed: MODELS[model][1](config, rngs=nnx.Rngs(seed)),
        {name: PAIRS[name]() for name in pairs.split(", ")},
    )
    return {name: value > FACTOR for name, value in found.items()}


def distances(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[:, None] - points, axis=-1)


def fingerprint(points: np.ndarray, order: int) -> list[tuple[float, ...]]:
    """All invariants of `order` neighbours of the first point: their scalar products, sorted."""
    gram = (points[1:] - points[0]) @ (points[1:] - points[0]).T
    every = []
    for some in combinations(range(len(gram)), order):
        orders = (gram[np.ix_(p, p)].ravel() for p in permutations(some))
        every.append(min(tuple(np.round(g, 9) + 0.0) for g in orders))
    return sorted(every)


@pytest.mark.parametrize("name", list(PAIRS))
def test_edges_are_equal_and_structures_are_not(name: str) -> None:
    pair = PAIRS[name]()
    lengths = [
        [np.linalg.norm(points[i] - points[j]) for i, j in pair.edges]
        for points in (pair.first, pair.second)
    ]
    np.testing.assert_allclose(sorted(lengths[0]), sorted(lengths[1]), rtol=1e-12)
    assert max(lengths[0]) == pytest.approx(1)
    # the spectrum of the matrix of distances is the same for congruent structures
    spectra = [np.linalg.eigvalsh(distances(p)) for p in (pair.first, pair.second)]
    assert np.abs(spectra[0] - spectra[1]).max() > 1e-6


@pytest.mark.parametrize(("name", "order"), [("2-body", 1), ("3-body", 2), ("4-body", 3)])
def test_order_of_the_first_difference(name: str, order: int) -> None:
    pair: Pair = PAIRS[name]()
    first, second = pair.first, pair.second
    for lower in range(1, order + 1):
        assert fingerprint(first, lower) == fingerprint(second, lower)
    assert fingerprint(first, order + 1) != fingerprint(second, order + 1)


def test_six_points_agree_point_by_point() -> None:
    pair = PAIRS["six points"]()
    first, second = (np.sort(distances(p), axis=1) for p in (pair.first, pair.second))
    np.testing.assert_allclose(first, second, atol=1e-12)


def test_a_chain_has_its_published_coordinates() -> None:
    pair = chain(12)
    assert len(pair.first) == 14 and len(pair.edges) == 13
    np.testing.assert_allclose(5 * pair.first[0], [-4, -3, 0])
    np.testing.assert_allclose(5 * pair.second[[0, 1, 13]], [[4, -3, 0], [0, 0, 0], [4, 58, 0]])


def test_body_order() -> None:
    """One layer of MACE with powers to nu has body order nu + 1 (Joshi et al., 2301.09308)."""
    pairs, expected = "2-body, 3-body", [(False, False), (True, False), (True, True)]
    for correlation, answer in zip((1, 2, 3), expected, strict=True):
        found = told_apart(pairs, "mace", 1, 2, correlation)
        assert (found["2-body"], found["3-body"]) == answer


@pytest.mark.slow
def test_five_body_terms() -> None:
    assert not told_apart("4-body", "mace", 1, 3, 3)["4-body"]
    assert told_apart("4-body", "mace", 1, 3, 4)["4-body"]


@pytest.mark.parametrize("degree", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_degree_of_rotational_symmetry(degree: int) -> None:
    """Tensors of degree L see how an L-fold ring is turned, and none below (ibid.)."""
    found = told_apart("2-fold, 3-fold, 4-fold", "mace", 2, degree, 2)
    assert found == {f"{fold}-fold": degree >= fold for fold in (2, 3, 4)}


def test_layers_along_a_chain() -> None:
    """Chains of k need k / 2 + 1 layers and vectors (ibid.; Sverdlov & Dym, arXiv:2407.02025)."""
    for layers, answer in ((2, False), (3, True)):
        found = told_apart("4-chain, 12-chain, cis/trans, six points", "egennet", layers)
        assert (found["4-chain"], found["12-chain"]) == (answer, False)
        assert found["cis/trans"] and found["six points"]


@pytest.mark.slow
def test_layers_without_powers() -> None:
    """A gate multiplies by scalars only: a vector of one end has to go to the other, k + 1 layers.

    Joshi et al. find that TFN needs more than k / 2 + 1 layers.
    """
    for model, layers, answer in (("nequip", 4, False), ("nequip", 5, True)):
        assert told_apart("4-chain", model, layers, 1)["4-chain"] == answer
    for layers, answer in ((6, False), (7, True)):
        assert told_apart("12-chain", "egennet", layers)["12-chain"] == answer
