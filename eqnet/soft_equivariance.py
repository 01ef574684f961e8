"""Equivariance as a soft constraint: regularisers for several groups, with automatic strengths.

A network of `FreeLinear` layers may break every symmetry. Each candidate group G adds

    lambda_G R_G,    R_G = 1/2 sum over layers |W - P_G W|^2 + |b - P_G b|^2

with P_G the projection on the maps that are equivariant under G (Kim, Lee, Yang & Lee,
'Regularizing Towards Soft Equivariance Under Mixed Symmetries', ICML 2023, arXiv:2306.00356). Once,
early in the training, the strengths are set from what is left of the regularisers, see `strengths`.
`deviation` is the same idea for any function, without weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eqnet.irreps import Irreps
from eqnet.layers import sigmoid
from eqnet.so3 import HIGHEST, clebsch_gordan
from eqnet.symmetry_groups import Features, Group, equivariant_projector

ONE = Features(Irreps("0e"), 1)  # a bias is a map of the number 1


class FreeLinear(nnx.Module):
    """y = W x / sqrt(n) + b on features, from every component and channel to every other.

    Args:
        into: features of the input, [..., into.dim, into.channels].
        out: features of the output.
        group: what the map begins close to being equivariant under, or is at any time; or none.
        freedom: what is left at the beginning of the part that is not equivariant; with 0 there
            is none at any time.
        rngs: source of the initial weights.

    Raises:
        ValueError: freedom is not from 0 to 1, or means nothing without a group.
    """

    def __init__(
        self,
        into: Features,
        out: Features,
        *,
        group: Group | None = None,
        freedom: float = 1.0,
        rngs: nnx.Rngs,
    ):
        if not 0 <= freedom <= 1 or (group is None and freedom < 1):
            raise ValueError(f"freedom is from 0 to 1, and 1 without a group, not {freedom}")
        self.into, self.out = into, out
        self.exactly = group if freedom == 0 else None
        weight = jax.random.normal(rngs.params(), (out.dim, out.channels, into.dim, into.channels))
        if group is not None:
            weight = (1 - freedom) * project(group, out, into, weight) + freedom * weight
        self.weight = nnx.Param(weight)
        self.bias = nnx.Param(jnp.zeros((out.dim, out.channels)))

    @property
    def maps(self) -> list[tuple[Features, jax.Array]]:
        """W / sqrt(n) and b: where each comes from, [out.dim, out.channels, dim, channels]."""
        weight, bias = self.weight[...], self.bias[...][:, :, None, None]
        weight = weight / np.sqrt(self.into.dim * self.into.channels).astype(weight.dtype)
        pairs = [(self.into, weight), (ONE, bias)]
        if self.exactly is None:
            return pairs
        return [(f, project(self.exactly, self.out, f, w)) for f, w in pairs]

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., into.dim, into.channels] -> [..., out.dim, out.channels]."""
        (_, weight), (_, bias) = self.maps
        return jnp.einsum("amcn,...cn->...am", weight, x, precision=HIGHEST) + bias[:, :, 0, 0]


def project(group: Group, out: Features, into: Features, weight: jax.Array) -> jax.Array:
    """P_G W: the part of a map that commutes with a group, of the shape of `FreeLinear.maps`."""
    p = equivariant_projector(group, out, into).astype(weight.dtype)
    return jnp.einsum("acbd,bmdn->amcn", p, weight, precision=HIGHEST)


def _maps(model: nnx.Module) -> Iterator[tuple[Features, Features, jax.Array]]:
    """(into, out, W) of the weights and biases of all layers that may break symmetries."""
    layers = [m for _, m in nnx.iter_modules(model) if isinstance(m, FreeLinear)]
    if not layers:
        raise ValueError("the model has no FreeLinear layer: use `deviation` of its function")
    for layer in layers:
        for into, weight in layer.maps:
            yield into, layer.out, weight


