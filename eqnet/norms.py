"""Norms: features divided by their size, channel by channel rescaled; they commute with O(3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from eqnet.irreps import Irrep, Irreps, IrrepsArray, regrouped
from eqnet.layers import Dense


class ScaleAndShift(nnx.Module):
    """A learned scale per irrep and channel, a learned shift per even scalar: what norms end with.

    Args:
        irreps: of the features; those of one kind stand together.
        rngs: not needed, everything starts at one and zero.
        epsilon: added to mean squares that are divided by.
    """

    def __init__(self, irreps: Irreps | str, *, rngs: nnx.Rngs, epsilon: float = 1e-5):
        del rngs
        self.irreps = regrouped(irreps)
        self.epsilon = epsilon
        self.scale = nnx.Dict({str(ir): nnx.Param(jnp.ones(mul)) for mul, ir in self.irreps})
        self.shift = nnx.Param(jnp.zeros(self.irreps.count(Irrep(0, 1))))

    def rescaled(self, blocks: Iterable[jax.Array]) -> IrrepsArray:
        """Blocks of the irreps, [..., 2 l + 1, mul], times the scales, plus the shifts."""
        out = []
        for (_, ir), block in zip(self.irreps, blocks, strict=True):
            block = block * self.scale[str(ir)][...]
            out.append(block + self.shift[...] if str(ir) == "0e" else block)
        return IrrepsArray.from_blocks(self.irreps, out)

    def inverse_root(self, squares: jax.Array) -> jax.Array:
        """1 / sqrt(squares + epsilon)."""
        return jax.lax.rsqrt(squares + self.epsilon)


def centred(x: IrrepsArray) -> list[jax.Array]:
    """Blocks of features, even scalars less their mean over channels."""
    return [
        block - block.mean(-1, keepdims=True) if str(ir) == "0e" else block
        for (_, ir), block in zip(x.irreps, x.blocks, strict=True)
    ]


class LayerNorm(ScaleAndShift):
    """Equivariant layer norm.

    Even scalars are centred over channels; every irrep is divided by its root mean square over m
    and channels.
    """

    def __call__(self, x: IrrepsArray) -> IrrepsArray:
        """[..., irreps] -> [..., irreps]."""
        blocks = centred(x)
        squares = [(block**2).mean((-2, -1), keepdims=True) for block in blocks]
        return self.rescaled(b * self.inverse_root(s) for b, s in zip(blocks, squares, strict=True))


class RMSNorm(ScaleAndShift):
    """Equivariant norm with one scale for all irreps, which keeps their relative size.

    Even scalars are centred over channels; all is divided by the root of the mean square, each
    irrep counting as one (the norm of eSEN, Fu et al. 2025, arXiv:2502.12147).
    """

    @jax.named_scope("norm")
    def __call__(self, x: IrrepsArray) -> IrrepsArray:
        """[..., irreps] -> [..., irreps]."""
        blocks = centred(x)
        factor = self.inverse_root(mean_square(blocks))
        return self.rescaled(block * factor for block in blocks)


class SeparableNorm(ScaleAndShift):
    """Equivariant norm that keeps the relative size of degrees, but not of scalars and the rest.

    Even scalars are normalised by themselves; all other irreps are divided by the root of their
    mean square, each irrep counting as one (EquiformerV2, Liao et al. 2024, arXiv:2306.12059).
    """

    @jax.named_scope("norm")
    def __call__(self, x: IrrepsArray) -> IrrepsArray:
        """[..., irreps] -> [..., irreps]."""
        blocks = centred(x)
        kinds = [str(ir) == "0e" for _, ir in x.irreps]
        alike = {
            kind: [b for b, k in zip(blocks, kinds, strict=True) if k == kind] for kind in kinds
        }
        factors = {kind: self.inverse_root(mean_square(found)) for kind, found in alike.items()}
        return self.rescaled(b * factors[k] for b, k in zip(blocks, kinds, strict=True))


def mean_square(blocks: Sequence[jax.Array]) -> jax.Array:
    """Mean of the squares of blocks [..., d, C], each counting as one, [..., 1, 1]."""
    squares = jnp.stack([(block**2).mean((-2, -1), keepdims=True) for block in blocks])
    return squares.mean(0)


def normalised(norm: LayerNorm | SeparableNorm, x: jax.Array) -> jax.Array:
    """A norm of features of one number of channels, [N, d, C] -> [N, d, C]."""
    return norm(IrrepsArray(norm.irreps, x.reshape((len(x), -1)))).array.reshape(x.shape)


class NumberNorm(nnx.Module):
    """Layer norm of plain numbers over the last axis, with a scale and a shift for each."""

    def __init__(self, size: int, *, epsilon: float = 1e-5):
        self.epsilon = epsilon
        self.scale, self.shift = nnx.Param(jnp.ones(size)), nnx.Param(jnp.zeros(size))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., n] -> [..., n]."""
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + self.epsilon)
        return x * self.scale[...] + self.shift[...]


class NormedMLP(nnx.Module):
    """Linear layers with biases, a layer norm and SiLU between them.

    Args:
        sizes: widths, input and output included.
        norm: whether there is a norm before each SiLU.
    """

    def __init__(self, sizes: Sequence[int], *, rngs: nnx.Rngs, norm: bool = True):
        pairs = zip(sizes[:-1], sizes[1:], strict=True)
        self.layers = nnx.List([Dense(n, m, rngs=rngs) for n, m in pairs])
        self.norms = nnx.List([NumberNorm(n) for n in sizes[1:-1]] if norm else [])

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., sizes[0]] -> [..., sizes[-1]]."""
        for n, layer in enumerate(self.layers):
            if n:
                x = jax.nn.silu(self.norms[n - 1](x) if self.norms else x)
            x = layer(x)
        return x
