"""Powers of one feature: the symmetric contraction of MACE, on independent coupling trees.

    B_L = sum_trees w_tree (...((A_l1 x A_l2)_J12 x A_l3)_J123 ... )_L   up to `correlation` factors

Trees of one order span fewer polynomials than there are trees: only an independent set carries
weights. Evaluated from the leaves up, each product once for all outputs, with the weights folded in
before the last product: for l <= 3 and third order some tens of sparse products of small blocks
(Batatia et al. 2022, eq. 10, is the same function with redundant weights).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from itertools import permutations
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from eqnet.irreps import Irrep, Irreps, IrrepsArray, regrouped
from eqnet.ops.sparse import Sparse, sparse_product
from eqnet.so3 import clebsch_gordan

# A tree (i1, i2, J12, i3, J123, ...): input blocks i and the irrep after each product.
Tree = tuple


def _result(tree: Tree, irreps: tuple[Irrep, ...]) -> Irrep:
    return irreps[tree[0]] if len(tree) == 1 else tree[-1]


@cache
def _step(left: Irrep, right: Irrep, out: Irrep) -> np.ndarray:
    """Component-normalised coefficients of one product, sqrt(2 l + 1) C."""
    return np.sqrt(out.dim) * clebsch_gordan(left.l, right.l, out.l)


def _grow(irreps: tuple[Irrep, ...], order: int) -> list[Tree]:
    """All trees of an order with i1 <= i2, without those that vanish because A x A is symmetric."""
    if order == 1:
        return [(i,) for i in range(len(irreps))]
    grown = []
    for tree in _grow(irreps, order - 1):
        for i, ir in enumerate(irreps):
            if order == 2 and i < tree[0]:
                continue
            for out in _result(tree, irreps) * ir:
                if not (order == 2 and i == tree[0] and out.l % 2):
                    grown.append((*tree, i, out))
    return grown


def _values(tree: Tree, irreps: tuple[Irrep, ...], leaves: list[np.ndarray], memo: dict):
    """Polynomial of a tree at sample points, [samples, 2 L + 1]."""
    if len(tree) == 1:
        return leaves[tree[0]]
    if tree not in memo:
        left = _values(tree[:-2], irreps, leaves, memo)
        table = _step(_result(tree[:-2], irreps), irreps[tree[-2]], tree[-1])
        memo[tree] = np.einsum("na,nb,abc->nc", left, leaves[tree[-2]], table)
    return memo[tree]


@cache
def independent_trees(irreps: tuple[Irrep, ...], out: Irrep, order: int) -> tuple[Tree, ...]:
    """Trees to `out` whose polynomials are linearly independent, low intermediate degrees first.

    Decided in float64 by Gram-Schmidt on the values at random points.
    """
    trees = [t for t in _grow(irreps, order) if _result(t, irreps) == out]
    trees.sort(
        key=lambda t: (
            max([ir.l for ir in t[2:-1:2]], default=0),
            [ir.l for ir in t[2::2]],
            [t[0], *t[1::2]],
        )
    )
    rng = np.random.default_rng(0)
    samples = len(trees) // out.dim + 20
    leaves = [rng.normal(size=(samples, ir.dim)) for ir in irreps]
    memo: dict = {}
    basis = np.zeros((0, samples * out.dim))
    chosen = []
    for tree in trees:
        value = _values(tree, irreps, leaves, memo).ravel()
        # values are of order one; a tree can also vanish altogether
        length = max(float(np.linalg.norm(value)), 1e-3)
        for _ in range(2):  # once more, for what rounding leaves behind
            value = value - basis.T @ (basis @ value)
        rest = np.linalg.norm(value)
        if rest > 1e-8 * length:
            basis = np.vstack([basis, value / rest])
            chosen.append(tree)
    return tuple(chosen)


@dataclass(frozen=True)
class Power:
    """Sum of the products of one to `correlation` copies of a feature, channel by channel.

    Args:
        irreps_in: irreps of the feature, equal multiplicities.
        irreps_out: irreps to keep, with the same multiplicity.
        correlation: highest number of factors.

    Raises:
        ValueError: the multiplicities differ, or no product reaches one of `irreps_out`.
    """

    irreps_in: Irreps
    irreps_out: Irreps
    correlation: int

    methods: ClassVar[tuple[str, ...]] = ("trees", "dense")

    def __post_init__(self) -> None:
        if len({mul for mul, _ in self.irreps_in + self.irreps_out}) != 1:
            raise ValueError(
                f"a power needs equal multiplicities: {self.irreps_in} to {self.irreps_out}"
            )
        reached = {out for out, _ in self.trees}
        for _, ir in self.irreps_out:
            if ir not in reached:
                raise ValueError(
                    f"no product of up to {self.correlation} of {self.irreps_in} contains {ir}"
                )

    @property
    def inputs(self) -> tuple[Irrep, ...]:
        """The irrep of each input block."""
        return tuple(ir for _, ir in self.irreps_in)

    @cached_property
    def trees(self) -> tuple[tuple[Irrep, Tree], ...]:
        """(output irrep, tree) of each weight, by output, then order."""
        return tuple(
            (out, tree)
            for _, out in regrouped(self.irreps_out)
            for order in range(1, self.correlation + 1)
            for tree in independent_trees(self.inputs, out, order)
        )

    @property
    def num_weights(self) -> int:
        """Number of weights per channel."""
        return len(self.trees)

    def initial_scale(self) -> np.ndarray:
        """Standard deviation of the first weights: 1 / number of trees of one output and order."""
        keys = [(out, len(tree)) for out, tree in self.trees]
        return np.array([1.0 / keys.count(key) for key in keys])

    def __call__(self, x: IrrepsArray, weights: jax.Array, method: str = "trees") -> IrrepsArray:
        """Evaluate the polynomial of each atom and channel.

        Args:
            x: [N, irreps_in].
            weights: [N, num_weights, C].
            method: 'trees', or 'dense' for the plain form.

        Returns:
            [N, irreps_out].
        """
        return self._dense(x, weights) if method == "dense" else self._trees(x, weights)

    def _trees(self, x: IrrepsArray, weights: jax.Array) -> IrrepsArray:
        """From the leaves up, each product once for all outputs."""
        leaves = x.blocks
        shares = jax.lax.split(weights, (1,) * self.num_weights, axis=1)
        memo: dict[Tree, jax.Array] = {(i,): leaf for i, leaf in enumerate(leaves)}

        def couple(left: jax.Array, ir: Irrep, i: int, out: Irrep) -> jax.Array:
            table = Sparse.from_dense(_step(ir, self.inputs[i], out))
            return sparse_product(table, left, leaves[i])

        def value(tree: Tree) -> jax.Array:
            if tree not in memo:
                stem = tree[:-2]
                memo[tree] = couple(value(stem), _result(stem, self.inputs), tree[-2], tree[-1])
            return memo[tree]

        irreps_out, out = regrouped(self.irreps_out), []
        for _, ir in irreps_out:
            total, mixtures = jnp.zeros((), weights.dtype), {}
            for share, (target, tree) in zip(shares, self.trees, strict=True):
                if target != ir:
                    continue
                if len(tree) == 1:
                    total = total + share * leaves[tree[0]]
                else:
                    stem = tree[:-2]
                    mixtures.setdefault((_result(stem, self.inputs), tree[-2]), []).append(
                        share * value(stem)
                    )
            for (stem_ir, i), terms in mixtures.items():
                total = total + couple(sum(terms[1:], terms[0]), stem_ir, i, ir)
            out.append(total)
        return IrrepsArray.from_blocks(irreps_out, out)

    def tensor(self, tree: Tree) -> np.ndarray:
        """Dense coefficients of a tree, symmetrised over its factors, float64.

        Returns:
            [d, ..., d, 2 L + 1] with one axis of length d = sum of 2 l + 1 per factor, so that the
            polynomial is the contraction of each of them with the feature of one channel.
        """
        dims = [ir.dim for ir in self.inputs]
        starts = np.concatenate([[0], np.cumsum(dims)])
        total = int(starts[-1])

        def embed(i: int) -> np.ndarray:
            return np.eye(total)[:, starts[i] : starts[i + 1]]

        tensor = embed(tree[0])
        for n in range(1, len(tree), 2):
            stem = tree[:n]
            table = _step(_result(stem, self.inputs), self.inputs[tree[n]], tree[n + 1])
            tensor = np.einsum("...a,jb,abc->...jc", tensor, embed(tree[n]), table)
        factors = tensor.ndim - 1
        orders = list(permutations(range(factors)))
        return sum(tensor.transpose(*p, factors) for p in orders) / len(orders)

    def _dense(self, x: IrrepsArray, weights: jax.Array) -> IrrepsArray:
        """Contraction of the dense tensors, [N, d, ..., d, C] in the middle: for tests."""
        feature = jnp.concatenate(x.blocks, axis=1)
        out: dict[Irrep, jax.Array] = {}
        for n, (ir, tree) in enumerate(self.trees):
            value = jnp.asarray(self.tensor(tree), feature.dtype)
            factors = value.ndim - 1
            value = jnp.broadcast_to(
                value[None, ..., None], (feature.shape[0], *value.shape, feature.shape[2])
            )
            for _ in range(factors):
                value = jnp.einsum("nd...c,ndc->n...c", value, feature)
            term = weights[:, n, None, :] * value
            out[ir] = out[ir] + term if ir in out else term
        irreps_out = regrouped(self.irreps_out)
        return IrrepsArray.from_blocks(irreps_out, [out[ir] for _, ir in irreps_out])
