"""Counting the floating-point operations of a program, from what JAX traces.

XLA's own count takes the body of a loop once, however often it runs, and depends on how it fuses.
This one multiplies by the length of a loop and is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import log2, prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr

_ONE_EACH = {
    "add", "sub", "mul", "div", "neg", "max", "min", "abs", "exp", "exp2", "log", "log1p", "expm1",
    "tanh", "logistic", "sin", "cos", "sqrt", "rsqrt", "pow", "integer_pow", "square", "add_any",
    "erf", "atan2", "sign", "cumsum", "reduce_sum", "reduce_max", "reduce_min", "scatter-add",
}  # fmt: skip


def count(function: Callable[..., Any], *arguments: Any) -> int:
    """Floating-point operations of a call: two per multiplication and addition of a matrix product.

    Elementwise functions are one each, whatever they cost; loops without a known length run once,
    and of the branches of a condition the longest counts. Complex operations are four real ones.
    """
    return _of(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of(jaxpr: Jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    inner = [_of(jaxpr) for value in params.values() for jaxpr in _jaxprs(value)]
    if inner:
        return max(inner) if name == "cond" else params.get("length", 1) * sum(inner)
    shapes = [variable.aval for variable in equation.invars]
    out = equation.outvars[0].aval
    if hasattr(equation.primitive.impl, "lower"):  # one of ours, made of others
        return _of(
            jax.make_jaxpr(lambda *operands: equation.primitive.impl(*operands, **params))(
                *shapes
            ).jaxpr
        )
    real = 4 if jnp.issubdtype(out.dtype, jnp.complexfloating) else 1
    if name == "dot_general":
        contracted = params["dimension_numbers"][0][0]
        return 2 * real * out.size * prod(shapes[0].shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = params["dimension_numbers"].rhs_spec[0]  # its axis of output channels
        return 2 * real * out.size * prod(shapes[1].shape) // shapes[1].shape[kernel]
    if name == "fft":
        return round(5 * out.size * log2(max(prod(params["fft_lengths"]), 2)))
    if name in _ONE_EACH and jnp.issubdtype(out.dtype, jnp.inexact):
        return real * max(out.size, shapes[-1].size)
    return 0


def _jaxprs(value: Any) -> Iterator[Jaxpr]:
    if isinstance(value, ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, Jaxpr):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _jaxprs(item)
