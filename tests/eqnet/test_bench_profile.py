"""Times of parts of a program."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from eqnet.bench_profile import profile


def test_parts_are_scopes_and_not_operations_of_the_same_name() -> None:
    """A gather inside of 'edges' is not the part 'gather'; what has no scope is 'other'."""
    table, places = jnp.ones((50, 64)), jnp.arange(40)

    def function(x: jax.Array, places: jax.Array) -> jax.Array:
        with jax.named_scope("edges"):
            chosen = jnp.sin(x[places])
        with jax.named_scope("radial"):
            y = chosen @ x.T
        return jnp.cos(y).sum()

    gradient = jax.grad(function)
    compiled = jax.jit(gradient).lower(table, places).compile()
    parts = {part.name: part for part in profile(gradient, (table, places), compiled, calls=2)}
    assert set(parts) == {"edges", "radial", "other"}
    assert parts["radial"].operations == 3 * 2 * 40 * 50 * 64
    assert parts["radial"].forward_ms > 0
    assert parts["radial"].backward_ms > 0
