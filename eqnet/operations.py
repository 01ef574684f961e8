"""Counting the floating-point operations of a program, from what JAX traces.

XLA's own count takes the body of a loop once, however often it runs, and depends on how it fuses.
This one multiplies by the length of a loop and is the same everywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from math import log2, prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.interpreters.partial_eval import dce_jaxpr

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
    return count_by(lambda name: "", function, *arguments).get("", 0)


def count_by(
    part: Callable[[str], str], function: Callable[..., Any], *arguments: Any
) -> dict[str, int]:
    """The same, by the part that an operation belongs to, which its scopes (`name`) tell."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    used, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))  # XLA leaves out what nobody uses
    return dict(_of(used, part, ""))


def _of(jaxpr: Jaxpr, part: Callable[[str], str], outer: str) -> Counter[str]:
    total: Counter[str] = Counter()
    for equation in jaxpr.eqns:
        scopes = f"{outer}/{equation.source_info.name_stack}"
        params = equation.params
        inner = [_of(j, part, scopes) for value in params.values() for j in _jaxprs(value)]
        if not inner:
            total[part(scopes)] += _of_equation(equation)
        elif equation.primitive.name == "cond":
            total += max(inner, key=Counter.total)
        else:
            for counted in inner:
                for name, number in counted.items():
                    total[name] += params.get("length", 1) * number
    return total


def _of_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    shapes = [variable.aval for variable in equation.invars]
    out = equation.outvars[0].aval
    if hasattr(equation.primitive.impl, "lower"):  # one of ours, made of others
        return count(lambda *operands: equation.primitive.impl(*operands, **params), *shapes)
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
