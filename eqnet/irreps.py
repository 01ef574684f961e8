"""Irreps and arrays of them.

`Irreps` and `Irrep` are those of e3nn-jax (string algebra, parity, real spherical harmonics with
polar axis y). `IrrepsArray` is ours: within each irrep the index m runs slowest and the channel
fastest ('ir_mul'), so a block is [..., 2l+1, mul] with contiguous channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from e3nn_jax import Irrep, Irreps, MulIrrep
from e3nn_jax import IrrepsArray as E3nnArray

__all__ = [
    "Irrep",
    "Irreps",
    "IrrepsArray",
    "MulIrrep",
    "add",
    "regrouped",
    "spherical_irreps",
    "with_channels",
]


def regrouped(irreps: Irreps | str) -> Irreps:
    """The irreps sorted (l, then parity) with equal ones merged and empty ones dropped.

    >>> regrouped("2x1o + 3x0e + 1x1o")
    3x0e+3x1o
    """
    return Irreps(irreps).regroup()


def spherical_irreps(l_max: int) -> Irreps:
    """The irreps of spherical harmonics up to degree l_max.

    >>> spherical_irreps(2)
    1x0e+1x1o+1x2e
    """
    return Irreps([(1, (l, (-1) ** l)) for l in range(l_max + 1)])


def with_channels(irreps: Irreps | str, number: int) -> Irreps:
    """Each irrep that occurs, even scalars aside, `number` times.

    >>> with_channels("2x0e+2x2e", 8)
    8x2e
    """
    occurring = {ir for _, ir in Irreps(irreps) if ir != Irrep(0, 1)}
    return regrouped(Irreps([(number, ir) for ir in occurring]))


def refuse_missing(needed: Irreps | str, there: Irreps) -> None:
    """Refuse features without irreps that are wanted of them; their numbers do not matter.

    Raises:
        ValueError: naming what is missing.
    """
    missing = {ir for _, ir in Irreps(needed)} - {ir for _, ir in there}
    if missing:
        names = ", ".join(sorted(str(ir) for ir in missing))
        raise ValueError(
            f"needs features {names}; the model has {there}; raise its degree, give it both "
            "parities, or choose group O3"
        )


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True)
class IrrepsArray:
    """An array whose last axis transforms as `irreps`, in ir_mul order.

    Attributes:
        irreps: irreps of the last axis, in the order in which the blocks are stored.
        array: [..., irreps.dim].
    """

    irreps: Irreps
    array: Any

    @classmethod
    def from_blocks(cls, irreps: Irreps, blocks: Sequence[jax.Array]) -> IrrepsArray:
        """Join one block [..., 2l+1, mul] per entry of `irreps`."""
        flat = [b.reshape(b.shape[:-2] + (b.shape[-2] * b.shape[-1],)) for b in blocks]
        return cls(irreps, flat[0] if len(flat) == 1 else jnp.concatenate(flat, axis=-1))

    @classmethod
    def from_e3nn(cls, x: E3nnArray) -> IrrepsArray:
        """From e3nn-jax, which stores [mul, 2l+1]."""
        lead = x.array.shape[:-1]
        blocks = [
            x.array[..., s].reshape((*lead, mul, ir.dim)).swapaxes(-1, -2)
            for (mul, ir), s in zip(x.irreps, x.irreps.slices(), strict=True)
        ]
        return cls.from_blocks(x.irreps, blocks)

    def to_e3nn(self) -> E3nnArray:
        """To e3nn-jax's order [mul, 2l+1]."""
        lead = self.array.shape[:-1]
        flat = [b.swapaxes(-1, -2).reshape((*lead, -1)) for b in self.blocks]
        return E3nnArray(self.irreps, jnp.concatenate(flat, axis=-1))

    @property
    def blocks(self) -> list[jax.Array]:
        """One array [..., 2l+1, mul] per entry of `irreps`."""
        lead = self.array.shape[:-1]
        # split, unlike slices, has a plain concatenation as its derivative
        parts = jax.lax.split(
            jnp.asarray(self.array), [m.dim for m in self.irreps], self.array.ndim - 1
        )
        return [
            part.reshape((*lead, ir.dim, mul))
            for (mul, ir), part in zip(self.irreps, parts, strict=True)
        ]

    @property
    def scalars(self) -> jax.Array:
        """The even scalars, [..., mul]; there must be some."""
        blocks = {ir: block for (_, ir), block in zip(self.irreps, self.blocks, strict=True)}
        return blocks[Irrep(0, 1)][..., 0, :]

    def tree_flatten(self) -> tuple[tuple[Any], Irreps]:
        """The array is the only leaf; the irreps are static."""
        return (self.array,), self.irreps

    @classmethod
    def tree_unflatten(cls, irreps: Irreps, leaves: tuple[Any]) -> IrrepsArray:
        """Inverse of `tree_flatten`."""
        return cls(irreps, leaves[0])


def add(x: IrrepsArray, y: IrrepsArray) -> IrrepsArray:
    """Add to x those irreps of y that have the same multiplicity."""
    extra = {(mul, ir): b for (mul, ir), b in zip(y.irreps, y.blocks, strict=True)}
    blocks = [
        b + extra[mul, ir] if (mul, ir) in extra else b
        for (mul, ir), b in zip(x.irreps, x.blocks, strict=True)
    ]
    return IrrepsArray.from_blocks(x.irreps, blocks)
