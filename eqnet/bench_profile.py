"""Where the time of a compiled program goes, part by part.

The layers name their part of a program (`jax.named_scope`), XLA keeps the names with what it makes
of them, and JAX's profiler times every instruction. What the layers did not name is 'other'.
"""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from eqnet import operations
from eqnet.program_bytes import bytes_by_instruction

PARTS = (
    "edges", "frames", "radial", "gather", "turn", "turn_back", "so2", "product", "power", "linear",
    "gate", "softmax", "readout",
)  # fmt: skip
OTHER = "other"
_NAMES = re.compile(r"\b(" + "|".join(PARTS) + r")\b")
_INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*op_name="([^"]*)"')


class Part(NamedTuple):
    """One row of a profile.

    Attributes:
        name: of the part.
        forward_ms: time of its instructions in the forward pass.
        backward_ms: in the backward pass.
        operations: floating-point operations of both, from the program before XLA.
        bytes: that the instructions of both read and write, in cache or memory.
    """

    name: str
    forward_ms: float
    backward_ms: float
    operations: int
    bytes: int

    def as_dict(self, peak: float) -> dict[str, str | float]:
        """Plain values, with the fraction of a peak in operations per second."""
        ms = self.forward_ms + self.backward_ms
        rate = self.operations / (1e-3 * ms) if ms else 0.0
        return {
            "part": self.name,
            "forward_ms": self.forward_ms,
            "backward_ms": self.backward_ms,
            "operations": self.operations,
            "bytes": self.bytes,
            "floor_ms": 1e3 * self.operations / peak,
            "matmul_peak_fraction": rate / peak,
        }


def part_of(name: str) -> str:
    """The innermost part in the name of an operation, 'other' if there is none."""
    return (_NAMES.findall(name) or [OTHER])[-1]


def profile(
    function: Callable[..., Any], arguments: tuple, compiled: Any, calls: int = 10
) -> list[Part]:
    """Run a program some times under the profiler; parts in the order of `PARTS`, then the rest.

    Args:
        function: what was compiled.
        arguments: of the function.
        compiled: the program, as `jax.jit(function).lower(*arguments).compile()` gives it.
        calls: of each instruction the fastest counts.
    """
    program = compiled.as_text()
    names, moved = _op_names(program), bytes_by_instruction(program)
    times = {False: defaultdict(float), True: defaultdict(float)}
    traffic: dict[str, int] = defaultdict(int)
    for instruction, (seconds, runs) in _runs(compiled, arguments, calls).items():
        name = names.get(instruction, "")
        scopes = name.rpartition("/")[0]  # the rest is the operation, which may be called alike
        times["transpose(" in scopes][part_of(scopes)] += 1e3 * seconds
        traffic[part_of(scopes)] += runs * moved.get(instruction, 0)
    counted = operations.count_by(part_of, function, *arguments)
    return [
        Part(part, times[False][part], times[True][part], counted.get(part, 0), traffic[part])
        for part in (*PARTS, OTHER)
        if times[False][part] or times[True][part] or counted.get(part)
    ]


def _op_names(program: str) -> dict[str, str]:
    """Instruction -> name of the operation that it came from."""
    lines = (_INSTRUCTION.match(line) for line in program.splitlines())
    return {match[1]: match[2] for match in lines if match}


def _runs(compiled: Any, arguments: tuple, calls: int) -> dict[str, tuple[float, int]]:
    """Of each instruction: its time in one call, without what runs inside of it, and its runs."""
    jax.block_until_ready(compiled(*arguments))
    fastest: dict[str, tuple[float, int]] = {}
    for _ in range(calls):
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                jax.block_until_ready(compiled(*arguments))
            (file,) = Path(folder).rglob("*.xplane.pb")
            spent: dict[str, float] = defaultdict(float)
            runs: dict[str, int] = defaultdict(int)
            for instruction, seconds in _own_seconds(file):
                spent[instruction] += seconds
                runs[instruction] += seconds >= 0
        for instruction, seconds in spent.items():
            now = (seconds, runs[instruction])
            fastest[instruction] = min(fastest.get(instruction, now), now)
    return fastest


def _own_seconds(file: Path) -> Iterator[tuple[str, float]]:
    """(instruction, seconds) of each run of an instruction, less what ran inside of it."""
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            events = [
                (event.start_ns, event.start_ns + event.duration_ns, str(value))
                for event in line.events
                for key, value in event.stats
                if key == "hlo_op"
            ]
            events.sort(key=lambda event: (event[0], -event[1]))
            open_: list[tuple[float, str]] = []
            for start, end, name in events:
                while open_ and open_[-1][0] <= start:
                    open_.pop()
                if open_:
                    yield open_[-1][1], -1e-9 * (end - start)
                yield name, 1e-9 * (end - start)
                open_.append((end, name))
