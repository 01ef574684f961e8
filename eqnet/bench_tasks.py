"""What a benchmark of products asks for: the same irreps, arrays and graph for every contestant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eqnet.graph import AtomGraph
from eqnet.irreps import Irreps, IrrepsArray, regrouped
from eqnet.ops import measures
from eqnet.ops.choose import ring

Use = Literal["edge", "node", "power"]
Pattern = Literal["simo", "mimo"]
Paths = Literal["even", "all"]

RADIAL_WIDTH = 64  # hidden layer before the weights of the edges


@dataclass(frozen=True)
class Task:
    """One size of one use.

    Attributes:
        use: 'edge' for the convolution with harmonics, summed over neighbours, radial weights
            included; 'node' for the product of two features; 'power' for powers of one.
        pattern: 'mimo' for degrees 0..l_max in, 'simo' for l_max alone.
        l_max: highest degree of the inputs.
        l_out: highest degree of the output.
        channels: of each irrep; harmonics have one.
        batch: edges, or rows (atoms) of features.
        dtype: 'float32' or 'float64'.
        paths: 'even' for outputs of parity (-1)^l only, 'all' for both parities.
        correlation: of the powers.
    """

    use: Use
    pattern: Pattern
    l_max: int
    l_out: int
    channels: int
    batch: int
    dtype: str
    paths: Paths
    correlation: int = 3

    @property
    def degrees(self) -> range:
        """Degrees of the inputs."""
        return range(self.l_max if self.pattern == "simo" else 0, self.l_max + 1)

    @property
    def harmonics(self) -> Irreps:
        """One channel of each degree, of parity (-1)^l."""
        return Irreps([(1, (l, (-1) ** l)) for l in self.degrees])

    @property
    def irreps_left(self) -> Irreps:
        """Irreps of the feature."""
        return self.harmonics * self.channels

    @property
    def irreps_right(self) -> Irreps:
        """Irreps of the harmonics, or of the second feature."""
        return self.harmonics if self.use == "edge" else self.irreps_left

    @property
    def irreps_target(self) -> Irreps:
        """Irreps of the output."""
        parities = (1, -1) if self.paths == "all" else (1,)
        kept = [(l, p * (-1) ** l) for l in range(self.l_out + 1) for p in parities]
        return regrouped(Irreps([(self.channels, ir) for ir in kept]))

    @cached_property
    def graph(self) -> AtomGraph:
        """Atoms on a ring, each with the same number of neighbours on both sides."""
        return ring(self.batch)

    @property
    def rows(self) -> int:
        """Edges, or rows of features, that are worked on."""
        return int(np.size(self.graph.neighbors)) if self.use == "edge" else self.batch

    def inputs(self, rotation: np.ndarray | None = None) -> tuple[IrrepsArray, IrrepsArray]:
        """Feature x and second operand y, the same each time; all of it turned by a rotation."""
        rng = np.random.default_rng(0)
        size = self.graph.num_atoms if self.use == "edge" else self.batch
        x = IrrepsArray(self.irreps_left, rng.normal(size=(size, self.irreps_left.dim)))
        unit = measures.directions(self.rows, 1)
        if self.use == "edge":
            unit = unit if rotation is None else unit @ rotation.T
            with jax.enable_x64(True):
                y = measures.harmonics_of(self.irreps_right, unit)
            array = np.asarray(y.array).reshape((*self.graph.neighbors.shape, -1))
        else:
            array = rng.normal(size=(size, self.irreps_right.dim))
        y = IrrepsArray(self.irreps_right, array)
        if rotation is not None:
            with jax.enable_x64(True):
                x = measures.turned(x, rotation)
                y = y if self.use == "edge" else measures.turned(y, rotation)
        return self.cast(x), self.cast(y)

    def hidden(self) -> jax.Array:
        """Hidden layer of the radial network, [R, K, RADIAL_WIDTH]."""
        shape = (*self.graph.neighbors.shape, RADIAL_WIDTH)
        return jnp.asarray(np.random.default_rng(2).normal(size=shape), self.dtype)

    def weights(self, *shape: int) -> jax.Array:
        """Normal random numbers."""
        return jnp.asarray(np.random.default_rng(3).normal(size=shape), self.dtype)

    def cast(self, x: IrrepsArray) -> IrrepsArray:
        """The array in the precision of the task, on the device."""
        return IrrepsArray(x.irreps, jnp.asarray(np.asarray(x.array), self.dtype))


class Contestant(NamedTuple):
    """One way to do a task.

    Attributes:
        library: 'eqnet' or a rival.
        product: name of the product.
        method: name of the way it is computed.
        outputs: 'paths' where each path keeps its own output, 'summed' where paths to an irrep are
            added up.
        weights: arrays with a gradient; their number per row is `num_weights`.
        num_weights: per edge, or in all.
        couplings: different (left, right, out) irreps that are connected.
        declared: operations that the product says it needs, of the whole batch; 0 if it says none.
        prepare: x, y of the task -> operands in the library's own order; not timed.
        function: (operands, weights) -> output.
        unpack: output -> array of irreps.
    """

    library: str
    product: str
    method: str
    outputs: Literal["paths", "summed"]
    weights: Any
    num_weights: int
    couplings: int
    declared: int
    prepare: Callable[[IrrepsArray, IrrepsArray], Any]
    function: Callable[[Any, Any], Any]
    unpack: Callable[[Any], IrrepsArray]

    @property
    def name(self) -> str:
        """How tables call it."""
        own = self.product if self.library == "eqnet" else self.library
        return f"{own} {self.method}" if self.method else own
