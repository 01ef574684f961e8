"""Products of two features in other libraries, in the library's own order of storage."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eqnet import bench_rivals as rivals
from eqnet.bench_tasks import Contestant, Task
from eqnet.irreps import Irreps, IrrepsArray
from eqnet.ops.gaunt import Gaunt


def _node_contestant(
    task: Task,
    library: str,
    product: str,
    method: str,
    summed: bool,
    couplings: int,
    weights: Any,
    prepare: Callable[[IrrepsArray, IrrepsArray], Any],
    function: Callable[[Any, Any], Any],
    unpack: Callable[[Any], IrrepsArray],
) -> Contestant:
    return Contestant(
        library=library,
        product=product,
        method=method,
        outputs="summed" if summed else "paths",
        weights=weights,
        num_weights=sum(int(np.size(leaf)) for leaf in jax.tree.leaves(weights)),
        couplings=couplings,
        declared=0,
        prepare=prepare,
        function=function,
        unpack=unpack,
    )


def e3nn_tensor_product(task: Task, summed: bool) -> Contestant:
    """`tensor_product` channel by channel, a weight for each path and channel."""
    e3nn: Any = import_module("e3nn_jax")

    channels, paths = task.channels, rivals.path_irreps(task)
    targets, scale = [ir for _, ir in task.irreps_target], rivals.summing(task)

    def function(operands: Any, weights: jax.Array) -> jax.Array:
        x, y = (e3nn.IrrepsArray(task.harmonics, v) for v in operands)
        out = e3nn.tensor_product(x, y, filter_ir_out=targets)
        if not summed:
            return (out * weights.T).array
        return jnp.concatenate([c.sum(-2) for c in (out * (weights.T * scale)).chunks], axis=-1)

    return _node_contestant(
        task,
        "e3nn-jax",
        "clebsch_gordan",
        "tensor_product" + " summed" * summed,
        summed,
        len(rivals.paths(task)),
        task.weights(paths.num_irreps, channels),
        lambda x, y: tuple(rivals.channels_first(v, channels) for v in (x, y)),
        function,
        lambda out: rivals.channels_last(out, rivals.each_once(paths) if summed else paths),
    )


def e3nn_grid(task: Task) -> Contestant:
    """The Gaunt product by `to_s2grid` and `from_s2grid`, the form of 'The Price of Freedom'."""
    e3nn: Any = import_module("e3nn_jax")

    if task.paths == "all":
        raise ValueError("e3nn-jax s2grid gives natural irreps only: it has no odd paths")
    channels, degree = task.channels, 2 * task.l_max + task.l_out
    sizes = {"res_beta": 2 * (degree // 4 + 1), "res_alpha": degree + 1 + degree % 2}
    natural = Irreps([(1, ir) for _, ir in task.irreps_target])

    def function(operands: Any, weights: jax.Array) -> jax.Array:
        del weights
        signals = [
            e3nn.to_s2grid(
                e3nn.IrrepsArray(task.harmonics, v),
                **sizes,
                quadrature="gausslegendre",
                p_val=1,
                p_arg=-1,
                fft=False,
            )
            for v in operands
        ]
        return e3nn.from_s2grid(signals[0] * signals[1], natural, fft=False).array

    gaunt = Gaunt(task.irreps_left, task.irreps_right, task.irreps_target)
    return _node_contestant(
        task,
        "e3nn-jax",
        "gaunt",
        "s2grid",
        True,
        len(gaunt.declaration.couplings),
        (),
        lambda x, y: tuple(rivals.channels_first(v, channels) for v in (x, y)),
        function,
        lambda out: rivals.channels_last(out, natural),
    )


def mlip_gaunt(task: Task) -> Contestant:
    """`GauntTensorProduct` on spherical designs, natural irreps only."""
    from e3nn_jax import IrrepsArray as E3nnArray

    if task.paths == "all":
        raise ValueError("mlip's Gaunt product gives natural irreps only: it has no odd paths")
    channels, natural = task.channels, Irreps([(1, ir) for _, ir in task.irreps_target])
    mlip: Any = import_module("mlip.models.gaunt_tensor_product")
    product = mlip.GauntTensorProduct((task.harmonics, task.harmonics), natural)

    def function(operands: Any, weights: Any) -> jax.Array:
        del weights
        x, y = (E3nnArray(task.harmonics, v) for v in operands)
        return product(x, y).array

    gaunt = Gaunt(task.irreps_left, task.irreps_right, task.irreps_target)
    return _node_contestant(
        task,
        "mlip",
        "gaunt",
        "designs",
        True,
        len(gaunt.declaration.couplings),
        (),
        lambda x, y: tuple(rivals.channels_first(v, channels) for v in (x, y)),
        function,
        lambda out: rivals.channels_last(out, natural),
    )


def e3x_tensor(task: Task, fused: bool) -> Contestant:
    """`Tensor`, a weight for each path and channel, or `FusedTensor`, the matrix product."""
    e3x: Any = import_module("e3x")

    rivals.check_e3x(task)
    kind = e3x.nn.FusedTensor if fused else e3x.nn.Tensor
    layer = kind(
        max_degree=task.l_out, include_pseudotensors=task.paths == "all", cartesian_order=False
    )
    start = jnp.zeros((1, 1, len(task.degrees) ** 2, task.channels), task.dtype)
    return _node_contestant(
        task,
        "e3x",
        "matrix" if fused else "clebsch_gordan",
        kind.__name__,
        True,
        len(rivals.paths(task)),
        layer.init(jax.random.key(0), start, start),
        lambda x, y: tuple(rivals.degrees_middle(v, task)[:, None] for v in (x, y)),
        lambda operands, weights: layer.apply(weights, *operands),
        lambda out: rivals.from_e3x(out, task),
    )


def contestants(library: str) -> tuple[Callable[[Task], Contestant], ...]:
    """What a library has to offer; each raises ValueError for tasks that it cannot do."""
    return {
        "e3nn-jax": (
            lambda task: e3nn_tensor_product(task, summed=False),
            lambda task: e3nn_tensor_product(task, summed=True),
            e3nn_grid,
        ),
        "e3x": (
            lambda task: e3x_tensor(task, fused=False),
            lambda task: e3x_tensor(task, fused=True),
        ),
        "mlip": (mlip_gaunt,),
    }.get(library, ())
