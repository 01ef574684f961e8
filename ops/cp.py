"""The CP product: all couplings in one tensor with one weight per channel, in R rank-one terms.

With T the stacked Clebsch-Gordan tensor of the irreps (`cp_tensor.py`), all paths sharing the
weights, and n_k = sqrt(2 l_k + 1) / sqrt(number of paths into the irrep of k), which gives outputs
of unit variance,

    z[k, c] = w[c] n_k sum_{ij} T[i, j, k] x[i, c] y[j, c]
            = w[c] n_k sum_r Q[k, r] (sum_i A[i, r] x[i, c]) (sum_j B[j, r] y[j, c])

the second line with the factors of T. This is the tensor product of TDN (Lin et al., NeurIPS 2025,
arXiv:2507.01131). Without a rank or a tolerance T is exact, and the second line has as many terms
as that takes. Otherwise T stands for the sum of the fitted terms: then the product is equivariant
only to the error it declares.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from eqnet.irreps import Irreps, IrrepsArray, regrouped
from eqnet.ops.cp_cache import Fit, fit_of_rank, smallest_fit
from eqnet.ops.cp_fit import EXACT
from eqnet.ops.cp_tensor import Group, StackedTensor
from eqnet.ops.product import Declaration, Kernel
from eqnet.so3 import HIGHEST


def matrix(
    product: CP,
    x: IrrepsArray,
    y: IrrepsArray,
    weights: jax.Array,
    shared: jax.Array | None = None,
) -> IrrepsArray:
    """One matrix [d1, d3] per edge, shared by all channels: the harmonics are contracted first."""
    del shared
    features = _weighted(product, x, weights)
    table = jnp.asarray(product.table, x.array.dtype)
    couplings = jnp.einsum("rkj,ijo->rkio", y.array, table, precision=HIGHEST)
    num_rows = features.shape[0]
    out = jnp.einsum(
        "rqo,rqc->roc",
        couplings.reshape(num_rows, -1, table.shape[2]),
        features.reshape(num_rows, -1, product.channels),
        precision=HIGHEST,
    )
    return IrrepsArray(product.irreps_out, out.reshape(num_rows, -1))


def factors(
    product: CP,
    x: IrrepsArray,
    y: IrrepsArray,
    weights: jax.Array,
    shared: jax.Array | None = None,
) -> IrrepsArray:
    """Rank-one terms, summed over the neighbours before the last factor."""
    del shared
    a, b, q = (jnp.asarray(f, x.array.dtype) for f in product.factors)
    features = _weighted(product, x, weights)
    left = jnp.einsum("rkic,is->rksc", features, a, precision=HIGHEST)
    right = jnp.einsum("rkj,js->rks", y.array, b, precision=HIGHEST)
    terms = jnp.einsum("rksc,rks->rsc", left, right, precision=HIGHEST)
    out = jnp.einsum("rsc,os->roc", terms, q, precision=HIGHEST)
    return IrrepsArray(product.irreps_out, out.reshape(out.shape[0], -1))


def _weighted(product: CP, x: IrrepsArray, weights: jax.Array) -> jax.Array:
    """Neighbours times weights, [r, k, d1, C]."""
    features = x.array.reshape((*x.array.shape[:-1], -1, product.channels))
    return features * weights[..., None, :]


@dataclass(frozen=True)
class CP:
    """A product of fixed irreps with path-weight sharing; weights [C].

    Args:
        irreps_left: irreps of x, all with the same multiplicity C.
        irreps_right: irreps of y, all with multiplicity C, or all with one.
        irreps_target: outputs to keep; their multiplicities do not count.
        rank: number of terms; None for as many as needed. At or above the exact rank the product
            is exact.
        tolerance: largest relative error |T' - T| / |T| of the terms; None for the exact product,
            or, with a rank, for whatever error its fit has.
        group: 'O3', or 'SO3' to couple without regard to parity (TDN).

    Raises:
        ValueError: multiplicities differ, nothing of the target is reached, or the fit of this
            rank is degenerate or worse than the tolerance.
    """

    irreps_left: Irreps
    irreps_right: Irreps
    irreps_target: Irreps
    rank: int | None = None
    tolerance: float | None = None
    group: Group = "O3"

    kernels: ClassVar[dict[str, Kernel]] = {"matrix": matrix, "factors": factors}
    num_shared: ClassVar[int] = 0

    def __post_init__(self) -> None:
        left = {mul for mul, _ in self.irreps_left}
        right = {mul for mul, _ in self.irreps_right}
        if len(left) != 1 or right not in (left, {1}):
            raise ValueError(
                "cp works channel by channel: it needs one multiplicity on the left, and the same "
                f"or one on the right, not {self.irreps_left} x {self.irreps_right}; "
                "clebsch_gordan takes any"
            )
        if not self.stacked.couplings:
            raise ValueError(
                f"cp has no path from {self.irreps_left} x {self.irreps_right} to "
                f"{self.irreps_target} in {self.group}"
            )
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank {self.rank}: a rank is a positive number of terms")
        if self.tolerance is not None and self.tolerance <= 0:
            raise ValueError(
                f"tolerance {self.tolerance}: leave it out for the exact product, otherwise give a "
                "positive relative error such as 1e-3"
            )
        if not self.exact:
            self._refuse_bad_fit()

    def _refuse_bad_fit(self) -> None:
        what = f"{self.irreps_left} x {self.irreps_right} to {self.irreps_out}"
        if self.fit.degenerate:
            raise ValueError(
                f"rank {self.rank} has only degenerate fits for {what}: the norms of the terms add "
                f"up to {self.fit.cancellation:.0f} times that of the tensor, so that they cancel "
                f"and grow without end; take rank {self.fit.factors.rank + 1} or more, or leave it "
                "out for the exact product"
            )
        if self.tolerance is not None and self.fit.error > self.tolerance:
            raise ValueError(
                f"rank {self.rank} fits {what} to {self.fit.error:.1e} only, not to the tolerance "
                f"{self.tolerance:.1e}; take a larger rank, or leave it out for the smallest that "
                "is enough"
            )

    @property
    def exact(self) -> bool:
        """Whether the tensor is the Clebsch-Gordan tensor itself rather than a fit of it."""
        return self.rank is None and self.tolerance is None

    @property
    def channels(self) -> int:
        """C, the multiplicity of the left and of the output irreps."""
        return max(mul for mul, _ in self.irreps_left)

    @property
    def num_weights(self) -> int:
        """C: one weight per channel."""
        return self.channels

    @cached_property
    def irreps_out(self) -> Irreps:
        """C copies of each irrep of the target that is reached."""
        targets = {ir for _, ir in self.irreps_target}
        reached = [
            ir
            for ir in targets
            if any(
                ir in left * right
                or (self.group == "SO3" and abs(left.l - right.l) <= ir.l <= left.l + right.l)
                for _, left in self.irreps_left
                for _, right in self.irreps_right
            )
        ]
        return regrouped(Irreps([(self.channels, ir) for ir in reached]))

    @cached_property
    def stacked(self) -> StackedTensor:
        """The couplings, one channel each, of unit norm."""
        sides = (self.irreps_left, self.irreps_right, self.irreps_out)
        left, right, out = (tuple(ir for _, ir in side) for side in sides)
        return StackedTensor(left, right, out, self.group)

    @cached_property
    def fit(self) -> Fit:
        """The rank-one terms of T; made when needed, and kept in the user's cache folder."""
        if self.rank is not None:
            return fit_of_rank(self.stacked, self.rank)
        return smallest_fit(self.stacked, self.tolerance or EXACT)

    @cached_property
    def factors(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A [d1, R], B [d2, R] and n Q [d3, R], float64."""
        a, b, q = self.fit.factors
        return a, b, self.stacked.norms[:, None] * q

    @cached_property
    def table(self) -> np.ndarray:
        """The tensor n T of the product, [d1, d2, d3], float64."""
        tensor = self.stacked.values if self.exact else self.fit.factors.tensor()
        return self.stacked.norms * tensor

    @cached_property
    def declaration(self) -> Declaration:
        """Shared weights; the error is the root mean square of `StackedTensor.equivariance_error`.

        Operations are those of the matrix of an exact product, or of the terms.
        """
        left, right, out = self.stacked.left, self.stacked.right, self.stacked.out
        dims = self.table.shape
        if self.exact:
            operations, error = 2 * dims[0] * dims[2], 0.0
        else:
            operations = 2 * self.fit.factors.rank * (dims[0] + dims[2] + 1)
            error = self.stacked.equivariance_error(self.table)
        return Declaration(
            name="cp",
            couplings=frozenset((left[i], right[j], out[k]) for i, j, k in self.stacked.couplings),
            group=self.group,
            error=error,
            weights="shared",
            operations=operations,
            floats=sum(dims),
        )

    def __call__(
        self, x: IrrepsArray, y: IrrepsArray, weights: jax.Array, shared: jax.Array | None = None
    ) -> IrrepsArray:
        """The product by the dense tensor; the plain form that the methods are tested against.

        Args:
            x: [..., irreps_left].
            y: [..., irreps_right].
            weights: [..., C], or [C] for all rows.
            shared: this product has none.

        Returns:
            [..., irreps_out].
        """
        del shared
        return self.multiply(x, y, weights, "dense")

    def multiply(
        self, x: IrrepsArray, y: IrrepsArray, weights: jax.Array, method: str = "factors"
    ) -> IrrepsArray:
        """The product of two features by 'factors' or 'dense'; otherwise as `__call__`.

        Raises:
            ValueError: there is no method of this name.
        """
        if method not in ("factors", "dense"):
            raise ValueError(f"cp has no method {method!r}; it has: factors, dense")
        left = _by_channel(x)
        right = _by_channel(y)
        if method == "dense":
            table = jnp.asarray(self.table, x.array.dtype)
            z = jnp.einsum("...ic,...jc,ijk->...kc", left, right, table, precision=HIGHEST)
        else:
            a, b, q = (jnp.asarray(f, x.array.dtype) for f in self.factors)
            z = jnp.einsum("...ic,ir->...rc", left, a, precision=HIGHEST)
            z = z * jnp.einsum("...jc,jr->...rc", right, b, precision=HIGHEST)
            z = jnp.einsum("...rc,kr->...kc", z, q, precision=HIGHEST)
        z = weights[..., None, :] * z
        return IrrepsArray(self.irreps_out, z.reshape((*z.shape[:-2], -1)))


def _by_channel(x: IrrepsArray) -> jax.Array:
    """[..., d, C]: free, because every irrep has the same multiplicity."""
    return x.array.reshape((*x.array.shape[:-1], -1, max(mul for mul, _ in x.irreps)))