def distances(model: nnx.Module, groups: Sequence[Group]) -> jax.Array:
    """R_G = 1/2 sum |W - P_G W|^2 + |b - P_G b|^2 over the layers of a model, [K] for K groups.

    Raises:
        ValueError: the model has no `FreeLinear`.
    """
    return jnp.stack(
        [
            sum(
                ((w - project(group, out, into, w)) ** 2).sum() / 2 for into, out, w in _maps(model)
            )
            for group in groups
        ]
    )


def relative_distances(model: nnx.Module, groups: Sequence[Group]) -> jax.Array:
    """sqrt(R_G / (1/2 sum |W|^2 + |b|^2)) for each group, from 0 (equivariant) to 1."""
    norm = sum((w**2).sum() / 2 for _, _, w in _maps(model))
    return jnp.sqrt(distances(model, groups) / norm)


def regulariser(model: nnx.Module, groups: Sequence[Group], strengths: jax.Array) -> jax.Array:
    """Sum over G of lambda_G R_G, at the cost of one group.

    |W - P W|^2 = <W, (1 - P) W>, and the matrices 1 - P of all groups add up.

    Args:
        model: with at least one `FreeLinear`.
        groups: candidates.
        strengths: lambda_G, [K].
    """
    total = jnp.zeros(())
    for into, out, w in _maps(model):
        one = np.eye(out.dim * into.dim).reshape((out.dim, into.dim) * 2)
        rest = np.stack([one - equivariant_projector(group, out, into) for group in groups])
        both = jnp.tensordot(strengths, rest.astype(w.dtype), 1, precision=HIGHEST)
        left = jnp.einsum("acbd,bmdn->amcn", both, w, precision=HIGHEST)
        total += (w * left).sum() / 2
    return total


def strengths(initial: float, left: jax.Array, power: float = 2.0) -> jax.Array:
    """lambda_G = lambda_0 (min over H of R_H / R_G)^power: a group that costs more counts less.

    The rule of `AdjustEquiv` in the code of Kim et al. 2023, which has power 2 for its synthetic
    cases, lambda_0 of 100 and 0.01, and applies it once after a quarter of the epochs.

    Args:
        initial: strength of every group before, lambda_0.
        left: R_G of a model that was trained with it, [K]. Zero counts as the smallest number.
        power: how fast strengths fall.
    """
    left = jnp.maximum(left, jnp.finfo(left.dtype).tiny)
    return initial * (left.min() / left) ** power


def deviation(
    function: Callable[[Any], jax.Array],
    inputs: Any,
    moved: Any,
    back: Callable[[jax.Array], jax.Array] = lambda y: y,
) -> jax.Array:
    """1/2 mean |g^-1 f(g x) - f(x)|^2 / mean |f(x)|^2: how far a function is from equivariant.

    For inputs whose distribution G leaves alone and g drawn from G by its Haar measure, that is
    the part of the function that P_G takes away, |f - P_G f|^2 / |f|^2. It has a derivative, and is
    a regulariser for models that have no `FreeLinear`.

    Args:
        function: x -> [n, ...].
        inputs: x.
        moved: g x.
        back: f(g x) -> g^-1 f(g x), nothing for invariants.
    """
    here, there = function(inputs), back(function(moved))
    return ((there - here) ** 2).mean() / 2 / (here**2).mean()


def breaking(
    function: Callable[[jax.Array], jax.Array],
    inputs: jax.Array,
    group: Group,
    features: tuple[Features, Features],
    rng: np.random.Generator,
) -> float:
    """The level to which a function breaks a symmetry, sqrt of `deviation`.

    Args:
        function: features [n, into.dim, into.channels] -> [n, out.dim, out.channels].
        inputs: features [n, into.dim, into.channels].
        group: one element is drawn for each input.
        features: into, out.
        rng: source of the elements.
    """
    elements, scales = group.sample(rng, len(inputs))
    into, out = features
    forward = jnp.asarray(into.matrices(elements, scales), inputs.dtype)
    inverse = jnp.asarray(out.matrices(elements.transpose(0, 2, 1), 1 / scales), inputs.dtype)

    def back(y: jax.Array) -> jax.Array:
        return jnp.einsum("nab,nbc->nac", inverse, y, precision=HIGHEST)

    moved = jnp.einsum("nab,nbc->nac", forward, inputs, precision=HIGHEST)
    return float(jnp.sqrt(deviation(function, inputs, moved, back)))


