"""A network in the frame of every edge, its messages turned back and summed over the neighbours.

    m_i = sum_{j in N(i)} A_ij^T S(A_ij [x_j ; x_i]; e_ij)

A_ij turns features into the frame of the edge (`so2_linear.py`), S is any map that commutes with
rolls about it: SO(2) linear layers, gates, products with what an edge tells. Messages exist for a
few rows of neighbours at a time and are made again in the backward pass, but for the results of
linear maps where these are small.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from eqnet.graph import AtomGraph, gather_centers, gather_neighbors
from eqnet.ops.blocks import neighbors_in_blocks
from eqnet.ops.edge_frame import sum_turned
from eqnet.ops.small_matrices import turn
from eqnet.ops.so2_linear import MAPPED

# Bytes of the features of all edges up to which they are worked on at once, on a CPU: making them
# again would cost more than caches save (3BPA, 32 channels, 1.2 MB: 14.1 against 13.2 ms).
AT_ONCE_BYTES = 3 * 2**19
# Bytes of the same up to which the results of the linear maps wait for the backward pass: a sixth
# less time (3BPA, 64 channels: 38.7 against 46.8 ms), for as many bytes in every layer.
KEPT_BYTES = 2**26


def edge_network(
    network: Callable[[jax.Array, Any], tuple[Any, Any]],
    x: jax.Array,
    frames: jax.Array,
    edges: Any,
    graph: AtomGraph,
) -> tuple[Any, Any]:
    """Messages of a network to each row of neighbours.

    Args:
        network: an `nnx.Module`, S: from features [r, k, rows, 2 C] in the frames of their edges,
            those of the neighbour before those of the centre, and some rows of `edges` to messages
            [r, k, rows, H], zero in slots without an edge, or None, and to anything else of leading
            axis r, such as the logits of its edges or () for nothing.
        x: features of the atoms, [N, dim, C].
        frames: [R, K, rows, dim], see `OrderRows.matrices`.
        edges: pytree of arrays [R, K, ...], what the edges tell besides.
        graph: says who is whose neighbour.

    Returns:
        Sum of the messages over the slots of a row, [R, dim, H], for `sum_rows`; and what else the
        network gave, for all rows.
    """
    with jax.named_scope("gather"):
        sent, received = gather_neighbors(x, graph), gather_centers(x, graph)

    def some_rows(block: Any, network: Any) -> tuple[Any, Any]:
        frames, sent, received, edges = block
        with jax.named_scope("turn"):
            received = jnp.broadcast_to(received[:, None], sent.shape)
            both = jnp.concatenate([sent, received], axis=-1)
            z = turn(frames.reshape((-1, *frames.shape[2:])), both.reshape((-1, *both.shape[2:])))
        z, rest = network(z.reshape((*frames.shape[:3], -1)), edges)
        return None if z is None else _back(frames, z), rest

    size = frames[..., 0].size * 2 * x.shape[-1] * x.dtype.itemsize
    return _by_blocks(some_rows, network, (frames, sent, received, edges), size)


def edge_embedding(network: Callable[[Any], jax.Array], frames: jax.Array, edges: Any) -> jax.Array:
    """Features made of what the edges tell alone: numbers at m = 0, turned back and summed.

    Args:
        network: an `nnx.Module` from some rows of `edges` to [r, k, n, C] for the first n rows in
            the frame of the edge, zero in slots without an edge.
        frames: [R, K, rows, dim].
        edges: pytree of arrays [R, K, ...].

    Returns:
        Sum over the slots of a row, [R, dim, C], for `sum_rows`.
    """

    def some_rows(block: Any, network: Any) -> jax.Array:
        frames, edges = block
        z = network(edges)
        return _back(frames[:, :, : z.shape[2]], z)

    return _by_blocks(some_rows, network, (frames, edges), frames.nbytes)


@jax.named_scope("turn_back")
def _back(frames: jax.Array, z: jax.Array) -> jax.Array:
    """Messages [r, k, rows, C] out of their frames and summed over k, [r, dim, C]."""
    return sum_turned(frames.reshape((-1, *frames.shape[2:])), z)


def _by_blocks(function: Callable[[Any, Any], Any], network: Any, operands: Any, size: int) -> Any:
    """`function(operands, network)` by blocks of rows, the weights of the network passed along.

    Args:
        function: of some rows of the operands and a network.
        network: an `nnx.Module`.
        operands: pytree of arrays with leading rows.
        size: bytes of its features of all edges.
    """
    definition, weights = nnx.split(network)
    return neighbors_in_blocks(
        lambda block, weights: function(block, nnx.merge(definition, weights)),
        operands,
        weights,
        kept=(MAPPED,) if size <= KEPT_BYTES else (),
        whole=size <= AT_ONCE_BYTES,
    )


def require_so2(model: str, product: str, method: str = "default") -> None:
    """Refuse another product or method for a model that lives in the frames of edges.

    Raises:
        ValueError: naming those that fit.
    """
    if product != "so2":
        raise ValueError(
            f"{model} has nonlinear functions in the frame of each edge, so that only product so2 "
            f"fits, not {product}: leave it out, or choose mace or nequip, which take any"
        )
    if method not in ("default", "auto", "so2"):
        raise ValueError(f"{model} has no method {method!r}; it has: default, auto, so2")
