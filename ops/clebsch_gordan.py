"""The Clebsch-Gordan product: every bilinear O(3)-equivariant map, one weight per path.

Per path (l1, l2 -> l3), with C normalised to sum of squares 1 and 'component' outputs:

    z[k, w] = sqrt(2 l3 + 1) sum_{ij} C[i, j, k] x[i, u] y[j, v] W[u, v, w]

The mode says which of the channel indices u (left), v (right), w (out) are shared, as in e3nn:
'uvu' keeps the left channel and sums the right one (convolutions, where y has one channel), 'uuu'
works channel by channel, 'uvw' is fully connected. Paths that lead to one irrep keep channels of
their own, or are summed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eqnet.irreps import Irrep, Irreps, IrrepsArray, regrouped
from eqnet.ops.clebsch_gordan_rows import rows
from eqnet.ops.clebsch_gordan_so2 import so2
from eqnet.ops.clebsch_gordan_sparse import Core, sparse, sparse_edges
from eqnet.ops.product import Declaration, Kernel, Path
from eqnet.so3 import HIGHEST, clebsch_gordan

Mode = Literal["uvu", "uuu", "uvw"]
_EINSUM = {"uvu": "uv,...iu,...jv,ijk->...ku", "uuu": "u,...iu,...ju,ijk->...ku"}
_EINSUM["uvw"] = "uvw,...iu,...jv,ijk->...kw"


class Run(NamedTuple):
    """Paths from neighbouring left blocks of one multiplicity, and where their outputs stand.

    Attributes:
        start, end: the left blocks, start .. end - 1.
        paths: positions in `ClebschGordan.paths`.
        places: for each path (row, step): component m of its output is row + m step.
        copies: how often each output irrep stands there, side by side in each component.
    """

    start: int
    end: int
    paths: tuple[int, ...]
    places: tuple[tuple[int, int], ...]
    copies: dict[Irrep, int]

    @property
    def rows(self) -> int:
        """Number of rows of the output, components times copies."""
        return sum(ir.dim * number for ir, number in self.copies.items())


@dataclass(frozen=True)
class ClebschGordan:
    """A Clebsch-Gordan product of fixed irreps.

    Args:
        irreps_left: irreps of x; several channels per irrep.
        irreps_right: irreps of y.
        irreps_target: outputs to keep. In mode 'uvw' their multiplicities are those of the output;
            otherwise only the irreps count and the multiplicities follow from the inputs.
        mode: 'uvu', 'uuu' or 'uvw', see above.
        summed: add the paths to each irrep, over the square root of their number, so that the
            output has one copy of the channels; 'uvw' always does.

    Raises:
        ValueError: no path leads to the target, mode 'uuu' with unequal multiplicities, or paths of
            unequal multiplicities that are to be summed.
    """

    irreps_left: Irreps
    irreps_right: Irreps
    irreps_target: Irreps
    mode: Mode = "uvu"
    summed: bool = False

    kernels: ClassVar[dict[str, Kernel]] = {"rows": rows, "sparse": sparse_edges, "so2": so2}
    cores: ClassVar[dict[str, Core]] = {"sparse": sparse}

    def __post_init__(self) -> None:
        if not self.paths:
            raise ValueError(
                f"no path from {self.irreps_left} x {self.irreps_right} to {self.irreps_target}"
            )
        for path in self.paths if self.mode == "uuu" else ():
            if self.irreps_left[path.left].mul != self.irreps_right[path.right].mul:
                raise ValueError(
                    "mode 'uuu' needs equal multiplicities: "
                    f"{self.irreps_left} x {self.irreps_right}"
                )

        for _, ir in self.irreps_out if self.summed and self.mode != "uvw" else ():
            if len({self.irreps_left[path.left].mul for path in self.paths if path.out == ir}) > 1:
                raise ValueError(
                    f"paths to {ir} have unequal multiplicities in {self.irreps_left}: they can "
                    "stand side by side, but not be summed"
                )

    @cached_property
    def paths(self) -> tuple[Path, ...]:
        """All paths to the target, sorted by output irrep, then left, then right block."""
        targets = {ir for _, ir in self.irreps_target}
        found = [
            Path(i, j, out)
            for i, (_, left) in enumerate(self.irreps_left)
            for j, (_, right) in enumerate(self.irreps_right)
            for out in left * right
            if out in targets
        ]
        return tuple(sorted(found, key=lambda path: path.out))

    def weight_shape(self, path: Path) -> tuple[int, ...]:
        """(u, v), (u,) or (u, v, w): the multiplicities the weight of a path connects."""
        u, v = self.irreps_left[path.left].mul, self.irreps_right[path.right].mul
        if self.mode == "uvw":
            return (u, v, self.irreps_target.count(path.out))
        return (u, v) if self.mode == "uvu" else (u,)

    @cached_property
    def weight_sizes(self) -> tuple[int, ...]:
        """Number of weights of each path, in the order in which they are stored."""
        return tuple(prod(self.weight_shape(path)) for path in self.paths)

    @property
    def num_weights(self) -> int:
        """Length of the last axis of the weights."""
        return sum(self.weight_sizes)

    @property
    def num_shared(self) -> int:
        """No weights are common to all rows."""
        return 0

    @cached_property
    def irreps_out(self) -> Irreps:
        """Output irreps; for 'uvu' and 'uuu' the channels of an irrep are path after path."""
        if self.mode == "uvw":
            reached = {path.out for path in self.paths}
            return regrouped(Irreps([m for m in self.irreps_target if m.ir in reached]))
        channels = [(self.irreps_left[path.left].mul, path.out) for path in self.paths]
        if self.summed:
            channels = list({out: (mul, out) for mul, out in channels}.values())
        return regrouped(Irreps(channels))

    def normalisation(self, path: Path) -> float:
        """sqrt(2 l3 + 1) / sqrt(number of terms that are summed into one output channel)."""
        if self.mode == "uvw":
            terms = sum(
                self.irreps_left[p.left].mul * self.irreps_right[p.right].mul
                for p in self.paths
                if p.out == path.out
            )
        else:
            terms = self.irreps_right[path.right].mul if self.mode == "uvu" else 1
            if self.summed:
                terms *= sum(p.out == path.out for p in self.paths)
        return float(np.sqrt(path.out.dim / terms))

    def coefficients(self, path: Path) -> np.ndarray:
        """Normalised table of a path, [2 l1 + 1, 2 l2 + 1, 2 l3 + 1], float64."""
        left, right = self.irreps_left[path.left].ir, self.irreps_right[path.right].ir
        return self.normalisation(path) * clebsch_gordan(left.l, right.l, path.out.l)

    @cached_property
    def declaration(self) -> Declaration:
        """All paths with free weights, exact, O(3)."""
        dims = [
            (self.irreps_left[p.left].ir.dim, self.irreps_right[p.right].ir.dim, p.out.dim)
            for p in self.paths
        ]
        return Declaration(
            name="clebsch_gordan",
            couplings=frozenset(
                (self.irreps_left[p.left].ir, self.irreps_right[p.right].ir, p.out)
                for p in self.paths
            ),
            group="O3",
            error=0.0,
            weights="per_path",
            operations=sum(2 * prod(d) for d in dims),
            floats=sum(sum(d) for d in dims),
        )

    def __call__(
        self, x: IrrepsArray, y: IrrepsArray, weights: jax.Array, shared: jax.Array | None = None
    ) -> IrrepsArray:
        """The product of rows by dense contraction; the plain form that others are tested against.

        Args:
            x: [..., irreps_left].
            y: [..., irreps_right].
            weights: [..., num_weights], or [num_weights] for all rows.
            shared: this product has none.

        Returns:
            [..., irreps_out].
        """
        del shared
        parts = jax.lax.split(weights, self.weight_sizes, axis=weights.ndim - 1)
        xs, ys, lead = x.blocks, y.blocks, weights.shape[:-1]
        rows = "..." if lead else ""
        out: dict = {}
        for path, part in zip(self.paths, parts, strict=True):
            z = jnp.einsum(
                rows + _EINSUM[self.mode],
                part.reshape(lead + self.weight_shape(path)),
                xs[path.left],
                ys[path.right],
                jnp.asarray(self.coefficients(path), x.array.dtype),
                precision=HIGHEST,
            )
            out.setdefault(path.out, []).append(z)
        return self.join(out)

    def multiply(
        self, x: IrrepsArray, y: IrrepsArray, weights: jax.Array, method: str = "default"
    ) -> IrrepsArray:
        """The product of two features by a method; 'default' is the first. Otherwise as `__call__`.

        Raises:
            ValueError: there is no method of this name, or it does not do this mode.
        """
        if method == "dense":
            return self(x, y, weights)
        method = next(iter(self.cores)) if method == "default" else method
        if method not in self.cores:
            known = ", ".join([*self.cores, "dense"])
            raise ValueError(f"clebsch_gordan has no method {method!r}; it has: {known}")
        return self.cores[method](self, x, y, weights)

    def join(self, blocks: dict) -> IrrepsArray:
        """Blocks of the paths to each output irrep, summed or side by side."""
        add = self.summed or self.mode == "uvw"
        merged = [
            sum(blocks[ir][1:], blocks[ir][0]) if add else jnp.concatenate(blocks[ir], axis=-1)
            for _, ir in self.irreps_out
        ]
        return IrrepsArray.from_blocks(self.irreps_out, merged)

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """Paths whose left blocks stand side by side with equal multiplicities, to do at once."""
        muls = [mul for mul, _ in self.irreps_left]
        edges = [n for n in range(1, len(muls)) if muls[n] != muls[n - 1]]
        runs = []
        for start, end in zip([0, *edges], [*edges, len(muls)], strict=True):
            chosen = [n for n, path in enumerate(self.paths) if start <= path.left < end]
            copies, places, row = {}, [], 0
            for out in dict.fromkeys(self.paths[n].out for n in chosen):
                number = sum(self.paths[n].out == out for n in chosen)
                copies[out] = 1 if self.summed else number
                for n in range(number):
                    places.append((row + (0 if self.summed else n), copies[out]))
                row += out.dim * copies[out]
            if chosen:
                runs.append(Run(start, end, tuple(chosen), tuple(places), copies))
        return tuple(runs)

    def assemble(self, parts: list[jax.Array]) -> IrrepsArray:
        """The output from one array [rows, `Run.rows`, C] for each run."""
        if len(parts) == 1:
            return IrrepsArray(self.irreps_out, parts[0].reshape((len(parts[0]), -1)))
        out: dict = {}
        for run, part in zip(self.runs, parts, strict=True):
            sizes = [ir.dim * number for ir, number in run.copies.items()]
            blocks = jax.lax.split(part, sizes, axis=1)
            for ir, block in zip(run.copies, blocks, strict=True):
                out.setdefault(ir, []).append(block.reshape((len(block), ir.dim, -1)))
        return self.join(out)
