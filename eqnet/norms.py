"""Norms: features divided by their size, channel by channel rescaled; they commute with O(3)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from eqnet.irreps import Irrep, Irreps, IrrepsArray, regrouped
from eqnet.layers import Dense


class LayerNorm(nnx.Module):
    """Equivariant layer norm.

    Even scalars are centred over channels; every irrep is divided by its root mean square over m
    and channels. A learned scale per channel, a learned shift per even scalar.
    """

    def __init__(self, irreps: Irreps | str, *, rngs: nnx.Rngs, epsilon: float = 1e-5):
        del rngs
        self.irreps = regrouped(irreps)
        self.epsilon = epsilon
        self.scale = nnx.Dict({str(ir): nnx.Param(jnp.ones(mul)) for mul, ir in self.irreps})
        self.shift = nnx.Dict(
            {str(ir): nnx.Param(jnp.zeros(mul)) for mul, ir in self.irreps if str(ir) == "0e"}
        )

    def __call__(self, x: IrrepsArray) -> IrrepsArray:
        """[..., irreps] -> [..., irreps]."""
        out = []
        for (_, ir), block in zip(self.irreps, x.blocks, strict=True):
            name = str(ir)
            if name == "0e":
                block = block - block.mean(-1, keepdims=True)
            square = (block**2).mean((-2, -1), keepdims=True)
            block = block * jax.lax.rsqrt(square + self.epsilon) * self.scale[name][...]
            out.append(block + self.shift[name][...] if name == "0e" else block)
        return IrrepsArray.from_blocks(self.irreps, out)


class RMSNorm(nnx.Module):
    """Equivariant norm with one scale for all irreps, which keeps their relative size.

    Even scalars are centred over channels; all is divided by the root of the mean square, each
    irrep counting as one (the norm of eSEN, Fu et al. 2025, arXiv:2502.12147). A learned scale per
    irrep and channel, a learned shift per even scalar.
    """

    def __init__(self, irreps: Irreps | str, *, rngs: nnx.Rngs, epsilon: float = 1e-5):
        del rngs
        self.irreps = regrouped(irreps)
        self.epsilon = epsilon
        self.scale = nnx.Dict({str(ir): nnx.Param(jnp.ones(mul)) for mul, ir in self.irreps})
        self.shift = nnx.Param(jnp.zeros(self.irreps.count(Irrep(0, 1))))

    @jax.named_scope("norm")
    def __call__(self, x: IrrepsArray) -> IrrepsArray:
        """[..., irreps] -> [..., irreps]."""
        blocks = [
            block - block.mean(-1, keepdims=True) if str(ir) == "0e" else block
            for (_, ir), block in zip(self.irreps, x.blocks, strict=True)
        ]
        squares = jnp.stack([(block**2).mean((-2, -1)) for block in blocks])
        factor = jax.lax.rsqrt(squares.mean(0) + self.epsilon)[..., None, None]
        out = []
        for (_, ir), block in zip(self.irreps, blocks, strict=True):
            block = block * factor * self.scale[str(ir)][...]
            out.append(block + self.shift[...] if str(ir) == "0e" else block)
        return IrrepsArray.from_blocks(self.irreps, out)


class SeparableNorm(nnx.Module):
    """Equivariant norm that keeps the relative size of degrees, but not of scalars and the rest.

    Even scalars are normalised by themselves; all other irreps are divided by the root of their
    mean square, each irrep counting as one (EquiformerV2, Liao et al. 2024, arXiv:2306.12059). A
    learned scale per irrep and channel, a learned shift per even scalar.
    """

    def __init__(self, irreps: Irreps | str, *, rngs: nnx.Rngs, epsilon: float = 1e-5):
        del rngs
        self.irreps = regrouped(irreps)
        self.epsilon = epsilon
        self.scale = nnx.Dict({str(ir): nnx.Param(jnp.ones(mul)) for mul, ir in self.irreps})
        self.shift = nnx.Param(jnp.zeros(self.irreps.count(Irrep(0, 1))))

    @jax.named_scope("norm")
    def __call__(self, x: IrrepsArray) -> IrrepsArray:
        """[..., irreps] -> [..., irreps]."""
        blocks = {str(ir): block for (_, ir), block in zip(x.irreps, x.blocks, strict=True)}
        scalars = blocks.pop("0e", None)
        if blocks:
            squares = jnp.stack([(block**2).mean((-2, -1)) for block in blocks.values()])
            factor = jax.lax.rsqrt(squares.mean(0) + self.epsilon)[..., None, None]
            blocks = {name: block * factor for name, block in blocks.items()}
        if scalars is not None:
            scalars = scalars - scalars.mean(-1, keepdims=True)
            square = (scalars**2).mean(-1, keepdims=True)
            blocks["0e"] = scalars * jax.lax.rsqrt(square + self.epsilon)
        out = [blocks[str(ir)] * self.scale[str(ir)][...] for _, ir in self.irreps]
        if scalars is not None:
            out[0] = out[0] + self.shift[...]
        return IrrepsArray.from_blocks(self.irreps, out)


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
