"""Products of fields on the sphere, point by point: tables in, products, quadrature back.

A field has a class in Z2 x Z2: the parity of its irrep and its sign under r -> -r. Products of
fields multiply their classes, so that only parts that belong together are ever multiplied, parity
is exact, and half of the sphere is enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eqnet.irreps import Irrep
from eqnet.ops.apart import compiled_apart
from eqnet.so3 import HIGHEST

Class = tuple[int, int]
Fields = dict[tuple[Class, int], jax.Array]  # [P, n], by class and component
Parts = dict[tuple[int, ...], jax.Array]  # [rows, d, C], by the blocks that stand side by side

# (out, left and right component, sign) of each term of a product at a point
Algebra = tuple[tuple[int, int, int, int], ...]
VALUES: Algebra = ((0, 0, 0, 1),)


class Table(NamedTuple):
    """How a block becomes one component of a field, or is made from one.

    Attributes:
        block: index of the block.
        key: class of the field.
        component: of a field that has several.
        values: [P, 2 l + 1]; for outputs with the quadrature weights.
    """

    block: int
    key: Class
    component: int
    values: np.ndarray


class Group(NamedTuple):
    """Tables of one class and component side by side, [P, d]."""

    key: Class
    component: int
    values: np.ndarray
    blocks: tuple[int, ...]
    dims: tuple[int, ...]


class Pointwise(NamedTuple):
    """A bilinear map by way of fields.

    Attributes:
        left: tables of x.
        right: tables of y.
        out: tables of the outputs.
        algebra: of the product.
    """

    left: tuple[Group, ...]
    right: tuple[Group, ...]
    out: tuple[Group, ...]
    algebra: Algebra

    def __call__(self, left: Sequence[jax.Array], right: Sequence[jax.Array]) -> list[jax.Array]:
        """Blocks [..., 2 l + 1, C] of x and y -> blocks [..., 2 l + 1, C] of the outputs."""
        lead = jnp.broadcast_shapes(left[0].shape[:-2], right[0].shape[:-2])
        x = to_fields(self.left, join(self.left, left, lead))
        y = to_fields(self.right, join(self.right, right, lead))
        wanted = frozenset((group.key, group.component) for group in self.out)
        z = multiply(x, y, algebra=self.algebra, wanted=wanted)
        blocks = part(self.out, from_fields(self.out, z, left[0].shape[-1]), lead)
        return [blocks[n] for n in sorted(blocks)]


@partial(compiled_apart, static=("algebra", "wanted"))
def multiply(
    x: Fields, y: Fields, *, algebra: Algebra, wanted: frozenset[tuple[Class, int]]
) -> Fields:
    """Those products of fields that are wanted."""
    z: Fields = {}
    for o, a, b, sign in algebra:
        for left in [key for key, component in x if component == a]:
            for right in [key for key, component in y if component == b]:
                into = times(left, right), o
                if into in wanted:
                    term = sign * (x[left, a] * y[right, b])
                    z[into] = z[into] + term if into in z else term
    return z


def times(left: Class, right: Class) -> Class:
    """Class of a product."""
    return left[0] * right[0], (left[1] + right[1]) % 2


def field_class(ir: Irrep, degree: int) -> Class:
    """The class of fields made from an irrep that are polynomials of odd or even degree."""
    return ir.p, degree % 2


def grouped(tables: Iterable[Table]) -> tuple[Group, ...]:
    """One group for each class and component."""
    members: dict[tuple[Class, int], list[Table]] = {}
    for table in tables:
        members.setdefault((table.key, table.component), []).append(table)
    return tuple(
        Group(
            key,
            component,
            np.concatenate([t.values for t in same], axis=1),
            tuple(t.block for t in same),
            tuple(t.values.shape[1] for t in same),
        )
        for (key, component), same in members.items()
    )


def join(groups: tuple[Group, ...], blocks: Sequence[jax.Array], lead: tuple[int, ...]) -> Parts:
    """Blocks [*lead, 2 l + 1, C] side by side for each group."""
    parts = {}
    for group in groups:
        if group.blocks not in parts:
            together = jnp.concatenate([blocks[n] for n in group.blocks], axis=-2)
            shape = together.shape[-2:]
            parts[group.blocks] = jnp.broadcast_to(together, (*lead, *shape)).reshape((-1, *shape))
    return parts


def part(groups: tuple[Group, ...], parts: Parts, lead: tuple[int, ...]) -> dict[int, jax.Array]:
    """Inverse of `join`: the blocks by their indices."""
    blocks = {}
    for group in groups:
        if group.blocks in parts:
            pieces = jax.lax.split(parts[group.blocks], group.dims, axis=1)
            for n, piece in zip(group.blocks, pieces, strict=True):
                blocks[n] = piece.reshape((*lead, *piece.shape[1:]))
    return blocks


def to_fields(groups: tuple[Group, ...], parts: Parts) -> Fields:
    """Fields [P, rows * C] from parts: one matrix product with all rows and channels."""
    columns = {key: jnp.moveaxis(v, 1, 0).reshape(v.shape[1], -1) for key, v in parts.items()}
    return {
        (g.key, g.component): jnp.dot(
            jnp.asarray(g.values, columns[g.blocks].dtype), columns[g.blocks], precision=HIGHEST
        )
        for g in groups
    }


def from_fields(groups: tuple[Group, ...], fields: Fields, channels: int) -> Parts:
    """Parts from those fields that there are; the components of a block are added up."""
    sums: Parts = {}
    for g in groups:
        if (g.key, g.component) in fields:
            field = fields[g.key, g.component]
            values = jnp.dot(jnp.asarray(g.values.T, field.dtype), field, precision=HIGHEST)
            sums[g.blocks] = sums[g.blocks] + values if g.blocks in sums else values
    return {key: jnp.moveaxis(v.reshape(v.shape[0], -1, channels), 1, 0) for key, v in sums.items()}
