"""Batches in pieces, one after the other, where a device has no memory for all of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import jax
import jax.numpy as jnp

from eqnet.data.batches import Loader
from eqnet.device import out_of_memory
from eqnet.errors import InputError, reason
from eqnet.graph import AtomGraph

if TYPE_CHECKING:
    from eqnet.data.batches import Targets

Tree = TypeVar("Tree")


def piece_by_piece(
    function: Callable[[AtomGraph, Targets], Tree], pieces: int
) -> Callable[[AtomGraph, Targets], Tree]:
    """(graph, targets) -> the sum of the function over the pieces of a batch, one after the other.

    More than one are stacked, as `Loader.in_pieces` makes them; only one is calculated at a time.
    """
    if pieces == 1:
        return function

    def total(graph: AtomGraph, targets: Targets) -> Tree:
        one = jax.tree.map(lambda x: x[0], (graph, targets))
        zeros = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), jax.eval_shape(function, *one))

        def add(sums: Tree, piece: tuple[AtomGraph, Targets]) -> tuple[Tree, None]:
            return jax.tree.map(jnp.add, sums, function(*piece)), None

        return jax.lax.scan(add, zeros, (graph, targets))[0]

    return total


def more_pieces(loader: Loader, error: Exception, *, what: str, tell: Callable[[str], None]) -> int:
    """In how many pieces the batches of a loader are to be worked on, after this error.

    Raises:
        JaxRuntimeError: it is another error, or several processes share a batch.
        InputError: a piece is one structure already.
    """
    if not out_of_memory(error) or loader.parts > 1:
        raise error
    if loader.pieces >= loader.batch_size:
        raise InputError(
            f"the device ran out of memory with one structure at a time ({reason(error)}); train "
            "fewer channels, or on a larger device"
        ) from None
    pieces = min(2 * loader.pieces, loader.batch_size)
    tell(
        f"the device ran out of memory ({reason(error)}): from here on a batch of {what} is worked "
        f"on in {pieces} pieces, one after the other, with the same result to rounding"
    )
    return pieces
