"""What a product is, measured and not declared: coefficients, symmetry, couplings, expressivity.

The measures are those of Xie et al., 'The Price of Freedom', ICLR 2025: a product is interactable
at (left, right, out) if its tensor has a component on that Clebsch-Gordan block, and its
expressivity is the dimension of the set of bilinear maps that it reaches between linear layers.
All of it needs float64: call these functions inside `jax.enable_x64(True)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import expm
from scipy.spatial.transform import Rotation

from eqnet.irreps import Irrep, Irreps, IrrepsArray
from eqnet.ops.product import Kernel, Product
from eqnet.so3 import (
    HIGHEST,
    clebsch_gordan,
    random_elements,
    random_rotation,
    spherical_harmonics,
)

# Rows of x [n, irreps_left] and y [n, irreps_right] -> [n, irreps_out].
Bilinear = Callable[[IrrepsArray, IrrepsArray], IrrepsArray]
Triple = tuple[Irrep, Irrep, Irrep]

ROUNDING = 1e-10  # of the largest coefficient: what is smaller is zero


class Tensor(NamedTuple):
    """z[k] = sum_ij values[i, j, k] x[i] y[j], every axis in the order of its irreps."""

    values: np.ndarray  # [left.dim, right.dim, out.dim], float64
    left: Irreps
    right: Irreps
    out: Irreps
    misfit: float = 0.0  # relative part of the measured values that no such tensor explains


class Blocks(NamedTuple):
    """A tensor on the Clebsch-Gordan blocks of unit norm, and what is left of it."""

    scales: dict[Triple, np.ndarray]  # [left mul, right mul, out mul] of each non-zero block
    residual: float  # norm of the rest / norm of the tensor


@dataclass(frozen=True)
class Measured:
    """What a product, or one of its kernels, turned out to be.

    Attributes:
        couplings: (left, right, out) irreps with a non-zero block.
        misfit: relative part that is not bilinear in the harmonics (kernels only).
        residual: relative part of the coefficient tensor outside Clebsch-Gordan blocks.
        rotation: largest relative error of the output under a rotation of both inputs.
        inversion: the same under inversion.
    """

    couplings: frozenset[Triple]
    misfit: float
    residual: float
    rotation: float
    inversion: float


def random_weights(product: Product, seed: int) -> tuple[jax.Array, jax.Array | None]:
    """Weights of one row [num_weights], away from zero, and those that rows share."""
    rng = np.random.default_rng(seed)
    size = product.num_weights, product.num_shared
    row, shared = (jnp.asarray(rng.uniform(0.5, 1.5, n) * rng.choice([-1, 1], n)) for n in size)
    return row, shared if product.num_shared else None


def plain_form(product: Product, seed: int = 0) -> Bilinear:
    """The product by its own definition, with random weights that are the same for all rows."""
    weights, shared = random_weights(product, seed)
    return lambda x, y: product(x, y, weights, shared)


def kernel_form(product: Product, kernel: Kernel, seed: int = 0) -> Bilinear:
    """The product as a kernel computes it for rows of one neighbour; weights as `plain_form`."""
    weights, shared = random_weights(product, seed)

    def apply(x: IrrepsArray, y: IrrepsArray) -> IrrepsArray:
        x, y = (IrrepsArray(v.irreps, v.array[:, None]) for v in (x, y))
        rows = jnp.broadcast_to(weights, (len(x.array), 1, len(weights)))
        return kernel(product, x, y, rows, shared)

    return apply


def harmonics_of(irreps: Irreps, unit: np.ndarray) -> IrrepsArray:
    """Component-normalised harmonics of unit vectors [n, 3] as irreps of one channel each.

    Raises:
        ValueError: an irrep is no spherical harmonic, or has several channels.
    """
    if any(mul != 1 or ir.p != (-1) ** ir.l for mul, ir in irreps):
        raise ValueError(f"{irreps} are no spherical harmonics of one channel each")
    values = spherical_harmonics(max(ir.l for _, ir in irreps), jnp.asarray(unit))
    return IrrepsArray.from_blocks(irreps, [values[ir.l][..., None] for _, ir in irreps])


def directions(number: int, seed: int) -> np.ndarray:
    """Random unit vectors, [number, 3]."""
    vectors = np.random.default_rng(seed).normal(size=(number, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def coefficients(function: Bilinear, left: Irreps, right: Irreps) -> Tensor:
    """The tensor of a bilinear map: all pairs of basis vectors in, one row each."""
    x = IrrepsArray(left, jnp.repeat(jnp.eye(left.dim), right.dim, axis=0))
    y = IrrepsArray(right, jnp.tile(jnp.eye(right.dim), (left.dim, 1)))
    out = function(x, y)
    values = np.asarray(out.array).reshape(left.dim, right.dim, -1)
    return Tensor(values, left, right, out.irreps)


def coefficients_on_harmonics(
    function: Bilinear,
    left: Irreps,
    right: Irreps,
    explained_by: Irreps | None = None,
    seed: int = 0,
) -> Tensor:
    """The tensor of a map whose y must be harmonics of a direction: least squares over directions.

    Harmonics are linearly independent functions of the direction, so that the tensor is unique.

    Args:
        function: linear in x, any function of the direction that y stands for.
        left: irreps of x.
        right: irreps of y, spherical harmonics.
        explained_by: harmonics that the function is fitted with; those of y if None.
        seed: of the directions.

    Raises:
        ValueError: `right` are no spherical harmonics.
    """
    basis = right if explained_by is None else explained_by
    number = 2 * basis.dim + 2
    unit = directions(number, seed)
    x = IrrepsArray(left, jnp.repeat(jnp.eye(left.dim), number, axis=0))
    y = jnp.tile(harmonics_of(right, unit).array, (left.dim, 1))
    out = function(x, IrrepsArray(right, y))
    measured = np.asarray(out.array).reshape(left.dim, number, -1).swapaxes(0, 1)
    design = np.asarray(harmonics_of(basis, unit).array)
    fitted = np.linalg.lstsq(design, measured.reshape(number, -1), rcond=None)[0]
    rest = measured.reshape(number, -1) - design @ fitted
    values = fitted.reshape(basis.dim, left.dim, -1).swapaxes(0, 1)
    misfit = np.linalg.norm(rest) / max(np.linalg.norm(measured), 1e-300)
    return Tensor(values, left, basis, out.irreps, float(misfit))


def blocks(tensor: Tensor, group: str = "O3") -> Blocks:
    """Project a tensor on Clebsch-Gordan blocks.

    Args:
        tensor: of any bilinear map.
        group: 'O3', or 'SO3' to take the blocks that break the rule of parity for blocks, too.
    """
    scales, rest, total = {}, 0.0, float(np.sum(tensor.values**2))
    edge = ROUNDING * np.abs(tensor.values).max(initial=0.0)
    for (m1, left), s1 in zip(tensor.left, tensor.left.slices(), strict=True):
        for (m2, right), s2 in zip(tensor.right, tensor.right.slices(), strict=True):
            for (m3, out), s3 in zip(tensor.out, tensor.out.slices(), strict=True):
                part = tensor.values[s1, s2, s3]
                part = part.reshape(left.dim, m1, right.dim, m2, out.dim, m3)
                allowed = abs(left.l - right.l) <= out.l <= left.l + right.l
                if allowed and (group == "SO3" or out.p == left.p * right.p):
                    table = clebsch_gordan(left.l, right.l, out.l)
                    scale = np.einsum("iujvkw,ijk->uvw", part, table)
                    part = part - np.einsum("uvw,ijk->iujvkw", scale, table)
                    if np.abs(scale).max() > edge:
                        scales[left, right, out] = scale
                rest += float(np.sum(part**2))
    return Blocks(scales, float(np.sqrt(rest / total)) if total else 0.0)


def symmetry_error(
    function: Bilinear,
    left: Irreps,
    right: Irreps,
    *,
    inversion: bool = False,
    on_harmonics: bool = False,
    seed: int = 0,
    rows: int = 8,
) -> float:
    """Largest error of the output under a rotation (or inversion) of both inputs, relative.

    Args:
        function: any map of rows.
        left: irreps of x, which is drawn from a normal distribution.
        right: irreps of y, likewise.
        inversion: turn space inside out instead of rotating it.
        on_harmonics: y are harmonics of a direction, which is turned before they are taken.
        seed: of inputs and rotations.
        rows: number of random inputs.
    """
    rng = np.random.default_rng(seed)
    rotation = -np.eye(3) if inversion else random_rotation(rng)
    x = IrrepsArray(left, jnp.asarray(rng.normal(size=(rows, left.dim))))
    if on_harmonics:
        unit = directions(rows, seed + 1)
        y, turned_y = harmonics_of(right, unit), harmonics_of(right, unit @ rotation.T)
    else:
        y = IrrepsArray(right, jnp.asarray(rng.normal(size=(rows, right.dim))))
        turned_y = turned(y, rotation)
    expected = turned(function(x, y), rotation).array
    error = jnp.abs(function(turned(x, rotation), turned_y).array - expected).max()
    return float(error / jnp.maximum(jnp.abs(expected).max(), 1e-300))


def rms_symmetry_error(
    function: Bilinear,
    left: Irreps,
    right: Irreps,
    *,
    group: str = "O3",
    seed: int = 0,
    elements: int = 100,
    rows: int = 200,
) -> float:
    """Root mean square error of the output under random group elements, relative to the output.

    Args:
        function: any map of rows.
        left: irreps of x, which is drawn from a normal distribution.
        right: irreps of y, likewise.
        group: 'O3' for rotations and their mirror images in turn, 'SO3' for rotations.
        seed: of inputs and elements.
        elements: of the group, an even number.
        rows: number of random inputs for each.
    """
    rng = np.random.default_rng(seed)
    errors, sizes = [], []
    for element in random_elements(rng, elements, group):
        x, y = (
            IrrepsArray(irreps, jnp.asarray(rng.normal(size=(rows, irreps.dim))))
            for irreps in (left, right)
        )
        expected = turned(function(x, y), element).array
        moved = function(turned(x, element), turned(y, element)).array
        errors.append(jnp.mean((moved - expected) ** 2))
        sizes.append(jnp.mean(expected**2))
    return float(np.sqrt(np.mean(errors) / np.mean(sizes)))


def turned(x: IrrepsArray, rotation: np.ndarray) -> IrrepsArray:
    """The array after a proper or improper rotation [3, 3] of space.

    By exponentials of the generators of e3nn-jax, apart from the recursion of `so3.wigner_d`.
    """
    parity = round(np.linalg.det(rotation))
    vector = Rotation.from_matrix(parity * rotation).as_rotvec()
    parts = []
    for (_, ir), block in zip(x.irreps, x.blocks, strict=True):
        matrix = expm(np.einsum("a,aij->ij", vector, Irrep(ir.l, 1).generators()))
        sign = ir.p if parity < 0 else 1
        parts.append(jnp.einsum("ij,...jc->...ic", sign * matrix, block, precision=HIGHEST))
    return IrrepsArray.from_blocks(x.irreps, parts)


def measure(
    product: Product,
    kernel: Kernel | None = None,
    *,
    explained_by: Irreps | None = None,
    seed: int = 0,
) -> Measured:
    """Couplings and symmetry errors of a product, or of the way a kernel computes it.

    Args:
        product: with any irreps; for a kernel, the right ones must be spherical harmonics.
        kernel: None for the plain form.
        explained_by: for a product that takes only the direction from y, the harmonics of that
            direction in which it is linear.
        seed: of weights and inputs.
    """
    left, right = product.irreps_left, product.irreps_right
    function = plain_form(product, seed) if kernel is None else kernel_form(product, kernel, seed)
    function, on_harmonics = jax.jit(function), kernel is not None or explained_by is not None
    if on_harmonics:
        tensor = coefficients_on_harmonics(function, left, right, explained_by, seed)
    else:
        tensor = coefficients(function, left, right)
    found = blocks(tensor, product.declaration.group)
    errors = [
        symmetry_error(
            function, left, right, inversion=inversion, on_harmonics=on_harmonics, seed=seed
        )
        for inversion in (False, True)
    ]
    return Measured(frozenset(found.scales), tensor.misfit, found.residual, *errors)


def expressivity(product: Product, seed: int = 0) -> int:
    """Dimension of the set of bilinear maps of one channel that a product reaches.

    Linear layers copy one channel of x and y into the channels of the product and sum the channels
    of its output. The dimension is the rank of the derivative of the output, at enough random
    inputs, with respect to all weights, at generic weights.
    """
    rng = np.random.default_rng(seed)
    left, right, out = product.irreps_left, product.irreps_right, product.irreps_out
    rows = len(left) * len(right) + 2  # at most one path to an irrep for each pair of blocks
    inputs = [[rng.normal(size=(rows, ir.dim, 1)) for _, ir in irreps] for irreps in (left, right)]
    layers = [[jnp.asarray(rng.normal(size=mul)) for mul, _ in irreps] for irreps in (left, right)]
    last = [jnp.asarray(rng.normal(size=mul)) for mul, _ in out]

    def values(parameters: Any) -> jax.Array:
        (weights, shared), layers, last = parameters
        x, y = (
            IrrepsArray.from_blocks(irreps, [v * w for v, w in zip(values, layer, strict=True)])
            for irreps, values, layer in zip((left, right), inputs, layers, strict=True)
        )
        z = product(x, y, weights, shared)
        sums = [(block * w).sum(-1) for block, w in zip(z.blocks, last, strict=True)]
        return jnp.concatenate([s.ravel() for s in sums])

    derivative = jax.jit(jax.jacfwd(values))((random_weights(product, seed), layers, last))
    matrix = np.concatenate(
        [np.asarray(d).reshape(d.shape[0], -1) for d in jax.tree.leaves(derivative)], axis=1
    )
    singular = np.linalg.svd(matrix, compute_uv=False)
    return int(np.sum(singular > 1e-9 * singular[0]))
