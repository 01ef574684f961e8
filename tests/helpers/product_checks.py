"""Checks that tests of several products share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np

from eqnet.irreps import Irreps, IrrepsArray
from eqnet.ops.product import Kernel, dense


def random_array(irreps: Irreps, rows: tuple[int, ...], seed: int) -> IrrepsArray:
    values = np.random.default_rng(seed).normal(size=(*rows, irreps.dim))
    return IrrepsArray(irreps, jnp.asarray(values))


def turned(x: IrrepsArray, inversion: bool = False) -> IrrepsArray:
    """Rotated, and inverted where asked, with e3nn's Wigner matrices."""
    theirs = x.to_e3nn().transform_by_axis_angle(jnp.array([0.3, -0.5, 0.8]), 1.1)
    signs = np.concatenate([np.full(m.dim, m.ir.p if inversion else 1) for m in theirs.irreps])
    return IrrepsArray.from_e3nn(e3nn.IrrepsArray(theirs.irreps, theirs.array * signs))


def equivariance_residual(product: Any, inversion: bool) -> float:
    """Largest deviation for random inputs of order one."""
    x, y = random_array(product.irreps_left, (4,), 1), random_array(product.irreps_right, (4,), 2)
    weights = jnp.asarray(np.random.default_rng(3).normal(size=product.num_weights))
    moved = product(turned(x, inversion), turned(y, inversion), weights).array
    return float(jnp.abs(moved - turned(product(x, y, weights), inversion).array).max())


def edges(product: Any, seed: int = 0) -> tuple[IrrepsArray, IrrepsArray, jax.Array]:
    """Two rows of three slots, the last of them padding: x, y and weights."""
    rng = np.random.default_rng(seed)
    x, y = (
        random_array(product.irreps_left, (2, 3), 1),
        random_array(product.irreps_right, (2, 3), 2),
    )
    weights = rng.normal(size=(2, 3, product.num_weights))
    weights[1, 2] = 0
    return x, y, jnp.asarray(weights)


def derivatives(function: Callable[..., jax.Array], *arguments: jax.Array) -> list[jax.Array]:
    """Value, gradient, and gradients of two nested functions of the gradient: third derivatives."""
    numbers = tuple(range(len(arguments)))

    def energy(*v):
        return jnp.sin(function(*v)).sum()

    def force_loss(*v):
        return sum((g**2).sum() for g in jax.grad(energy, numbers)(*v))

    def hessian_loss(*v):
        return sum((g**2).sum() for g in jax.grad(force_loss, numbers)(*v))

    found = [jax.grad(f, numbers)(*arguments) for f in (energy, force_loss, hessian_loss)]
    return [function(*arguments), *jax.tree.leaves(found)]


def assert_close(ours: list[jax.Array], reference: list[jax.Array], tolerance: float) -> None:
    for a, b in zip(ours, reference, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, float(jnp.abs(b).max())))


def assert_kernel_is_dense(product: Any, kernel: Kernel, tolerance: float = 1e-11) -> None:
    """Values and derivatives to the third, with respect to all inputs, jitted."""
    x, y, weights = edges(product)

    def chain(kernel: Kernel) -> list[jax.Array]:
        def function(x, y, weights):
            left, right = IrrepsArray(product.irreps_left, x), IrrepsArray(product.irreps_right, y)
            return kernel(product, left, right, weights).array

        return derivatives(function, x.array, y.array, weights)

    assert_close(jax.jit(lambda: chain(kernel))(), jax.jit(lambda: chain(dense))(), tolerance)


def assert_power_is_dense(power: Any, method: str, tolerance: float = 1e-11) -> None:
    """Values and derivatives to the third; and under vmap."""
    channels = max(mul for mul, _ in power.irreps_in)
    x = random_array(power.irreps_in, (3,), 0).array
    weights = np.random.default_rng(1).normal(size=(3, power.num_weights, channels))

    def chain(method: str) -> list[jax.Array]:
        def function(x, weights):
            return power(IrrepsArray(power.irreps_in, x), weights, method).array

        return derivatives(function, x, jnp.asarray(weights))

    assert_close(jax.jit(lambda: chain(method))(), jax.jit(lambda: chain("dense"))(), tolerance)


def measured_coefficients(product: Any, core: Callable[..., IrrepsArray]) -> np.ndarray:
    """[d1, d2, d_out] of a bilinear map of one channel: basis vectors in."""
    d1, d2 = product.irreps_left.dim, product.irreps_right.dim
    x = IrrepsArray(product.irreps_left, jnp.repeat(jnp.eye(d1), d2, axis=0))
    y = IrrepsArray(product.irreps_right, jnp.tile(jnp.eye(d2), (d1, 1)))
    return np.asarray(core(x, y).array).reshape(d1, d2, -1)
