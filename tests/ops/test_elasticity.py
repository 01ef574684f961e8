"""Mandel's matrix and positive elasticity tensors against definitions written out."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from eqnet.data.tensor_labels import ELASTICITY, symmetrised
from eqnet.ops.elasticity import from_mandel, positive, to_mandel
from eqnet.so3 import random_elements

pytestmark = pytest.mark.usefixtures("x64")
ROOT = np.sqrt(0.5)
# orthonormal symmetric matrices in the order of the module
STRAINS = np.zeros((6, 3, 3))
for q, (a, b) in enumerate([(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]):
    STRAINS[q, a, b] = STRAINS[q, b, a] = 1.0 if a == b else ROOT


def random_tensor(seed: int) -> np.ndarray:
    return symmetrised(ELASTICITY, np.random.default_rng(seed).normal(size=(3, 3, 3, 3)))


def test_mandel_is_the_quadratic_form_of_orthonormal_strains() -> None:
    c = random_tensor(0)
    expected = np.einsum("aij,ijkl,bkl->ab", STRAINS, c, STRAINS)
    np.testing.assert_allclose(to_mandel(jnp.asarray(c)), expected, atol=1e-14)
    np.testing.assert_allclose(from_mandel(jnp.asarray(expected)), c, atol=1e-14)


@pytest.mark.parametrize("how", ["square", "exp"])
def test_positive_symmetric_and_turning_with_its_input(how: str) -> None:
    c = random_tensor(1)
    eigenvalues, vectors = np.linalg.eigh(np.einsum("aij,ijkl,bkl->ab", STRAINS, c, STRAINS))
    f = {"square": np.square, "exp": np.exp}[how]
    assert eigenvalues.min() < -0.1  # the input is not positive
    expected = vectors * f(eigenvalues) @ vectors.T
    found = np.asarray(positive(jnp.asarray(c), how))
    np.testing.assert_allclose(np.einsum("aij,ijkl,bkl->ab", STRAINS, found, STRAINS), expected,
                               atol=1e-12)  # fmt: skip
    for order in ("jikl", "ijlk", "klij"):
        assert (found == np.einsum(f"ijkl->{order}", found)).all()
    for turn in random_elements(np.random.default_rng(2), 2):
        turned = np.einsum("ai,bj,ck,dl,ijkl->abcd", *[turn] * 4, c)
        expected = np.einsum("ai,bj,ck,dl,ijkl->abcd", *[turn] * 4, found)
        np.testing.assert_allclose(positive(jnp.asarray(turned), how), expected, atol=1e-12)


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(ValueError, match="square, exp"):
        positive(jnp.zeros((3, 3, 3, 3)), "cube")
