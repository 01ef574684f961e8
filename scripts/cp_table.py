"""Error against rank of the CP product: the stacked Clebsch-Gordan tensor in R rank-one terms.

    python scripts/cp_table.py --l_max 1 2 3 4 --paths all

fits every rank anew, as `CP(..., rank=R)` does when it is not in the cache, and measures the fit.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from eqnet.errors import InputError
from eqnet.model_options import default
from eqnet.scripts.bench_common import check_positive

if TYPE_CHECKING:
    from rich.table import Table

    from eqnet.ops.cp_fit import Factors
    from eqnet.ops.cp_tensor import StackedTensor

# Ranks to show, up to the smallest exact one that is known: {paths: {L: ranks}}.
RANKS = {
    "all": {
        1: (5, 6, 7, 8),
        2: (20, 24, 26, 28, 29, 30),
        3: (40, 50, 56, 63, 70, 76, 84, 88, 90),
        4: (60, 112, 150, 200, 216),
    },
    "even": {
        1: (5, 6),
        2: (14, 16, 17, 18),
        3: (28, 32, 36, 40, 44, 48, 50, 52),
        4: (60, 80, 100, 118, 122),
    },
}


@dataclass(frozen=True)
class TableOptions:
    """Error against rank of the CP product, all degrees to L on all sides."""

    l_max: tuple[int, ...] = (1, 2, 3)
    """Highest degrees L, from 1 to 4; 4 takes minutes."""
    paths: Literal["all", "even"] = "all"
    """all: parity ignored, as in TDN; even: parity kept, so that only even paths are left."""
    starts: int = 16
    """Random starts of each fit at most; the first exact one ends it. The product makes 16."""
    csv: Annotated[str | None, default("none", "FILE")] = None
    """Write the table with all digits."""


@dataclass(frozen=True)
class Row:
    """One fit.

    Attributes:
        l_max: L.
        paths: number of couplings.
        rank: number of terms R.
        error: relative, of the tensor.
        predicted: root mean square equivariance error by the closed form.
        measured: the same by random inputs and group elements.
        cancellation: sum of the norms of the terms / norm of the tensor.
        degenerate: whether the product refuses the rank, see `Fit.degenerate`.
        seconds: CPU time of the fit.
    """

    l_max: int
    paths: int
    rank: int
    error: float
    predicted: float
    measured: float
    cancellation: float
    degenerate: bool
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    """Fit, measure and print; returns the exit code."""
    from eqnet.scripts.command_line import parse

    options = parse(TableOptions, sys.argv[1:] if argv is None else argv, command="cp_table")
    check_positive(options, "starts")
    known = RANKS[options.paths]
    for l_max in options.l_max:
        if l_max not in known:
            raise InputError(f"--l_max must be degrees from 1 to {max(known)}, not {l_max}")
    import jax
    from rich.live import Live

    from eqnet.bench_report import check_outputs, write_csv
    from eqnet.scripts.bench_common import wide_console

    check_outputs({"csv": options.csv}, {"csv": (".csv",)})
    rows = []
    with jax.enable_x64(True), Live(_table([]), console=wide_console()) as live:
        for row in _rows(options):
            rows.append(row)
            live.update(_table(rows))
    if options.csv is not None:
        write_csv(options.csv, [asdict(row) for row in rows])
    return 0


def _rows(options: TableOptions) -> Iterator[Row]:
    """Fits and their errors, as they come."""
    from eqnet.irreps import spherical_irreps
    from eqnet.ops.cp_cache import Fit
    from eqnet.ops.cp_fit import fit
    from eqnet.ops.cp_tensor import StackedTensor

    for l_max in options.l_max:
        irreps = tuple(ir for _, ir in spherical_irreps(l_max))
        group = "SO3" if options.paths == "all" else "O3"
        stacked = StackedTensor(irreps, irreps, irreps, group)
        for rank in RANKS[options.paths][l_max]:
            start = time.process_time()
            factors = fit(stacked.values, rank, starts=options.starts)
            seconds = time.process_time() - start
            found = Fit.of(factors, stacked)
            yield Row(
                l_max=l_max,
                paths=len(stacked.couplings),
                rank=rank,
                error=found.error,
                predicted=found.equivariance_error,
                measured=measured_error(stacked, factors),
                cancellation=found.cancellation,
                degenerate=found.degenerate,
                seconds=seconds,
            )


def measured_error(stacked: StackedTensor, factors: Factors) -> float:
    """Root mean square equivariance error of the terms, at random inputs and group elements."""
    from eqnet.irreps import Irreps, IrrepsArray
    from eqnet.ops.measures import rms_symmetry_error

    left, right, out = (
        Irreps([(1, ir) for ir in side]) for side in (stacked.left, stacked.right, stacked.out)
    )
    a, b, q = factors

    def terms(x: IrrepsArray, y: IrrepsArray) -> IrrepsArray:
        return IrrepsArray(out, ((x.array @ a) * (y.array @ b)) @ q.T)

    return rms_symmetry_error(terms, left, right, group=stacked.group)


def _table(rows: Sequence[Row]) -> Table:
    """What was found so far."""
    from rich.table import Table

    from eqnet.ops.cp_fit import EXACT

    heads = ("L", "paths", "rank", "error", "predicted", "measured", "sum of norms", "CPU s")
    table = Table(title="CP: error against rank", title_justify="left", box=None)
    for head in heads:
        table.add_column(head, justify="right")
    for above, row in zip([None, *rows], rows, strict=False):
        exact = row.error < EXACT
        table.add_row(
            *("" if above and above.l_max == row.l_max else str(n) for n in (row.l_max, row.paths)),
            f"{row.rank}",
            "exact" if exact else f"{row.error:.1e}",
            *(f"{value:.1e}" for value in (row.predicted, row.measured)),
            f"{row.cancellation:.1f}{' refused' if row.degenerate else ''}",
            f"{row.seconds:.1f}",
        )
    table.caption_justify = "left"
    table.caption = (
        "error: |T' - T| / |T| of the tensor; predicted: equivariance error, closed form;\n"
        "measured: at random inputs and orientations; sum of norms: of the terms, / |T|;\n"
        "refused: by the product, which takes no small error that cancellation buys"
    )
    return table


if __name__ == "__main__":
    from eqnet.scripts import run

    sys.exit(run("cp_table"))
