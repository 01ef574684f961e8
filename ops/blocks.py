"""Work on a few rows at a time.

What a step makes then stays in a core's cache, and it is made again in the backward pass, so that
memory does not grow with the number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from eqnet.graph import AtomGraph, gather_neighbors, sum_rows
from eqnet.ops.apart import platform

T = TypeVar("T")

# Bytes of one intermediate array at a time. On a core with 1 MB of second-level cache (Gaunt
# products of 64 channels, L = 2 .. 6) 0.1 to 0.3 MB is best, and without blocks it takes up to 3
# times as long. On other devices many small steps would cost more.
BLOCK_BYTES = {"cpu": 2**18}
OTHER_BLOCK_BYTES = 2**27
# Axis of a mesh of devices that share the blocks of rows, where there is one (`jax.set_mesh`).
ROWS = "rows"
_SHARE, _EVERYWHERE = PartitionSpec(ROWS), PartitionSpec()
# Edges worked on at a time: their messages and weights then stay in a core's second-level cache
# (64 channels, 10 paths, float32: 0.3 MB). Measured from 60 to 300: flat between 100 and 150. Other
# devices have no such caches, and many small steps would cost more than the memory.
EDGES_AT_A_TIME = {"cpu": 128}
OTHER_EDGES_AT_A_TIME = 2**17
# Rows (atoms, or the neighbours of one) worked on at a time where there are more than MANY_PARTS
# times as many: what a layer makes of each atom by itself, 50 kB with 64 channels, would be most of
# the memory, and what harmonics are made from a sixth.
ROWS_AT_A_TIME = {"cpu": 128}
OTHER_ROWS_AT_A_TIME = 2**14
MANY_PARTS = 32


def in_blocks(function: Callable[..., T], operands: tuple, row_bytes: int) -> T:
    """`function(*operands)`, computed a few rows at a time.

    Args:
        function: from arrays with leading rows to arrays with leading rows, row by row.
        operands: pytrees of arrays [rows, ...].
        row_bytes: bytes of the largest intermediate array per row.
    """
    rows = jax.tree.leaves(operands)[0].shape[0]
    budget = BLOCK_BYTES.get(platform(), OTHER_BLOCK_BYTES)
    size = max(budget // row_bytes, 1)
    if size >= rows:
        return function(*operands)
    # a divisor of the number of rows, if there is one near, saves the copies of padding
    divisors = [n for n in range(size // 2 + 1, 2 * size) if rows % n == 0]
    size = min(divisors, key=lambda n: abs(n - size), default=-(-rows // -(-rows // size)))
    padding = -rows % size

    def cut(v: jax.Array) -> jax.Array:
        v = jnp.pad(v, [(0, padding)] + [(0, 0)] * (v.ndim - 1)) if padding else v
        return v.reshape((-1, size, *v.shape[1:]))

    values = step_by_step(lambda some: function(*some), jax.tree.map(cut, operands))
    return jax.tree.map(lambda v: v.reshape((-1, *v.shape[2:]))[:rows], values)


def step_by_step(function: Callable[..., T], blocks: Any, kept: Sequence[str] = ()) -> T:
    """`function` of each block [n, ...] -> [n, ...].

    Nothing but its operands is kept for the backward pass, and what `checkpoint_name` calls by one
    of the names `kept`.
    """
    policy = jax.checkpoint_policies.save_only_these_names(*kept)
    # the loop already keeps the forward and the backward pass apart
    return jax.lax.map(jax.checkpoint(function, prevent_cse=False, policy=policy), blocks)


def rows_in_blocks(function: Callable[..., T], *operands: Any) -> T:
    """`function(*operands)`, row by row, [R, ...] -> [R, ...]; of many rows, a few at a time.

    What it makes on the way is then made again in the backward pass, so that memory does not grow
    with it. On a core that takes no more time: a part stays in the cache.
    """
    rows = jax.tree.leaves(operands)[0].shape[0]
    size = ROWS_AT_A_TIME.get(platform(), OTHER_ROWS_AT_A_TIME)
    if rows <= MANY_PARTS * size:
        return function(*operands)
    # repeated at the end: a row of zeros may have no finite value
    blocks = jax.tree.map(lambda v: _cut(v, size, -rows % size, mode="edge"), operands)
    values = step_by_step(lambda some: function(*some), blocks)
    return jax.tree.map(lambda v: v.reshape((-1, *v.shape[2:]))[:rows], values)


def neighbors_in_blocks(
    function: Callable[[Any, Any], T],
    operands: Any,
    common: Any,
    *,
    kept: Sequence[str] = (),
    whole: bool = False,
) -> T:
    """`function(operands, common)`, computed a few rows of neighbours at a time.

    Args:
        function: from arrays with leading rows to arrays with leading rows, row by row.
        operands: pytree of arrays, the first one [rows, slots, ...], all with leading rows; zeros
            fill up the last block.
        common: pytree of arrays that every row uses, such as weights.
        kept: names of what is not made again, see `step_by_step`.
        whole: all rows at once after all, and nothing is made again.
    """
    num_rows, width = jax.tree.leaves(operands)[0].shape[:2]
    size = _block_size(num_rows, width)
    if whole or size >= num_rows:
        return function(operands, common)
    devices = _num_devices()
    padding = -num_rows % (size * devices)
    blocks = jax.tree.map(lambda v: _cut(v, size, padding), operands)
    values = _shared_out(function, devices, kept)(blocks, common)
    return jax.tree.map(lambda v: v.reshape((-1, *v.shape[2:]))[:num_rows], values)


def messages_in_blocks(
    function: Callable[[Any, Any], Any],
    x: Any,
    graph: AtomGraph,
    operands: Any,
    common: Any,
    *,
    summed: bool = True,
) -> Any:
    """`function((x of the neighbours, operands), common)` of all rows, or their sums by atom.

    On a core, neither what is gathered, nor its gradient, nor the result of a row is ever there for
    all rows: each block takes its part, and adds to the sums and to the gradient of x, one after
    the other. Against arrays of all edges it takes a sixth less time and a third of the memory.
    Elsewhere the gradient is a gather for all rows at once. Derivatives in reverse only.

    Args:
        function: from arrays with leading rows to a pytree of such arrays, row by row; zero for a
            row without edges if they are summed.
        x: pytree of floating arrays [N, ...].
        graph: says who is whose neighbour.
        operands: pytree of floating arrays with leading rows.
        common: pytree of floating arrays that every row uses.
        summed: or else the results of the rows as they are.

    Returns:
        [N, ...], or [R, ...] if they are not summed.
    """
    num_rows, width = graph.neighbors.shape
    size = _block_size(num_rows, width)
    if platform() != "cpu" or size >= num_rows:
        with jax.named_scope("gather"):
            sent = jax.tree.map(lambda v: gather_neighbors(v, graph), x)
        values = neighbors_in_blocks(function, (sent, operands), common)
        return jax.tree.map(lambda v: sum_rows(v, graph), values) if summed else values
    padding = -num_rows % (size * _num_devices())
    # rows that fill up the last block belong to no atom
    centers = jnp.pad(jnp.asarray(graph.centers), (0, padding), constant_values=graph.num_atoms)
    rows = (jnp.asarray(graph.neighbors), operands)
    neighbors, operands = jax.tree.map(lambda v: _cut(v, size, padding), rows)
    places = centers.reshape(-1, size), neighbors
    into = graph.num_atoms if summed else None
    values = _messages(function, into, x, places, operands, common)
    if summed:
        return values
    return jax.tree.map(lambda v: v.reshape((-1, *v.shape[2:]))[:num_rows], values)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _messages(
    function: Callable, into: int | None, x: Any, places: tuple, operands: Any, common: Any
) -> Any:
    """Sums over the rows of so many atoms, or, for None, the results of each block."""

    def some_rows(x: Any, common: Any, sums: Any, block: tuple) -> tuple[Any, Any]:
        (centers, neighbors), own = block
        values = function((_rows_of(x, neighbors), own), common)
        if into is None:
            return sums, values
        return jax.tree.map(lambda s, v: s.at[centers].add(v, mode="drop"), sums, values), None

    def all_rows(blocks: tuple, x: Any, common: Any) -> Any:
        if into is None:
            return jax.lax.scan(partial(some_rows, x, common), None, blocks)[1]
        first = jax.tree.map(lambda v: v[0], (blocks[0][1], blocks[1]))
        values = jax.eval_shape(lambda n, own: function((_rows_of(x, n), own), common), *first)
        zeros = jax.tree.map(lambda v: jnp.zeros((into, *v.shape[1:]), v.dtype), values)
        return _total(jax.lax.scan(partial(some_rows, x, common), zeros, blocks)[0])

    out = _SHARE if into is None else _EVERYWHERE
    return _on_each_device(all_rows, out)((places, operands), x, common)


def _messages_forward(function: Callable, into: int | None, *arguments: Any) -> tuple[Any, tuple]:
    return _messages(function, into, *arguments), arguments


def _messages_backward(
    function: Callable, into: int | None, arguments: tuple, gradient: Any
) -> tuple:
    x, places, operands, common = arguments

    @partial(jax.checkpoint, prevent_cse=False)  # for the second derivative
    def pull(sent: Any, own: Any, common: Any, gradient: Any) -> tuple:
        return jax.vjp(lambda s, o, c: function((s, o), c), sent, own, common)[1](gradient)

    def some_rows(x: Any, common: Any, gradient: Any, sums: tuple, block: tuple) -> tuple:
        (centers, neighbors), own, of_rows = block
        if into is not None:
            of_rows = jax.tree.map(lambda v: v.at[centers].get(mode="fill", fill_value=0), gradient)
        to_sent, to_own, to_common = pull(_rows_of(x, neighbors), own, common, of_rows)
        to_x, of_common = sums
        to_x = jax.tree.map(lambda sum, part: sum.at[neighbors].add(part), to_x, to_sent)
        return (to_x, jax.tree.map(jnp.add, of_common, to_common)), to_own

    def all_rows(blocks: tuple, x: Any, common: Any, gradient: Any) -> tuple:
        zeros = jax.tree.map(jnp.zeros_like, (x, common))
        sums, to_operands = jax.lax.scan(partial(some_rows, x, common, gradient), zeros, blocks)
        return _total(sums), to_operands

    shared = _on_each_device(all_rows, (_EVERYWHERE, _SHARE))
    # of sums every block looks up its own; of results each block has its own
    of_atoms, of_blocks = (None, gradient) if into is None else (gradient, None)
    blocks = (places, operands, of_blocks)
    (to_x, to_common), to_operands = shared(blocks, x, common, of_atoms)
    return to_x, None, to_operands, to_common


_messages.defvjp(_messages_forward, _messages_backward)


@jax.named_scope("gather")
def _rows_of(x: T, where: jax.Array) -> T:
    return jax.tree.map(lambda v: v[where], x)


def _on_each_device(function: Callable[..., T], out_specs: Any) -> Callable[..., T]:
    """The function of (blocks, *the rest), a share of the blocks on each device."""
    if _num_devices() == 1:
        return function

    def call(blocks: Any, *rest: Any) -> T:
        specs = (_SHARE, *(_EVERYWHERE for _ in rest))
        # sums begin as the same zeros everywhere, which the check would refuse
        share = jax.shard_map(function, in_specs=specs, out_specs=out_specs, check_vma=False)
        return share(blocks, *rest)

    return call


def _total(sums: T) -> T:
    """The sum over the devices."""
    return sums if _num_devices() == 1 else jax.lax.psum(sums, ROWS)


def _shared_out(
    function: Callable[[Any, Any], T], devices: int, kept: Sequence[str]
) -> Callable[[Any, Any], T]:
    """(blocks, common) -> the function of each block, a share of the blocks on each device."""

    def all_rows(blocks: Any, common: Any) -> T:
        return step_by_step(lambda block: function(block, common), blocks, kept)

    if devices == 1:
        return all_rows
    return jax.shard_map(all_rows, in_specs=(_SHARE, _EVERYWHERE), out_specs=_SHARE)


def _num_devices() -> int:
    """Devices that share the blocks of rows."""
    return jax.sharding.get_abstract_mesh().shape.get(ROWS, 1)


def _block_size(num_rows: int, width: int) -> int:
    """Rows in a block: near the wanted number of edges, with as little padding as possible."""
    edges = EDGES_AT_A_TIME.get(platform(), OTHER_EDGES_AT_A_TIME)
    wanted = max(1, round(edges / width))
    if num_rows <= 2 * wanted:
        return num_rows
    candidates = range(max(1, wanted // 2), wanted + wanted // 2 + 1)
    return min(candidates, key=lambda size: (-num_rows % size, abs(size - wanted)))


def _cut(values: jax.Array, size: int, padding: int, mode: str = "constant") -> jax.Array:
    """[R, ...] -> [blocks, size, ...]; the end is filled up as `jnp.pad` does, with zeros."""
    if padding:
        values = jnp.pad(values, [(0, padding)] + [(0, 0)] * (values.ndim - 1), mode=mode)
    return values.reshape((-1, size, *values.shape[1:]))
