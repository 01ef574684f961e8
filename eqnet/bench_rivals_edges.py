"""Convolutions in other libraries, written as their documentation or the models built on them do.

The weights of the edges come from the same hidden layer as ours; messages are made edge by edge and
added up by `segment_sum`. Operands are in the library's own order of storage.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eqnet import bench_rivals as rivals
from eqnet.bench_tasks import Contestant, Task
from eqnet.irreps import Irreps, IrrepsArray, regrouped


class Edges(NamedTuple):
    """The graph as a list: message e goes from senders[e] to receivers[e]."""

    senders: np.ndarray
    receivers: np.ndarray
    atoms: int

    @classmethod
    def of(cls, task: Task) -> Edges:
        """The edges of a task, sorted by receiver."""
        neighbors = np.asarray(task.graph.neighbors)
        atoms, width = neighbors.shape
        return cls(neighbors.ravel(), np.repeat(np.arange(atoms), width), atoms)

    def sum(self, messages: jax.Array) -> jax.Array:
        """[E, ...] -> [N, ...]."""
        return jax.ops.segment_sum(
            messages, self.receivers, num_segments=self.atoms, indices_are_sorted=True
        )


def _edge_contestant(
    task: Task,
    library: str,
    method: str,
    summed: bool,
    per_edge: int,
    prepare: Callable[[IrrepsArray, IrrepsArray], Any],
    messages: Callable[[Any, jax.Array], jax.Array],
    unpack: Callable[[Any], IrrepsArray],
) -> Contestant:
    """A convolution; `messages` takes operands and the weights of the edges [E, per_edge]."""
    edges, hidden = Edges.of(task), task.hidden().reshape((task.rows, -1))
    matrix = task.weights(hidden.shape[1], per_edge) / hidden.shape[1] ** 0.5

    def function(operands: Any, weights: Any) -> jax.Array:
        return edges.sum(messages(operands, weights[0] @ weights[1]))

    return Contestant(
        library=library,
        product="clebsch_gordan",
        method=method,
        outputs="summed" if summed else "paths",
        weights=(hidden, matrix),
        num_weights=per_edge,
        couplings=len(rivals.paths(task)),
        declared=0,
        prepare=prepare,
        function=function,
        unpack=unpack,
    )


def e3nn_tensor_product(task: Task, summed: bool) -> Contestant:
    """`tensor_product`, then a weight for each path and channel, as MACE and NequIP in JAX do."""
    e3nn: Any = import_module("e3nn_jax")

    edges, channels, paths = Edges.of(task), task.channels, rivals.path_irreps(task)
    targets = [ir for _, ir in task.irreps_target]
    scale = rivals.summing(task)

    def messages(operands: Any, weights: jax.Array) -> jax.Array:
        x = e3nn.IrrepsArray(task.harmonics, operands[0][edges.senders])
        y = e3nn.IrrepsArray(task.harmonics, operands[1][:, None])
        weights = weights.reshape((task.rows, -1, channels)).swapaxes(1, 2)
        out = e3nn.tensor_product(x, y, filter_ir_out=targets)
        if not summed:
            return (out * weights).array
        return jnp.concatenate([c.sum(-2) for c in (out * (weights * scale)).chunks], axis=-1)

    return _edge_contestant(
        task,
        "e3nn-jax",
        "tensor_product" + " summed" * summed,
        summed,
        paths.num_irreps * channels,
        lambda x, y: (rivals.channels_first(x, channels), y.array.reshape((task.rows, -1))),
        messages,
        lambda out: rivals.channels_last(out, rivals.each_once(paths) if summed else paths),
    )


def e3nn_legacy(task: Task, summed: bool) -> Contestant:
    """`FunctionalTensorProduct` with instructions 'uvu', vmapped over edges."""
    from e3nn_jax import IrrepsArray as E3nnArray

    legacy: Any = import_module("e3nn_jax.legacy")
    edges, channels, paths = Edges.of(task), task.channels, rivals.paths(task)
    left = task.irreps_left
    outs = [path.out for path in paths]
    places = list(dict.fromkeys(outs)) if summed else outs
    irreps_out = Irreps([(channels, ir) for ir in places])
    index = [places.index(ir) for ir in outs] if summed else list(range(len(paths)))
    instructions = [
        (path.left, path.right, k, "uvu", True) for path, k in zip(paths, index, strict=True)
    ]
    product = legacy.FunctionalTensorProduct(left, task.harmonics, irreps_out, instructions)

    def message(x: jax.Array, y: jax.Array, weights: jax.Array) -> jax.Array:
        parts = [w[:, None] for w in weights.reshape((len(paths), channels))]
        operands = E3nnArray(left, x), E3nnArray(task.harmonics, y)
        return product.left_right(parts, *operands).array

    def messages(operands: Any, weights: jax.Array) -> jax.Array:
        return jax.vmap(message)(operands[0][edges.senders], operands[1], weights)

    def unpack(out: jax.Array) -> IrrepsArray:
        ours = IrrepsArray.from_e3nn(E3nnArray(irreps_out, out))
        blocks: dict[Any, list[jax.Array]] = {}
        for (_, ir), block in zip(ours.irreps, ours.blocks, strict=True):
            blocks.setdefault(ir, []).append(block)
        irreps = regrouped(irreps_out)
        return IrrepsArray.from_blocks(
            irreps, [jnp.concatenate(blocks[ir], axis=-1) for _, ir in irreps]
        )

    return _edge_contestant(
        task,
        "e3nn-jax",
        "legacy uvu" + " summed" * summed,
        summed,
        len(paths) * channels,
        lambda x, y: (x.to_e3nn().array, y.array.reshape((task.rows, -1))),
        messages,
        unpack,
    )


def cuequivariance(task: Task) -> Contestant:
    """`channelwise_tensor_product`; the kernels for GPUs there, the plain method elsewhere."""
    cue: Any = import_module("cuequivariance")
    cuex: Any = import_module("cuequivariance_jax")

    edges = Edges.of(task)
    left, right, target = (
        cue.Irreps("O3", str(irreps))
        for irreps in (task.irreps_left, task.harmonics, task.irreps_target)
    )
    polynomial = cue.descriptors.channelwise_tensor_product(left, right, target)
    method = "naive" if jax.default_backend() == "cpu" else "uniform_1d"
    irreps_out = Irreps(str(polynomial.outputs[0].irreps))

    def messages(operands: Any, weights: jax.Array) -> jax.Array:
        arrays = (weights, operands[0][edges.senders], operands[1])
        inputs = [cuex.RepArray(r, a) for r, a in zip(polynomial.inputs, arrays, strict=True)]
        return cuex.equivariant_polynomial(polynomial, inputs, method=method).array

    return _edge_contestant(
        task,
        "cuequivariance-jax",
        method,
        False,
        polynomial.inputs[0].dim,
        lambda x, y: (x.array, y.array.reshape((task.rows, -1))),
        messages,
        lambda out: IrrepsArray(irreps_out, out),
    )


def e3x_tensor(task: Task) -> Contestant:
    """`MessagePass`: radial functions by degree and channel, one weight per path and channel."""
    e3x: Any = import_module("e3x")

    rivals.check_e3x(task)
    edges, degrees = Edges.of(task), len(task.degrees)
    tensor = e3x.nn.Tensor(
        max_degree=task.l_out, include_pseudotensors=task.paths == "all", cartesian_order=False
    )
    start = jnp.zeros((1, 1, degrees**2, task.channels), task.dtype)
    parameters = tensor.init(jax.random.key(0), start, start)
    repeats = np.repeat(np.arange(degrees), [2 * l + 1 for l in task.degrees])

    def messages(operands: Any, weights: jax.Array) -> jax.Array:
        x = operands[0][edges.senders][:, None]
        radial = weights.reshape((task.rows, degrees, task.channels))[:, repeats]
        return tensor.apply(parameters, x, (operands[1][..., None] * radial)[:, None])

    return _edge_contestant(
        task,
        "e3x",
        "Tensor",
        True,
        degrees * task.channels,
        lambda x, y: (rivals.degrees_middle(x, task), y.array.reshape((task.rows, -1))),
        messages,
        lambda out: rivals.from_e3x(out, task),
    )


def contestants(library: str) -> tuple[Callable[[Task], Contestant], ...]:
    """What a library has to offer; each raises ValueError for tasks that it cannot do."""
    return {
        "e3nn-jax": (
            lambda task: e3nn_tensor_product(task, summed=False),
            lambda task: e3nn_tensor_product(task, summed=True),
            lambda task: e3nn_legacy(task, summed=False),
            lambda task: e3nn_legacy(task, summed=True),
        ),
        "cuequivariance-jax": (cuequivariance,),
        "e3x": (e3x_tensor,),
    }.get(library, ())
