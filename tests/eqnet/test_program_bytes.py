"""Bytes of a compiled program, against sizes worked out by hand."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from eqnet.program_bytes import bytes_by_instruction


def moved(function: Callable, *arguments: jax.Array) -> list[int]:
    """Bytes of the instructions of a function, the small ones (loop counters) left out."""
    program = jax.jit(function).lower(*arguments).compile().as_text()
    assert program is not None
    return sorted(size for size in bytes_by_instruction(program).values() if size > 100)


def test_matrix_product() -> None:
    (size,) = moved(lambda a, b: a @ b, jnp.ones((30, 40)), jnp.ones((40, 50)))
    assert size == 4 * (30 * 40 + 40 * 50 + 30 * 50)


def test_fused_arithmetic_reads_once() -> None:
    """x is used twice and read once; y is boolean, a byte each."""
    x, y = jnp.ones(1000), jnp.ones(1000, bool)
    (size,) = moved(lambda x, y: jnp.where(y, jnp.sin(x), x * x), x, y)
    assert size == 4000 + 1000 + 4000


def test_rows_of_an_array() -> None:
    """Of a table of 1000 rows, 10 are read, by their numbers, and 10 are written."""
    table, places = jnp.ones((1000, 64)), jnp.arange(10)
    (size,) = moved(lambda t, p: t.at[p].get(mode="clip"), table, places)
    assert size == 4 * (10 * 64 + 10 + 10 * 64)


def test_loop_writes_rows_in_place() -> None:
    """Each turn reads a row of 256 numbers and writes one: not the whole table."""
    table = jnp.ones((1000, 256))
    sizes = moved(lambda t: jax.lax.map(lambda row: 2 * row + 1, t), table)
    turn = 4 * (256 + 256)
    assert any(turn <= size <= turn + 16 for size in sizes)
    assert all(size in range(turn, turn + 17) or size >= table.nbytes for size in sizes)
