"""The radial network of a convolution: from the length of an edge to the weights of its product."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from flax import nnx

from eqnet.layers import MLP
from eqnet.ops.product import Product, Radial


class RadialNetwork(MLP):
    """An MLP with one output per weight of the product, and the weights all edges share.

    Args:
        num_basis: radial functions.
        hidden: widths of the hidden layers.
        product: whose weights are made.
    """

    def __init__(self, num_basis: int, hidden: Sequence[int], product: Product, *, rngs: nnx.Rngs):
        super().__init__((num_basis, *hidden, product.num_weights), rngs=rngs)
        size = product.num_shared
        self.shared = nnx.Param(jax.random.normal(rngs.params(), (size,))) if size else None

    def edge_weights(self, basis: jax.Array) -> Radial:
        """Radial basis of the edges [R, K, num_basis], zero where there is no edge."""
        return Radial(basis, self.matrices, None if self.shared is None else self.shared[...])
