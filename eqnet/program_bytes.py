"""Bytes that each instruction of a compiled program reads and writes in one run.

XLA counts them for a whole program only (`compiled.cost_analysis()`). Here they are read off its
text: what an instruction takes plus what it makes, and of an array of which it takes some rows,
these rows alone. Cache or memory is not told apart: the bytes are what a core asks for.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[sufc]\d+|bf16)\[([\d,]*)\]")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"calls=%?([\w.\-]+)")
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast",
    "while", "conditional", "call",  # what they run is counted where it stands
}  # fmt: skip
_ROWS = ("dynamic-slice", "slice", "gather")


class Instruction(NamedTuple):
    """One line of a program: what it makes (bytes), how, and from what (names)."""

    root: bool
    made: int
    operation: str
    operands: list[str]
    called: str


def bytes_by_instruction(program: str) -> dict[str, int]:
    """Instruction -> bytes of one run, for all that are not inside a fusion.

    Args:
        program: text of the compiled program, `compiled.as_text()`.
    """
    computations = _computations(program)
    fused = {line.called for lines in computations.values() for line in lines.values()}
    moved = {}
    for computation, lines in computations.items():
        if computation in fused:
            continue
        for name, line in lines.items():
            if line.operation in _FREE:
                continue
            inside = computations.get(line.called) or _alone(name, line, lines)
            moved[name] = _moved(inside)
    return moved


def _computations(program: str) -> dict[str, dict[str, Instruction]]:
    found: dict[str, dict[str, Instruction]] = {}
    lines: dict[str, Instruction] = {}
    for text in program.splitlines():
        if start := _COMPUTATION.match(text):
            lines = found.setdefault(start[1], {})
        elif match := _INSTRUCTION.match(text):
            root, name, shape, operation, rest = match.groups()
            inside, _, attributes = rest.partition(")")
            called = _CALLED.search(attributes)
            lines[name] = Instruction(
                bool(root), _bytes(shape), operation, _OPERAND.findall(inside),
                called[1] if called else "",
            )  # fmt: skip
    return found


def _bytes(shape: str) -> int:
    """Of an array, or of all arrays of a tuple."""
    total = 0
    for kind, sizes in _ARRAY.findall(shape):
        bits = 8 if kind == "pred" else int(re.sub(r"\D", "", kind))
        total += bits * math.prod(int(size) for size in sizes.split(",") if size) // 8
    return total


def _alone(name: str, line: Instruction, lines: dict[str, Instruction]) -> dict[str, Instruction]:
    """An instruction outside of a fusion as if it were one."""
    taken = {
        operand: lines[operand]._replace(operation="parameter", root=False)
        for operand in line.operands
    }
    return {**taken, name: line._replace(root=True)}


def _moved(lines: dict[str, Instruction]) -> int:
    """Bytes that a fusion reads of its parameters and writes to its outputs."""
    users: dict[str, list[tuple[str, Instruction]]] = {name: [] for name in lines}
    for name, line in lines.items():
        for operand in line.operands:
            if operand in users:
                users[operand].append((name, line))

    def read(name: str) -> int:
        """The whole array, unless all that use it take rows of it or write rows into it."""
        total = 0
        for user, line in users[name]:
            first = line.operands[0] == name
            if line.operation == "bitcast":
                total += read(user)
            elif first and line.operation in _ROWS:
                total += line.made
            elif not (first and line.operation == "dynamic-update-slice"):
                return lines[name].made
        return min(total, lines[name].made)

    def written(name: str) -> int:
        line = lines[name]
        if line.operation == "tuple":
            return sum(written(operand) for operand in line.operands)
        if line.operation == "bitcast":
            return written(line.operands[0])
        if line.operation == "dynamic-update-slice":
            return lines[line.operands[1]].made
        return line.made

    reads = sum(read(name) for name, line in lines.items() if line.operation == "parameter")
    return reads + sum(written(name) for name, line in lines.items() if line.root)