Term = tuple[int, int, int, int, float]


@cache
def square_terms(features: Features) -> tuple[Term, ...]:
    """Non-zero Clebsch-Gordan coefficients of x (x) x: (path, i, j, k, coefficient).

    Degrees of the factors add up; paths that vanish for equal factors are left out.
    """
    kinds = list(zip(features.irreps, features.degrees, features.slices, strict=True))
    tables = []
    for i, ((_, a), p, at) in enumerate(kinds):
        for j, ((_, b), q, bt) in enumerate(kinds[: i + 1]):
            for (_, c), r, ct in kinds:
                if c in a * b and r == p + q and not (i == j and (2 * a.l - c.l) % 2):
                    tables.append(np.zeros((features.dim,) * 3))
                    tables[-1][at, bt, ct] = np.sqrt(c.dim) * clebsch_gordan(a.l, b.l, c.l)
    table = np.stack(tables)
    return tuple(
        (int(p), int(i), int(j), int(k), float(table[p, i, j, k]))
        for p, i, j, k in np.argwhere(table)
    )


class Squares(nnx.Module):
    """x + sum over paths w (x (x) x): products of a channel with itself, exactly equivariant."""

    def __init__(self, features: Features, *, rngs: nnx.Rngs):
        self.features = features
        self.paths = 1 + max(path for path, *_ in square_terms(features))
        self.weight = nnx.Param(jax.random.normal(rngs.params(), (self.paths, features.channels)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[n, dim, channels] -> the same."""
        weight = self.weight[...] / np.sqrt(self.paths).astype(x.dtype)
        # a sum of terms, which fuse: on a CPU four times as fast as a matrix product
        rows = jax.lax.split(x, [1] * self.features.dim, axis=1)
        added = list(rows)
        for path, i, j, k, c in square_terms(self.features):
            added[k] += c * weight[path] * (rows[i] * rows[j])
        return jnp.concatenate(added, axis=1)


class SoftNetwork(nnx.Module):
    """Blocks of a free linear map, squares and gates: only the linear maps can break a symmetry.

    As in Kim et al. 2023, whose blocks are those of EMLP with dense weights. Squares and gates are
    equivariant under O(3) and scaling.

    Args:
        into: features of the input.
        hidden: features between the blocks; scalars of degree 0 among them make the gates.
        out: features of the output.
        layers: number of blocks.
        group: of `FreeLinear`.
        freedom: of `FreeLinear`.
        rngs: source of the initial weights.
    """

    def __init__(
        self,
        into: Features,
        hidden: Features,
        out: Features,
        layers: int,
        *,
        group: Group | None = None,
        freedom: float = 1.0,
        rngs: nnx.Rngs,
    ):
        gates = Irreps("+".join(["0e"] * len(hidden.irreps)))
        both = Features(
            hidden.irreps + gates, hidden.channels, hidden.degrees + (0,) * len(hidden.irreps)
        )

        def linear(into: Features, out: Features) -> FreeLinear:
            return FreeLinear(into, out, group=group, freedom=freedom, rngs=rngs)

        sources = [into, *[hidden] * (layers - 1)]
        self.hidden = hidden
        self.linear = nnx.List(linear(source, both) for source in sources)
        self.squares = nnx.List(Squares(hidden, rngs=rngs) for _ in sources)
        self.last = linear(hidden, out)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[n, into.dim, into.channels] -> [n, out.dim, out.channels]."""
        repeats = np.array([ir.dim for _, ir in self.hidden.irreps])
        for linear, squares in zip(self.linear, self.squares, strict=True):
            values, gates = jnp.split(linear(x), [self.hidden.dim], axis=1)
            x = squares(values) * sigmoid(jnp.repeat(gates, repeats, axis=1))
        return self.last(x)
