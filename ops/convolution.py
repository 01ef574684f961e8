"""The edge convolution: gather, product, weight and sum over neighbours in one call.

    A_i = sum_{j in N(i)} product(x_j, y_ij; w_ij),    w_ij = network(basis_ij)

Messages exist for one block of edges at a time and are made again in the backward pass: the work
per edge is small beside the traffic of storing it. So does what the radial network makes, unless
the weights are few enough for a cache. A kernel computes a block; where all edges are one block,
nothing is made again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from eqnet.graph import AtomGraph, gather_neighbors, sum_rows
from eqnet.irreps import IrrepsArray
from eqnet.layers import perceptron
from eqnet.ops.apart import platform
from eqnet.ops.blocks import step_by_step
from eqnet.ops.product import Kernel, Product, Radial

# Axis of a mesh of devices that share the blocks of rows, where there is one (`jax.set_mesh`).
ROWS = "rows"
# Edges worked on at a time: their messages and weights then stay in a core's second-level cache
# (64 channels, 10 paths, float32: 0.3 MB). Measured from 60 to 300: flat between 100 and 150. Other
# devices have no such caches, and many small steps would cost more than the memory.
EDGES_AT_A_TIME = {"cpu": 128}
OTHER_EDGES_AT_A_TIME = 2**17
# Bytes of the weights of all edges that are kept rather than made again for each block. Measured on
# 446 edges, two layers: 6.8 ms against 7.1; training on 2230 edges is the same from 4 to 16 MB.
KEPT_BYTES = 2**22


@dataclass(frozen=True)
class Convolution:
    """The convolution of a product, computed by one of its kernels."""

    kernel: Kernel

    def __call__(
        self, product: Product, x: IrrepsArray, y: IrrepsArray, radial: Radial, graph: AtomGraph
    ) -> IrrepsArray:
        """Sum of the messages to each atom.

        Args:
            product: with one channel on the right.
            x: [N, irreps_left].
            y: [R, K, irreps_right].
            radial: basis [R, K, H], zero in padding slots, and the layers that it goes through.
            graph: says who is whose neighbour.

        Returns:
            [N, irreps_out].
        """
        with jax.named_scope("gather"):
            sent = IrrepsArray(x.irreps, gather_neighbors(x.array, graph))

        def some_rows(
            block: tuple[IrrepsArray, IrrepsArray, jax.Array],
            common: tuple[tuple[jax.Array, ...], jax.Array | None],
        ) -> jax.Array:
            left, right, last = block
            matrices, shared = common
            weights = last if keep else _weights(last, matrices)
            with jax.named_scope("product"):
                return self.kernel(product, left, right, weights, shared).array

        num_rows, width = radial.basis.shape[:2]
        itemsize = x.array.dtype.itemsize
        keep = num_rows * width * product.num_weights * itemsize <= KEPT_BYTES
        operands = (sent, y, _weights(radial.basis, radial.matrices) if keep else radial.basis)
        size, common = _block_size(num_rows, width), (radial.matrices, radial.shared)
        if size >= num_rows:
            summed = some_rows(operands, common)
        else:
            devices = jax.sharding.get_abstract_mesh().shape.get(ROWS, 1)
            padding = -num_rows % (size * devices)
            blocks = jax.tree.map(lambda v: _cut(v, size, padding), operands)
            summed = _shared_out(some_rows, devices)(blocks, common)
            summed = summed.reshape((-1, summed.shape[-1]))[:num_rows]
        return IrrepsArray(product.irreps_out, sum_rows(summed, graph))


def _shared_out(some_rows: Callable[..., jax.Array], devices: int) -> Callable[..., jax.Array]:
    """(blocks, common) -> the function of each block, a share of the blocks on each device."""

    def all_rows(blocks: Any, common: Any) -> jax.Array:
        return step_by_step(lambda block: some_rows(block, common), blocks)

    if devices == 1:
        return all_rows
    share, everywhere = PartitionSpec(ROWS), PartitionSpec()
    return jax.shard_map(all_rows, in_specs=(share, everywhere), out_specs=share)


@jax.named_scope("radial")
def _weights(basis: jax.Array, matrices: tuple[jax.Array, ...]) -> jax.Array:
    """[..., H] and the layers of the network -> [..., num_weights]."""
    # with one leading axis the gradients of the matrices are plain products; with two, XLA copies
    values = perceptron(basis.reshape((-1, basis.shape[-1])), matrices)
    return values.reshape((*basis.shape[:-1], -1))


def _block_size(num_rows: int, width: int) -> int:
    """Rows in a block: near the wanted number of edges, with as little padding as possible."""
    edges = EDGES_AT_A_TIME.get(platform(), OTHER_EDGES_AT_A_TIME)
    wanted = max(1, round(edges / width))
    if num_rows <= 2 * wanted:
        return num_rows
    candidates = range(max(1, wanted // 2), wanted + wanted // 2 + 1)
    return min(candidates, key=lambda size: (-num_rows % size, abs(size - wanted)))


def _cut(values: jax.Array, size: int, padding: int) -> jax.Array:
    """[R, ...] -> [blocks, size, ...], zeros at the end."""
    if padding:
        values = jnp.pad(values, [(0, padding)] + [(0, 0)] * (values.ndim - 1))
    return values.reshape((-1, size, *values.shape[1:]))
