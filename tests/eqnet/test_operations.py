"""Operations of programs that can be counted by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from eqnet.operations import count, count_by
from eqnet.ops.sparse import Sparse, sparse_product


def test_matrix_products_and_elementwise_functions() -> None:
    a, b = jnp.ones((5, 3, 4)), jnp.ones((5, 4, 7))
    assert count(lambda a, b: a @ b, a, b) == 2 * 5 * 3 * 4 * 7
    assert count(lambda a: a + jnp.exp(a), a) == 2 * a.size
    assert count(lambda a: a.sum(), a) == a.size
    assert count(lambda a: a[0, 1].reshape(2, 2), a) == 0
    assert count(lambda n: n * n + 1, jnp.arange(3)) == 0


def test_loops_conditions_and_what_is_done_again() -> None:
    a = jnp.ones((6, 4, 4))
    once = 2 * 4**3

    assert count(lambda a: jax.lax.map(lambda x: x @ x, a), a) == 6 * once
    assert count(jax.jit(lambda a: jax.lax.map(jax.jit(lambda x: x @ x), a)), a) == 6 * once
    branches = (lambda x: x @ x, lambda x: x @ x @ x)
    assert count(lambda a: jax.lax.cond(a[0, 0] > 0, *branches[::-1], a), a[0]) == 2 * once

    def kept(x: jax.Array) -> jax.Array:
        return (x @ x @ x).sum()

    plain, again = (count(jax.value_and_grad(f), a[0]) for f in (kept, jax.checkpoint(kept)))
    assert plain < again <= plain + 2 * once


def test_what_nobody_uses_does_not_count() -> None:
    def function(x: jax.Array) -> jax.Array:
        def step(sums: tuple, _: None) -> tuple:
            return (sums[0] + 1, sums[1] + x @ x), None

        return jax.lax.scan(step, (jnp.zeros(()), x), None, length=10)[0][0]

    assert count(function, jnp.ones((4, 4))) == 10


def test_complex_numbers_and_convolutions() -> None:
    z = jnp.ones((3, 3), jnp.complex64)
    assert count(lambda z: z @ z, z) == 4 * 2 * 27
    image, kernel = jnp.ones((2, 1, 8, 8)), jnp.ones((5, 1, 3, 3))

    def convolve(image: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv(image, kernel, (1, 1), "VALID")

    assert count(convolve, image, kernel) == 2 * (2 * 5 * 6 * 6) * 9
    assert count(jnp.fft.fft, jnp.ones(8, jnp.complex64)) == 5 * 8 * 3


def test_our_own_primitives() -> None:
    table = np.zeros((2, 3, 4))
    table[0, 0, 0] = table[1, 2, 3] = table[0, 1, 3] = 1.5
    x, y = jnp.ones((10, 2, 6)), jnp.ones((10, 3, 6))
    found = count(lambda x, y: sparse_product(Sparse.from_dense(table), x, y), x, y)
    assert 3 * 2 * 60 <= found <= 3 * 3 * 60


def test_by_scope() -> None:
    """What runs in a loop inside of a scope belongs to it, as often as it runs."""

    def function(x: jax.Array) -> jax.Array:
        with jax.named_scope("outer"):
            x, _ = jax.lax.scan(lambda x, _: (x @ x, None), x, None, length=3)
        return x + 1

    found = count_by(lambda name: "outer" if "outer" in name else "", function, jnp.ones((4, 4)))
    assert found == {"outer": 3 * 2 * 4**3, "": 4 * 4}
